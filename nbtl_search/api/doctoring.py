"""Look whether this machine and the database are fit for a search."""

from pathlib import Path

from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened_study
from nbtl_search.spec import TrainSettings
from nbtl_search.spec.check import Check
from nbtl_search.study import checks as database_checks


def doctor(
    name: str | None = None,
    *,
    workers: int = 8,
    home: Path | None = None,
    storage: str | None = None,
) -> list[Check]:
    """Return what was looked at: interpreter, devices, disk, database. Nothing is changed.

    Args:
        name: a study whose device, precision and weights are looked at as well.
        workers: how many are planned, against the server's limit of connections.
        home: see above.
        storage: see above.

    Raises:
        StudyNotFoundError: no such study.
    """
    from nbtl_search.engine import checks as machine_checks

    home = home or default_home()
    train, model = TrainSettings(), None
    if name is not None:
        with opened_study(name, storage, home) as study:
            train, model = study.spec.train, study.spec.model
    found = [*machine_checks.machine(home, train=train)]
    if model is not None:
        found.append(machine_checks.weights(model, home=home))
    return [*found, *database_checks.database(storage, home=home, n_workers=workers)]
