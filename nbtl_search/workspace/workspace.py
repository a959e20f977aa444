"""The workspace: a home folder and a database, and what can be done with them.

`Workspace` owns both, so that nothing else takes a folder and a URL as arguments. Behind it stand
nouns (`workspace.studies`, `workspace.workers`, ...). Each is imported when it is first used:
`status` must not wait for torch.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import platformdirs

if TYPE_CHECKING:
    from nbtl_search.ledger.database import Storage
    from nbtl_search.study.store import Study
    from nbtl_search.workspace.diagnoses import Diagnoses
    from nbtl_search.workspace.machine import Machine
    from nbtl_search.workspace.maintenance import Backups, Leftovers, Logs
    from nbtl_search.workspace.models import Models
    from nbtl_search.workspace.notifications import Notifications
    from nbtl_search.workspace.results import Results
    from nbtl_search.workspace.studies import Studies
    from nbtl_search.workspace.workers import Workers


def default_home() -> Path:
    """Return the user's data folder of this program."""
    return platformdirs.user_data_path("nbtl-search")


@final
@dataclass(frozen=True, init=False, repr=False)
class Workspace:
    """A home folder and a database.

    Below home are: `postgres` (the embedded database), `storage` (its address, or another one's,
    for workers on other nodes), `datasets` and `weights` (downloads), `data` (decoded images),
    `features` and `attention` (what the source network says of them), `diagnoses`, `checkpoints`
    and `finals` (the weights of final runs) by study and trial, and `logs` by study.
    """

    home: Path
    """For data, weights, checkpoints, logs and the embedded database."""
    storage: str | None
    """The URL of a PostgreSQL database; None for the embedded one of this home."""

    def __init__(self, home: Path | str | None = None, storage: str | None = None) -> None:
        object.__setattr__(self, "home", default_home() if home is None else Path(home))
        object.__setattr__(self, "storage", storage)

    def __repr__(self) -> str:
        # It ends up in tracebacks and logs. A URL may hold a password in several places, and in one
        # that is mistyped no parser finds it: so nothing of it is shown.
        storage = None if self.storage is None else "..."
        return f"Workspace(home={str(self.home)!r}, storage={storage!r})"

    # -- the database ---------------------------------------------------------------------------

    @contextmanager
    def open_database(
        self,
        *,
        checked: bool = True,
        answer_s: float | None = None,
        application: str | None = None,
    ) -> Iterator["Storage"]:
        """Open the database; it is closed with the block.

        Args:
            checked: whether its tables must already be of this program's version.
            answer_s: how long the database may say nothing before it counts as lost.
            application: the name of our connections in `pg_stat_activity`.

        Raises:
            SchemaError: they are not; the message has the command to run.
            StorageError: the database refuses, or does not answer.
        """
        from nbtl_search.ledger.database import ANSWER_S, PROGRAM, check, connect

        with closing(
            connect(
                self.storage,
                home=self.home,
                answer_s=ANSWER_S if answer_s is None else answer_s,
                application=application or PROGRAM,
            )
        ) as database:
            if checked:
                check(database)
            yield database

    @contextmanager
    def open_database_of_any_version(self) -> Iterator["Storage"]:
        """Open the database, and make or upgrade its tables where that is needed.

        Raises:
            StorageError: the database refuses, or does not answer.
        """
        from nbtl_search.ledger.database import create_or_upgrade

        with self.open_database(checked=False) as database:
            create_or_upgrade(database)
            yield database

    @contextmanager
    def open_study(
        self, name: str, *, answer_s: float | None = None, application: str | None = None
    ) -> Iterator["Study"]:
        """Open a study; the other arguments are those of `open_database`.

        Raises:
            StudyNotFoundError: no such study.
            StorageError: the database refuses, or does not answer.
        """
        from nbtl_search.study import store

        with self.open_database(answer_s=answer_s, application=application) as database:
            yield store.open_study(database, name)

    # -- paths below home -----------------------------------------------------------------------

    def logs_folder(self, study: str) -> Path:
        """Return the folder of the logs of a study's workers."""
        return self.home / "logs" / study

    def storage_file(self, study_uid: str) -> Path:
        """Return the file by which a study's workers on other nodes find the database."""
        return self.home / "storage" / study_uid[:8]

    # -- nouns ----------------------------------------------------------------------------------

    @property
    def studies(self) -> "Studies":
        """Return the studies of the database: make, list, steer and delete them."""
        from nbtl_search.workspace.studies import Studies

        return Studies(self)

    @property
    def diagnoses(self) -> "Diagnoses":
        """Return the measures of how well weights fit a dataset."""
        from nbtl_search.workspace.diagnoses import Diagnoses

        return Diagnoses(self)

    @property
    def workers(self) -> "Workers":
        """Return the workers: run them on this machine or on a cluster, or be one."""
        from nbtl_search.workspace.workers import Workers

        return Workers(self)

    @property
    def results(self) -> "Results":
        """Return what studies found: confirm it, report it, compare it with the paper."""
        from nbtl_search.workspace.results import Results

        return Results(self)

    @property
    def models(self) -> "Models":
        """Return the trained models: export one, or train a single recipe."""
        from nbtl_search.workspace.models import Models

        return Models(self)

    @property
    def machine(self) -> "Machine":
        """Return this machine: is it fit for a search, and what will a study cost on it."""
        from nbtl_search.workspace.machine import Machine

        return Machine(self)

    @property
    def logs(self) -> "Logs":
        """Return the logs of workers."""
        from nbtl_search.workspace.maintenance import Logs

        return Logs(self)

    @property
    def leftovers(self) -> "Leftovers":
        """Return the checkpoints and logs that nobody needs any more."""
        from nbtl_search.workspace.maintenance import Leftovers

        return Leftovers(self)

    @property
    def backups(self) -> "Backups":
        """Return the backups of the database: write one, or bring one back."""
        from nbtl_search.workspace.maintenance import Backups

        return Backups(self)

    @property
    def notifications(self) -> "Notifications":
        """Return the messages that say what became of a study."""
        from nbtl_search.workspace.notifications import Notifications

        return Notifications(self)
