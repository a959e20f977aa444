"""The verbs of the program as functions; the command line calls these and nothing else.

Each takes `home` (the folder for data, weights, checkpoints and the embedded database) and, where
it needs the database, `storage` (a PostgreSQL URL; None for the embedded one).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import platformdirs

from nbtl_search.errors import SpecError, StudyNotFoundError
from nbtl_search.spec import (
    Dials,
    Epoch,
    Recipe,
    StudySpec,
    read_toml,
    with_settings,
)
from nbtl_search.spec.shipped import shipped_studies, shipped_study

if TYPE_CHECKING:
    from nbtl_search.data.cache import Prepared
    from nbtl_search.report.status import StatusReport
    from nbtl_search.study.records import TrialRecord
    from nbtl_search.study.storage import Storage
    from nbtl_search.study.store import Study, StudySummary

Progress = Callable[[int, int], None]
Wish = Literal["pause", "resume", "stop"]

_DESIRED: Final[Mapping[Wish, Literal["run", "pause", "stop"]]] = {
    "pause": "pause",
    "resume": "run",
    "stop": "stop",
}


def default_home() -> Path:
    """Return the user's data folder of this program."""
    return platformdirs.user_data_path("nbtl-search")


def draft(
    dataset: str | None = None,
    *,
    study: Path | None = None,
    name: str | None = None,
    settings: Sequence[str] = (),
) -> StudySpec:
    """Return the specification that `create` would store, without looking at data or weights.

    Args:
        dataset: a shipped study's name, or a folder of images.
        study: a TOML file instead.
        name: of the study; by default that of the dataset or the file's.
        settings: `dotted.key=value`, applied last.

    Raises:
        SpecError: neither or both are given, or something in them is not valid.
    """
    if (dataset is None) == (study is None):
        message = "create takes either --dataset or --study, got both or neither"
        raise SpecError(message)
    plain = read_toml(study) if study is not None else _of_dataset(str(dataset))
    if name is not None:
        plain["name"] = name
    return StudySpec.parse(_absolute(with_settings(plain, settings)))


def create(
    dataset: str | None = None,
    *,
    study: Path | None = None,
    name: str | None = None,
    settings: Sequence[str] = (),
    home: Path | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
) -> StudySpec:
    """Check data and weights, and store a new study; the same one again changes nothing.

    Raises:
        SpecError: the specification is not valid.
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        StudyExistsError: a study of this name has another specification.
        StorageError: the database refuses.
    """
    from nbtl_search.engine.probe import probe  # noqa: PLC0415
    from nbtl_search.study import store  # noqa: PLC0415
    from nbtl_search.study.storage import create_or_upgrade  # noqa: PLC0415

    home = home or default_home()
    spec = _with_threads(draft(dataset, study=study, name=name, settings=settings))
    facts = probe(spec, home=home, progress=progress)
    spec = spec.replace(facts=facts)
    with _storage(storage, home) as opened:
        create_or_upgrade(opened)
        return store.create(opened, spec).spec


def prepare(
    dataset: str,
    *,
    settings: Sequence[str] = (),
    skip_corrupt: bool = False,
    home: Path | None = None,
    progress: Progress | None = None,
) -> "Prepared":
    """Decode a dataset once, for every worker of this machine.

    Raises:
        DataError: the images cannot be had, or some are damaged and `skip_corrupt` is False.
    """
    from nbtl_search.data.cache import prepare as decode  # noqa: PLC0415

    spec = draft(dataset, settings=settings)
    return decode(
        spec.data, home=home or default_home(), skip_corrupt=skip_corrupt, progress=progress
    )


def launch(
    name: str,
    *,
    workers: int | None = None,
    gpus: Sequence[str] | None = None,
    home: Path | None = None,
    storage: str | None = None,
    options: Sequence[str] = (),
    on_tick: "Callable[[Study], None] | None" = None,
) -> None:
    """Run workers on this machine until the study is over: one per GPU, or as many as fit the CPU.

    Args:
        name: of the study.
        workers: how many; by default one per GPU, or one per core (see `launch.local`).
        gpus: their ids; by default all visible ones.
        home: see above.
        storage: see above.
        options: further options of `nbtl-search worker`.
        on_tick: called about once a second.

    Raises:
        StudyNotFoundError: no such study.
        NbtlError: a worker refused to start, or kept dying.
    """
    from nbtl_search.launch import local  # noqa: PLC0415
    from nbtl_search.worker.signals import stop_on_signals  # noqa: PLC0415

    home = home or default_home()
    with _study(name, storage, home) as study, stop_on_signals() as stop:
        found = local.gpus() if gpus is None else list(gpus)
        n_threads = study.spec.train.n_threads or 1
        n_slots = workers or len(found) or local.default_slots(n_threads=n_threads)
        secret = {} if storage is None else {"NBTL_STORAGE": storage}
        environments = [
            secret | ({"CUDA_VISIBLE_DEVICES": found[slot % len(found)]} if found else {})
            for slot in range(n_slots)
        ]
        command = ["worker", name, "--home", str(home), *options]
        logs = home / "logs" / name
        local.LocalLaunch(command, environments=environments, logs=logs).run(
            stopping=lambda: stop.requested,
            tick=lambda: on_tick(study) if on_tick else None,
        )


def work(
    name: str, *, home: Path | None = None, storage: str | None = None, beat_s: float = 10.0
) -> None:
    """Be one worker: train trials of the study until it is over, or until SIGTERM.

    Raises:
        StudyNotFoundError: no such study.
        NbtlError: data or weights of the study cannot be had on this machine.
    """
    from nbtl_search.worker.attempt import Timing  # noqa: PLC0415
    from nbtl_search.worker.signals import stop_on_signals  # noqa: PLC0415
    from nbtl_search.worker.supervisor import Supervisor  # noqa: PLC0415

    home = home or default_home()
    timing = Timing(beat_s=beat_s, lease_s=6 * beat_s, poll_s=min(2.0, beat_s), retry_s=min(2.0, beat_s))
    with stop_on_signals() as stop, _study(name, storage, home) as study:
        Supervisor(study, home=home, stop=stop, timing=timing).run()


def status(
    name: str, *, home: Path | None = None, storage: str | None = None
) -> "tuple[StatusReport, list[TrialRecord]]":
    """Return where the study stands, and its trials.

    Raises:
        StudyNotFoundError: no such study.
    """
    from nbtl_search.report.status import status_of  # noqa: PLC0415
    from nbtl_search.study import records  # noqa: PLC0415

    with _study(name, storage, home or default_home()) as study:
        return status_of(study), records.trials(study.storage.engine, study.id)


def studies(*, home: Path | None = None, storage: str | None = None) -> "list[StudySummary]":
    """Return all studies of the database."""
    from nbtl_search.study import store  # noqa: PLC0415

    with _storage(storage, home or default_home()) as opened:
        return store.names(opened)


def steer(
    name: str, wish: Wish, *, home: Path | None = None, storage: str | None = None
) -> None:
    """Pause, resume or stop a study; its workers hear it with their next heartbeat.

    Raises:
        StudyNotFoundError: no such study.
    """
    from nbtl_search.study.ledger import Ledger  # noqa: PLC0415

    with _study(name, storage, home or default_home()) as study:
        Ledger(study.storage.engine, study.id).want(_DESIRED[wish])


def delete(name: str, *, home: Path | None = None, storage: str | None = None) -> None:
    """Delete a study with all its trials.

    Raises:
        StudyNotFoundError: no such study.
    """
    from nbtl_search.study import store  # noqa: PLC0415

    with _storage(storage, home or default_home()) as opened:
        store.delete(opened, name)


def best(
    name: str,
    *,
    trial: int | None = None,
    home: Path | None = None,
    storage: str | None = None,
) -> "tuple[Recipe, TrialRecord]":
    """Return the recipe of the best trial that ran to its end, or of the trial with this number.

    Raises:
        StudyNotFoundError: no such study, or no such trial, or none has ended yet.
    """
    from nbtl_search.study import records  # noqa: PLC0415

    with _study(name, storage, home or default_home()) as study:
        found = [
            record
            for record in records.trials(study.storage.engine, study.id)
            if (record.state == "complete" if trial is None else record.number == trial)
        ]
        if not found:
            which = "trial that ran to its end" if trial is None else f"trial {trial}"
            message = f"the study {name!r} has no {which} yet; see: nbtl-search status {name}"
            raise StudyNotFoundError(message)
        record = max(found, key=lambda record: (record.value or 0.0, -record.number))
        recipe = records.recipe(study.storage.engine, study.id, record.number)
    assert recipe is not None, "a record has its recipe"  # noqa: S101
    return recipe, record


def train(
    recipe: Recipe,
    *,
    home: Path | None = None,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[Epoch]:
    """Train one recipe without a study, and yield its epochs.

    Args:
        recipe: what to train; `best` returns one.
        home: see above.
        checkpoints: a folder to resume from and to write to after each epoch.
        progress: of the decoding of images, where that is still to be done.

    Raises:
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        DivergedError: the loss is no longer finite.
    """
    from nbtl_search.data.cache import prepare as decode  # noqa: PLC0415
    from nbtl_search.engine import checkpoint  # noqa: PLC0415
    from nbtl_search.engine.train import Run  # noqa: PLC0415
    from nbtl_search.engine.train import train as epochs_of  # noqa: PLC0415

    home = home or default_home()
    prepared = decode(recipe.data, home=home, progress=progress)
    run = Run(recipe, prepared=prepared, home=home)
    if checkpoints is not None and checkpoint.load_latest(checkpoints, run):
        yield from run.history
    for event in epochs_of(run):
        if isinstance(event, Epoch):
            if checkpoints is not None:
                checkpoint.save(checkpoints, run)
            yield event


def dashboard(
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    writable: bool = False,
    home: Path | None = None,
    storage: str | None = None,
    ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve the dashboard until SIGINT or SIGTERM; read-only unless `writable`."""
    from nbtl_search.report.dashboard import serve  # noqa: PLC0415

    with _storage(storage, home or default_home()) as opened:
        serve(opened, host=host, port=port, writable=writable, ready=ready)


# -- inside ---------------------------------------------------------------------------------


@contextmanager
def _storage(url: str | None, home: Path) -> "Iterator[Storage]":
    import optuna  # noqa: PLC0415

    from nbtl_search.study.storage import connect  # noqa: PLC0415

    optuna.logging.disable_default_handler()  # its messages go where ours go
    optuna.logging.enable_propagation()
    with closing(connect(url, home=home)) as opened:
        yield opened


@contextmanager
def _study(name: str, url: str | None, home: Path) -> "Iterator[Study]":
    from nbtl_search.study import store  # noqa: PLC0415

    with _storage(url, home) as opened:
        yield store.open_study(opened, name)


def _of_dataset(dataset: str) -> dict[str, Any]:
    """Return the shipped study of this name, or the one for folders with this folder in it."""
    folder = Path(dataset).expanduser()
    if dataset in shipped_studies() and dataset != "folder":
        return shipped_study(dataset)
    if not folder.is_dir():
        names = ", ".join(known for known in shipped_studies() if known != "folder")
        message = f"--dataset must be one of {names}, or a folder of images; got {dataset!r}"
        raise SpecError(message)
    plain = shipped_study("folder")
    plain["data"]["dataset"] = str(folder)
    plain["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._") or "folder"
    return plain


def _absolute(plain: dict[str, Any]) -> dict[str, Any]:
    """Make the paths of a specification absolute, since workers start in other folders."""
    places = (("data", "dataset"), ("data", "root"), ("model", "weights"))
    for table, key in places:
        value = plain.get(table, {}).get(key)
        if isinstance(value, str) and Path(value).expanduser().exists() and _is_path(table, value):
            plain[table][key] = str(Path(value).expanduser().resolve())
    return plain


def _is_path(table: str, value: str) -> bool:
    """Tell a path from a name that a file of the current folder happens to have."""
    names = {"timm", "shipped", "random"} if table == "model" else set(shipped_studies())
    return value not in names


def _with_threads(spec: StudySpec) -> StudySpec:
    """Fix the threads of a CPU slot: they are part of the result, bit for bit."""
    from nbtl_search.launch import local  # noqa: PLC0415

    if spec.train.n_threads is not None or local.gpus():
        return spec
    return spec.replace(train=spec.train.replace(n_threads=1))


__all__ = [
    "Dials",
    "Recipe",
    "StudySpec",
    "best",
    "create",
    "dashboard",
    "delete",
    "launch",
    "prepare",
    "status",
    "steer",
    "studies",
    "train",
    "work",
]
