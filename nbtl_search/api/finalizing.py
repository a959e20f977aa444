"""Finalise a study: from the best trial to a figure that can be published."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened_study
from nbtl_search.api.running import launch
from nbtl_search.errors import StorageLostError
from nbtl_search.study import finals, rounds
from nbtl_search.study.ledger import Ledger
from nbtl_search.study.store import Study
from nbtl_search.study.verdict import Verdict
from nbtl_search.study.verdicts import verdict_of

Tick = Callable[[Study], None]

_KEYS: Final = ("n_candidates", "n_confirm_seeds", "n_test_seeds")


def finalize(
    name: str,
    *,
    candidates: int | None = None,
    confirm_seeds: int | None = None,
    test_seeds: int | None = None,
    again: str | None = None,
    workers: int | None = None,
    gpus: Sequence[str] | None = None,
    home: Path | None = None,
    storage: str | None = None,
    options: Sequence[str] = (),
    on_tick: Tick | None = None,
) -> Verdict:
    """Confirm a study's best recipes over several seeds, then read the test images once.

    One that was interrupted goes on; one that has ended is only looked at, unless `again`.

    Args:
        name: of the study, whose search is over or stopped.
        candidates: best trials of the search that are tried again; 3.
        confirm_seeds: runs of each candidate and of the default, judged on validation; 4.
        test_seeds: runs of the winner and of the default, judged on test; 4.
        again: why the test images may be read once more; stored with the study.
        workers: on this machine, as in `launch`; 0 for none: other machines' workers do it.
        gpus: as in `launch`.
        home: see above.
        storage: see above.
        options: further options of `nbtl-search worker`.
        on_tick: called about once a second with the stage that is being trained.

    Raises:
        SpecError: the search is not over, or was finalised otherwise.
        DataError: there are no test images.
        StudyNotFoundError: no such study, or no trial of it ran to its end.
    """
    home = home or default_home()
    given = (candidates, confirm_seeds, test_seeds)
    changes = {key: n for key, n in zip(_KEYS, given, strict=True) if n is not None}
    with opened_study(name, storage, home) as study:
        finals.begin(study, changes, again=again)
        stage = rounds.open_stage(study)
        if stage is not None:
            Ledger(study.storage.engine, stage.id).want("run")
    if stage is not None and workers != 0:
        launch(
            name,
            workers=workers,
            gpus=gpus,
            home=home,
            storage=storage,
            options=options,
            on_tick=None if on_tick is None else lambda study: _tick(study, on_tick),
        )
    with opened_study(name, storage, home) as study:
        found = verdict_of(study)
    assert found is not None, "begin() has planned it"  # noqa: S101
    return found


def verdict(name: str, *, home: Path | None = None, storage: str | None = None) -> Verdict | None:
    """Return where the latest finalisation of a study stands; None if there is none.

    Raises:
        StudyNotFoundError: no such study.
    """
    with opened_study(name, storage, home or default_home()) as study:
        return verdict_of(study)


def _tick(study: Study, on_tick: Tick) -> None:
    with suppress(StorageLostError):  # workers wait for it, and so do we
        stage = rounds.open_stage(study)
        if stage is not None:
            on_tick(stage)
