"""Results of a workspace's studies: confirmed, reported, and compared with the paper.

The arguments of the methods are explained at the functions of `nbtl_search.api`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from nbtl_search.errors import NbtlError, SpecError, StorageLostError
from nbtl_search.files.atomic import write_durably
from nbtl_search.ledger import records
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.paper.tables import paper_study
from nbtl_search.reports.reproduction import Reproduction, reproduction_of
from nbtl_search.spec import Progress, StudySpec
from nbtl_search.spec.verdict import Verdict
from nbtl_search.study import finals, store
from nbtl_search.study.store import Study
from nbtl_search.study.verdicts import verdict_of
from nbtl_search.workspace.drafts import drafted
from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from nbtl_search.reports.content import Content

logger = logging.getLogger(__name__)

Tick = Callable[[Study], None]
OnStep = Callable[[str, int, int], None]

Format = Literal["html", "md", "csv", "json"]
_STEPS: Final = 3


@dataclass(frozen=True)
class Results:
    """What the studies of a workspace found."""

    workspace: Workspace

    def finalize(
        self,
        name: str,
        *,
        candidates: int | None = None,
        confirm_seeds: int | None = None,
        test_seeds: int | None = None,
        averages: bool | None = None,
        again: str | None = None,
        workers: int | None = None,
        gpus: Sequence[str] | None = None,
        options: Sequence[str] = (),
        on_tick: Tick | None = None,
    ) -> Verdict:
        """Confirm a study's best recipes over several seeds, then read the test images once."""
        given = {
            "n_candidates": candidates,
            "n_confirm_seeds": confirm_seeds,
            "n_test_seeds": test_seeds,
            "averages": averages,
        }
        changes = {key: n for key, n in given.items() if n is not None}
        with self.workspace.open_study(name) as study:
            finals.begin(study, changes, again=again)
            stage = finals.open_stage(study)
            if stage is not None:
                # Where it was stopped before, to call again is to go on.
                Ledger(study.storage.engine, stage.id).want("run")
        if stage is not None and workers != 0:
            self.workspace.workers.launch(
                name,
                workers=workers,
                gpus=gpus,
                options=options,
                on_tick=None if on_tick is None else lambda study: _tick(study, on_tick),
            )
        found = self.verdict(name)
        assert found is not None, "begin() has planned it"  # noqa: S101
        return found

    def verdict(self, name: str) -> Verdict | None:
        """Return where the latest finalisation of a study stands; None if there is none."""
        with self.workspace.open_study(name) as study:
            return verdict_of(study)

    def report(
        self,
        name: str,
        output: Path | None = None,
        *,
        kind: Format = "html",
        figures: Path | None = None,
        on_step: OnStep = lambda _what, _done, _all: None,
    ) -> str:
        """Make the report of a study: one HTML page, or its tables; return its text."""
        for path in (output, figures):
            _check_folder_of(path)
        on_step("reading the study", 0, _STEPS)
        with self.workspace.open_study(name) as study:
            content = _gathered(study)
        on_step("drawing", 1, _STEPS)
        text = _text(content, kind)
        on_step("writing", 2, _STEPS)
        _write(content, text, output, figures)
        on_step("done", _STEPS, _STEPS)
        logger.info("report made", extra={"action": "report", "study": name})
        return text

    def reproduce(
        self,
        dataset: str,
        *,
        name: str | None = None,
        model: str | None = None,
        weights: str | None = None,
        root: str | None = None,
        image_px: int | None = None,
        epochs: int | None = None,
        settings: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Reproduction:
        """Make the study of the paper's recipes where there is none yet; return its tables."""
        given = {
            ("model", "name"): model,
            ("model", "weights"): weights,
            ("data", "root"): root,
            ("data", "image_px"): image_px,
            ("train", "epochs"): epochs,
        }
        changes = {key: value for key, value in given.items() if value is not None}
        spec = draft_reproduction(dataset, name=name, changes=changes, settings=settings)
        if changes or settings or not self._exists(spec.name):
            spec = self.workspace.studies.store(spec, progress=progress)
        with self.workspace.open_study(spec.name) as study:
            trials = records.trials(study.storage.engine, study.id)
            return reproduction_of(study.spec, trials, verdict_of(study), dataset=dataset)

    def _exists(self, name: str) -> bool:
        with self.workspace.open_database_of_any_version() as database:
            return name in {summary.name for summary in store.names(database)}


def draft_reproduction(
    dataset: str,
    *,
    name: str | None = None,
    changes: Mapping[tuple[str, str], str | int] | None = None,
    settings: Sequence[str] = (),
) -> StudySpec:
    """Return the specification that `reproduce` would store, without looking at data or weights.

    Args:
        dataset: `aircraft`, `caltech256`, `cars` or `dtd`.
        name: of the study; by default `paper-` and the dataset.
        changes: values by table and key.
        settings: `dotted.key=value`, applied last.

    Raises:
        SpecError: the paper has no such dataset, or a setting is not valid.
    """
    plain = paper_study(dataset)
    for (table, key), value in (changes or {}).items():
        plain[table][key] = value
    return drafted(plain, name=name, settings=settings)


def _tick(study: Study, on_tick: Tick) -> None:
    with suppress(StorageLostError):  # workers wait for it, and so do we
        stage = finals.open_stage(study)
        if stage is not None:
            on_tick(stage)


def _gathered(study: Study) -> "Content":
    from nbtl_search.reports.content import gather

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
            f"the report must go to a file that can be written, got {error}; name another file"
        )
        raise NbtlError(message) from error


def _check_folder_of(path: Path | None) -> None:
    """Refuse a path that cannot be right before any work is done."""
    if path is not None and not path.absolute().parent.is_dir():
        message = f"the folder of {str(path)!r} must exist; make it, or name another folder"
        raise NbtlError(message)
