"""What has a name: one process at a time makes or deletes it, and what is half made is cleared."""

import contextlib
from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, text

from nbtl_search.errors import StorageError, StudyExistsError
from nbtl_search.ledger.database import Storage
from nbtl_search.spec import StudySpec

SPEC: Final = "nbtl:spec"  # the attribute of an Optuna study that says it is ours
FINAL_MARK: Final = "@"  # in the names of studies of final runs, and in no other
_NAME_LOCK: Final = 6031771  # any number, the same for all who create or delete studies
_DELETIONS: Final = 5


@contextlib.contextmanager
def only_one(storage: Storage, name: str) -> Iterator[Connection]:
    """Let one process at a time create or delete the study of this name."""
    with storage.engine.begin() as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10min'"))
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:name, :salt))"),
            {"name": name, "salt": _NAME_LOCK},
        )
        yield connection


def clear_half_made(storage: Storage, name: str) -> bool:
    """Delete the Optuna study of this name, of which our ledger does not know; tell if any was.

    Raises:
        StudyExistsError: it is not one that we began.
    """
    for deletion in range(_DELETIONS):  # Optuna ignores it when a late writer gets in between
        try:
            study_id = storage.optuna.get_study_id_from_name(name)
        except KeyError:
            return deletion > 0
        began_here = SPEC in storage.optuna.get_study_user_attrs(study_id)
        if not began_here and storage.optuna.get_n_trials(study_id) > 0:
            message = (
                f"the name {name!r} is taken by an Optuna study that nbtl-search did not make; "
                "give another name"
            )
            raise StudyExistsError(message)
        storage.optuna.delete_study(study_id)
    message = f"study {name!r} must be left alone while it is deleted; stop its workers, try again"
    raise StorageError(message)


def make_optuna_study(storage: Storage, name: str, spec: StudySpec) -> int:
    """Make the Optuna study of this name, half made until our ledger knows it; return its id."""
    from optuna.study import StudyDirection  # noqa: PLC0415  (slow, and not always used)

    study_id = storage.optuna.create_new_study([StudyDirection.MAXIMIZE], name)
    storage.optuna.set_study_user_attr(study_id, SPEC, spec.model_dump_json())
    return study_id


def names_of_final_runs(storage: Storage, name: str) -> list[str]:
    """Return the names of all Optuna studies that hold final runs of a study, half-made ones too.

    The name of a study has no '@'.
    """
    every = [found.study_name for found in storage.optuna.get_all_studies()]
    return [found for found in every if found.startswith(f"{name}{FINAL_MARK}")]
