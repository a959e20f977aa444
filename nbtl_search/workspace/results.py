"""Results of a workspace's studies: confirmed, reported, and compared with the paper.

The arguments of the methods are explained at the functions of `nbtl_search.api`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
from nbtl_search.spec.ablation import Ablation
from nbtl_search.spec.verdict import Verdict
from nbtl_search.study import ablations, finals, store, work
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
_PICTURES: Final = (".svg", ".png", ".csv")


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
            work.check_alone(study, "finalize")
            finals.begin(study, changes, again=again)
            is_open = _go_on(study, finals.open_stage(study))
        if is_open:
            self._launch(name, workers=workers, gpus=gpus, options=options, on_tick=on_tick)
        found = self.verdict(name)
        assert found is not None, "begin() has planned it"  # noqa: S101
        return found

    def verdict(self, name: str) -> Verdict | None:
        """Return where the latest finalisation of a study stands; None if there is none."""
        with self.workspace.open_study(name) as study:
            return verdict_of(study)

    def ablate(
        self,
        name: str,
        *,
        trial: int | None = None,
        seeds: int | None = None,
        output: Path | None = None,
        workers: int | None = None,
        gpus: Sequence[str] | None = None,
        options: Sequence[str] = (),
        on_tick: Tick | None = None,
    ) -> Ablation:
        """Find out what each group of a recipe's hyperparameters is worth, over new seeds."""
        _check_folder_of(output)
        _check_picture(output)
        with self.workspace.open_study(name) as study:
            work.check_alone(study, "ablate")
            ablations.begin(study, trial=trial, n_seeds=seeds)
            is_open = _go_on(study, ablations.open_stage(study))
        if is_open:
            self._launch(name, workers=workers, gpus=gpus, options=options, on_tick=on_tick)
        found = self.ablation(name)
        assert found is not None, "begin() has planned it"  # noqa: S101
        if output is not None:
            _draw(found, output)
        return found

    def ablation(self, name: str) -> Ablation | None:
        """Return where the latest ablation of a study stands; None if there is none."""
        with self.workspace.open_study(name) as study:
            return ablations.ablation_of(study)

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

    def _launch(
        self,
        name: str,
        *,
        workers: int | None,
        gpus: Sequence[str] | None,
        options: Sequence[str],
        on_tick: Tick | None,
    ) -> None:
        """Run workers here until what is open has ended; none where other machines have them."""
        if workers != 0:
            self.workspace.workers.launch(
                name,
                workers=workers,
                gpus=gpus,
                options=options,
                on_tick=None if on_tick is None else lambda study: _tick(study, on_tick),
            )

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
        stage = work.open_stage(study)
        if stage is not None:
            on_tick(stage)


def _go_on(study: Study, stage: Study | None) -> bool:
    """Let a stage run that is open, and tell whether one is."""
    if stage is not None:
        # Where it was stopped before, to call again is to go on.
        Ledger(study.storage.engine, stage.id).want("run")
    return stage is not None


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

    with _writing("the report"):
        if figures is not None:
            figures.mkdir(exist_ok=True)
            for name, data in files_of(figures_of(content)):
                write_durably(figures / name, data)
        if output is not None:
            write_durably(output, text.encode())


@contextmanager
def _writing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{what} must go to a file that can be written, got {error}; name another file"
        raise NbtlError(message) from error


def _draw(found: Ablation, output: Path) -> None:
    from nbtl_search.reports.figures import of_ablation
    from nbtl_search.reports.static_figures import files_of

    contents = {Path(name).suffix: data for name, data in files_of([of_ablation(found)])}
    with _writing("the picture"):
        write_durably(output, contents[output.suffix.lower()])


def _check_picture(path: Path | None) -> None:
    if path is not None and path.suffix.lower() not in _PICTURES:
        message = (
            f"a picture is a file that ends in {', '.join(_PICTURES)} (its numbers), got "
            f"{str(path)!r}; name another file"
        )
        raise NbtlError(message)


def _check_folder_of(path: Path | None) -> None:
    """Refuse a path that cannot be right before any work is done."""
    if path is not None and not path.absolute().parent.is_dir():
        message = f"the folder of {str(path)!r} must exist; make it, or name another folder"
        raise NbtlError(message)
