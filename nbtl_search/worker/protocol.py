"""Protocol of supervisor and trainer: frozen messages, as JSON over a socket pair.

The supervisor sends orders, the trainer reports, and no report needs an answer. JSON and not
pickle: what arrives is validated instead of executed.
"""

from multiprocessing.connection import Connection
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from nbtl_search.spec import Epoch, Facts, Recipe, Value
from nbtl_search.spec.recipe import Percentage
from nbtl_search.spec.verdict import FinalResult


class Open(Value):
    """Open data and weights of a study, and check that they are the ones it was created with."""

    kind: Literal["open"] = "open"
    recipe: Recipe
    facts: Facts
    home: str
    cache: str | None = None


class Train(Value):
    """Train this recipe, from its last checkpoint where there is one; or average weights."""

    kind: Literal["train"] = "train"
    recipe: Recipe
    checkpoints: str
    until: int
    """The last epoch to train; a run whose schedule is longer pauses there."""
    members: tuple[str, ...] = ()
    """Folders of final runs whose weights are averaged: then nothing is trained."""
    result_folder: str | None = None
    """Where the weights are left; None for nowhere."""
    reads_test: bool = False
    """Whether the test images are read at the end, and the predictions left there too."""


class Halt(Value):
    """Stop at the next update; write a checkpoint first if `save`."""

    kind: Literal["halt"] = "halt"
    save: bool


class Ready(Value):
    """Data and weights are as the study says."""

    kind: Literal["ready"] = "ready"
    device: str


class Refused(Value):
    """Data or weights cannot be had here, or are not those of the study."""

    kind: Literal["refused"] = "refused"
    message: str


class Started(Value):
    """Training begins, after the epochs that the checkpoint holds."""

    kind: Literal["started"] = "started"
    history: tuple[Epoch, ...]


class Heartbeat(Value):
    """Training, measuring or testing goes on; sent at most once a second."""

    kind: Literal["heartbeat"] = "heartbeat"
    epoch: int
    update: int


class Warned(Value):
    """Something went wrong that training goes on without."""

    kind: Literal["warned"] = "warned"
    message: str


class Trained(Value):
    """An epoch is done and, where the disk takes it, saved."""

    kind: Literal["trained"] = "trained"
    epoch: Epoch


class Completed(Value):
    """The schedule is done, or the average is made."""

    kind: Literal["completed"] = "completed"
    rss_mb: float
    result: FinalResult | None = None
    """Of a run that read the test images."""
    val_top1: Percentage | None = None
    """Of an average, which has no epochs; None where the validation images are trained on."""


class Paused(Value):
    """The epochs that were ordered are done, and the schedule has more."""

    kind: Literal["paused"] = "paused"
    rss_mb: float


class Halted(Value):
    """Training has stopped as ordered; the answer to `Halt`."""

    kind: Literal["halted"] = "halted"
    rss_mb: float


class Failed(Value):
    """Training cannot go on."""

    kind: Literal["failed"] = "failed"
    cause: Literal["diverged", "oom", "infeasible", "infra", "user_error", "disk"]
    message: str


Order = Annotated[Open | Train | Halt, Field(discriminator="kind")]
Report = Annotated[
    Ready | Refused | Started | Heartbeat | Warned | Trained | Completed | Paused | Halted | Failed,
    Field(discriminator="kind"),
]
_ORDER: TypeAdapter[Order] = TypeAdapter(Order)
_REPORT: TypeAdapter[Report] = TypeAdapter(Report)


def send(connection: "Connection[bytes, bytes]", message: Value) -> None:
    """Send one message.

    Raises:
        OSError: the other side is gone.
    """
    connection.send_bytes(message.model_dump_json().encode())


def receive_order(connection: "Connection[bytes, bytes]") -> Order:
    """Wait for the supervisor's next message.

    Raises:
        EOFError: the supervisor is gone.
    """
    return _ORDER.validate_json(connection.recv_bytes())


def receive_report(connection: "Connection[bytes, bytes]") -> Report:
    """Wait for the trainer's next message.

    Raises:
        EOFError: the trainer is gone.
    """
    return _REPORT.validate_json(connection.recv_bytes())
