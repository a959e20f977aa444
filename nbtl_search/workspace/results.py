"""Finalise a study: from the best trial to a figure that can be published.

Make the report of a study.

Repeat the paper's tables 2-6 for one of its datasets.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from nbtl_search.errors import NbtlError, SpecError, StorageLostError
from nbtl_search.files.atomic import write_durably
from nbtl_search.ledger import records
from nbtl_search.ledger.database import create_or_upgrade
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.paper.study import paper_study
from nbtl_search.reports.reproduction import Reproduction, reproduction_of
from nbtl_search.spec import StudySpec
from nbtl_search.spec.verdict import Verdict
from nbtl_search.study import finals, store
from nbtl_search.study.store import Study
from nbtl_search.study.verdicts import verdict_of
from nbtl_search.workspace.studies import Progress, drafted, store_draft
from nbtl_search.workspace.workers import launch
from nbtl_search.workspace.workspace import default_home, opened, opened_study

if TYPE_CHECKING:
    from nbtl_search.reports.content import Content

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
        stage = finals.open_stage(study)
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
        stage = finals.open_stage(study)
        if stage is not None:
            on_tick(stage)


logger = logging.getLogger(__name__)

Format = Literal["html", "md", "csv", "json"]
FORMATS: Final[tuple[Format, ...]] = ("html", "md", "csv", "json")
_STEPS: Final = 3


def report(
    name: str,
    output: Path | None = None,
    *,
    kind: Format = "html",
    figures: Path | None = None,
    home: Path | None = None,
    storage: str | None = None,
    on_step: Callable[[str, int, int], None] = lambda _what, _done, _all: None,
) -> str:
    """Make the report of a study: one HTML page, or its tables; return its text.

    Args:
        name: of the study, at any time: what is not known yet is not said.
        output: file to write it to, whole or not at all; None to write none.
        kind: 'html' for the page; 'md', 'csv' or 'json' for its tables.
        figures: folder for each figure as SVG, PNG and CSV; it is made where it is missing.
        home: see above.
        storage: see above.
        on_step: called with what is done now, and how many steps of how many are done.

    Raises:
        NbtlError: the file or folder cannot be written.
        SpecError: the name is that of final runs.
        StudyNotFoundError: no such study.
    """
    for path in (output, figures):
        _check_place(path)
    on_step("reading the study", 0, _STEPS)
    with opened_study(name, storage, home or default_home()) as study:
        content = _gathered(study)
    on_step("drawing", 1, _STEPS)
    text = _text(content, kind)
    on_step("writing", 2, _STEPS)
    _write(content, text, output, figures)
    on_step("done", _STEPS, _STEPS)
    logger.info("report made", extra={"action": "report", "study": name})
    return text


def _gathered(study: Study) -> "Content":
    from nbtl_search.reports.content import gather
    from nbtl_search.study.verdicts import verdict_of

    if study.stage is not None:
        message = f"a report is of a search, got the final runs {study.name!r}; name its study"
        raise SpecError(message)
    return gather(study, verdict_of(study))


def _text(content: "Content", kind: Format) -> str:
    from nbtl_search.reports import formats
    from nbtl_search.reports.page import page

    makers: dict[Format, Callable[[Content], str]] = {
        "html": page,
        "md": formats.markdown,
        "csv": formats.comma_separated,
        "json": formats.as_json,
    }
    return makers[kind](content)


def _write(content: "Content", text: str, output: Path | None, figures: Path | None) -> None:
    from nbtl_search.reports.figures import figures_of
    from nbtl_search.reports.static_figures import files_of

    try:
        if figures is not None:
            figures.mkdir(exist_ok=True)
            for name, data in files_of(figures_of(content)):
                write_durably(figures / name, data)
        if output is not None:
            write_durably(output, text.encode())
    except OSError as error:
        message = (
            f"the report must have a place that can be written, got {error}; name another place"
        )
        raise NbtlError(message) from error


def _check_place(path: Path | None) -> None:
    """Refuse a place that cannot be right before any work is done."""
    if path is not None and not path.absolute().parent.is_dir():
        message = f"the folder of {str(path)!r} must exist; make it, or name another place"
        raise NbtlError(message)


def reproduce(
    dataset: str,
    *,
    name: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    root: str | None = None,
    image_px: int | None = None,
    epochs: int | None = None,
    settings: Sequence[str] = (),
    home: Path | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Make the study of the paper's recipes where there is none yet, and return its tables.

    Where the study exists and nothing about it is given, it is only looked at.

    Args:
        dataset: `aircraft`, `caltech256`, `cars` or `dtd`.
        name: of the study; by default `paper-` and the dataset.
        model: a timm model, instead of the paper's Inception-v4.
        weights: as `model.weights`.
        root: where the images lie already.
        image_px: side of the network's input.
        epochs: of one run.
        settings: `dotted.key=value`, applied last.
        home: see above.
        storage: see above.
        progress: of decoding the images.

    Raises:
        SpecError: the paper has no such dataset, or a setting is not valid.
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        StudyExistsError: a study of this name has other settings.
        StorageError: the database refuses.
    """
    home = home or default_home()
    given = {
        ("model", "name"): model,
        ("model", "weights"): weights,
        ("data", "root"): root,
        ("data", "image_px"): image_px,
        ("train", "epochs"): epochs,
    }
    changes = {place: value for place, value in given.items() if value is not None}
    spec = draft_reproduction(dataset, name=name, changes=changes, settings=settings)
    if changes or settings or not _exists(spec.name, home=home, storage=storage):
        spec = store_draft(spec, home=home, storage=storage, progress=progress)
    with opened_study(spec.name, storage, home) as study:
        trials = records.trials(study.storage.engine, study.id)
        return reproduction_of(study.spec, trials, verdict_of(study), dataset=dataset)


def draft_reproduction(
    dataset: str,
    *,
    name: str | None = None,
    changes: dict[tuple[str, str], str | int] | None = None,
    settings: Sequence[str] = (),
) -> StudySpec:
    """Return the specification that `reproduce` would store, without looking at data or weights.

    Args:
        dataset: see above.
        name: see above.
        changes: values by table and key.
        settings: see above.

    Raises:
        SpecError: the paper has no such dataset, or a setting is not valid.
    """
    plain = paper_study(dataset)
    for (table, key), value in (changes or {}).items():
        plain[table][key] = value
    return drafted(plain, name=name, settings=settings)


def _exists(name: str, *, home: Path, storage: str | None) -> bool:
    with opened(storage, home, checked=False) as database:
        create_or_upgrade(database)
        return name in {summary.name for summary in store.names(database)}
