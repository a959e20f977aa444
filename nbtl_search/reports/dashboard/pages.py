"""Pages of the dashboard: what we add to them, our figures and a note with each trial's curve.

The additions are kept in this process and laid over what the database holds whenever a page asks,
so that a dashboard writes nothing: several may run at once, with the rights of a reader. Optuna's
own way (`save_plotly_graph_object`) cuts each figure into attributes of 2,045 characters, written
one after the other and read with every poll: a poll in between gets half of the old and half of the
new.
"""

import copy
import logging
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, final

import plotly.graph_objects as go
from optuna.storages import _CachedStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import distinct, func, or_, select

from nbtl_search import escaping
from nbtl_search.errors import NbtlError, StudyNotFoundError
from nbtl_search.ledger import records, schema
from nbtl_search.ledger.database import Storage
from nbtl_search.ledger.recommendation import Recommendation, recommend
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.reports import figures, paper_figures
from nbtl_search.reports.dashboard import curve
from nbtl_search.reports.traces import TOP1
from nbtl_search.spec import Epoch
from nbtl_search.study import store
from nbtl_search.study.store import Study
from nbtl_search.study.verdicts import verdict_of

logger = logging.getLogger(__name__)

REFRESH_S: Final = 10.0
_GIVE_WAY_S: Final = 5.0  # of a study's figures together: they must come even if polls never end


def trial_note(trial: TrialRecord, *, n_epochs: int) -> str:
    """Return the note of a trial, which is where its page has room for its curve, in Markdown."""
    image = f"![learning curve](/learning-curve/{trial.trial_id}.svg?epochs={trial.n_epochs})"
    lines = [image, "", f"{trial.n_epochs} of {n_epochs} epochs, {trial.state}"]
    if trial.value is not None and trial.best_epoch is not None:
        lines[-1] += f"; best {trial.value:.2f} % at epoch {trial.best_epoch}"
    if trial.state == "paused":
        lines[-1] += ": it goes on if it is among the best"
    if trial.repeat_of is not None:
        lines[-1] += f"; the recipe of trial {trial.repeat_of} with another seed"
    if trial.audited:
        lines[-1] += "; drawn by lot to run to its end, whatever early stopping says"
    if trial.n_attempts > 1:
        lines[-1] += f"; {trial.n_attempts} attempts"
    if trial.cause or trial.message:
        why = ": ".join(filter(None, [trial.cause, trial.message]))
        lines += ["", escaping.markdown(why[:500])]
    return "\n".join(lines)


def curve_title(trial: TrialRecord) -> str:
    """Return what stands above the curve of a trial."""
    return f"Trial {trial.number}{f' ({trial.name})' if trial.name else ''}"


GiveWay = Callable[[], None]
"""Called between two figures; it returns once nobody waits for an answer."""


@final
class Priority:
    """Counts the answers that are being made, and lets drawing wait for them.

    Both share one interpreter, and nobody waits for figures: who asks for a page goes first.
    """

    def __init__(self) -> None:
        self._n_answers = 0
        self._changed = threading.Condition()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Go first while the block runs."""
        with self._changed:
            self._n_answers += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_answers -= 1
                self._changed.notify_all()

    def way(self, *, longest_s: float) -> GiveWay:
        """Return what waits until nobody is answered; all its waits together are limited."""
        left_s = longest_s

        def give_way() -> None:
            nonlocal left_s
            started = time.monotonic()
            with self._changed:
                self._changed.wait_for(lambda: self._n_answers == 0, timeout=max(0.0, left_s))
            left_s -= time.monotonic() - started

        return give_way


@dataclass(frozen=True, kw_only=True)
class _Page:
    """What one study gets: attributes as Optuna's dashboard reads them, and two things per trial.

    The notes are no attributes: Optuna's dashboard looks through all of them once per trial.
    """

    stamp: tuple[Any, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[int, str] = field(default_factory=dict)
    verdict: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[int, "_Curve"] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Curve:
    title: str
    epochs: Sequence[Epoch]
    reference: Sequence[Epoch]
    n_epochs: int


@final
class Pages:
    """The additions of all studies, as old as the last `refresh`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._pages: dict[int, _Page] = {}
        self.priority = Priority()

    def refresh(self, stopped: threading.Event | None = None) -> list[str]:
        """Make the additions of those studies anew that have changed; return their names.

        Args:
            stopped: set by whoever wants no more of it.

        Raises:
            StorageError: the database refuses or does not answer.
        """
        # Before any trial is read: what changes meanwhile makes the next stamp another one.
        stamps = self._stamps()
        fresh = {key: page for key, page in self._pages.items() if key in stamps}
        changed = [key for key, (_, *stamp) in stamps.items() if _is_old(fresh.get(key), stamp)]
        drawn = []
        for key in changed:
            if stopped is not None and stopped.is_set():
                break
            name, *stamp = stamps[key]
            try:
                study = store.open_study(self._storage, name)
            except StudyNotFoundError:
                continue
            fresh[key] = _page(study, tuple(stamp), self.priority.way(longest_s=_GIVE_WAY_S))
            self._pages = dict(fresh)  # one after the other: the first need not wait for the last
            drawn.append(name)
        self._pages = fresh
        return drawn

    def run(self, stopped: threading.Event) -> None:
        """Refresh every `REFRESH_S` seconds; a failure is logged and tried again."""
        while not stopped.is_set():
            try:
                self.refresh(stopped)
            # Whatever it was, the thread goes on: the dashboard answers with the figures it has.
            except NbtlError as error:
                logger.warning("no fresh figures: %s", error, extra={"action": "refresh"})
            except Exception:
                logger.exception("no fresh figures", extra={"action": "refresh"})
            stopped.wait(REFRESH_S)

    def lay_over(self, study: FrozenStudy) -> None:
        """Add our additions to what Optuna read of a study.

        The specification is left out, and what a fork took over: such a long line pushes half of
        the page out of the window, and the study's note says the same.
        """
        page = self._pages.get(study._study_id, _Page())  # noqa: SLF001
        # What the database holds wins: a note or a figure that a person saved there is theirs.
        study.system_attrs = {**page.attributes, **study.system_attrs}
        study.user_attrs = {**study.user_attrs, **page.verdict}
        for key in (store.SPEC, store.FORK):
            study.user_attrs.pop(key, None)

    def with_notes(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """Be a plugin of the dashboard's framework: add our notes to what a view says of trials.

        What a person wrote has a version, and stays.
        """

        def answer(*args: Any, **options: Any) -> Any:
            said = view(*args, **options)
            if isinstance(said, dict) and "trials" in said:
                for trial in (*said["trials"], *said["best_trials"]):
                    ours = self._pages.get(trial["study_id"], _Page()).notes
                    if trial["note"]["version"] == 0 and trial["trial_id"] in ours:
                        trial["note"]["body"] = ours[trial["trial_id"]]
            return said

        return answer

    def attributes(self, study_id: int) -> Mapping[str, Any]:
        """Return what is laid over a study's attributes."""
        return self._pages.get(study_id, _Page()).attributes

    def curve(self, trial_id: int) -> str | None:
        """Return the SVG of a trial's learning curve, or None for a trial not known."""
        for page in list(self._pages.values()):
            found = page.curves.get(trial_id)
            if found is not None:
                return curve.draw(
                    found.epochs,
                    title=found.title,
                    n_epochs=found.n_epochs,
                    reference=found.reference,
                )
        return None

    def _stamps(self) -> dict[int, tuple[Any, ...]]:
        """Return each study's name and some counts that differ when its trials do."""
        study, trial, epoch = schema.study, schema.trial, schema.epoch
        final, run = schema.final, schema.trial.alias()
        is_final = or_(run.c.study_id == final.c.confirm_id, run.c.study_id == final.c.test_id)
        finals = (
            select(func.count(run.c.finished_at))
            .select_from(final.join(run, is_final))
            .where(final.c.parent_id == study.c.study_id)
            .correlate(study)
            .scalar_subquery()
        )
        query = (
            select(
                study.c.study_id,
                study.c.name,
                study.c.uid,
                func.count(epoch.c.epoch),
                func.count(distinct(trial.c.trial_id)),
                func.count(distinct(trial.c.finished_at)),
                func.count(distinct(trial.c.worker)),
                func.max(trial.c.token),
                finals,
            )
            .select_from(study.outerjoin(trial).outerjoin(epoch))
            .group_by(study.c.study_id)
            .order_by(study.c.study_id.desc())
        )
        with storage_errors(), self._storage.engine.connect() as connection:
            return {row[0]: tuple(row[1:]) for row in connection.execute(query)}


@final
class AnnotatedStorage(_CachedStorage):
    """Optuna's cached storage, with our additions laid over what it reads of studies."""

    def __init__(self, storage: Storage, pages: Pages) -> None:
        super().__init__(storage.optuna._backend)  # noqa: SLF001
        self._pages = pages

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all studies with our additions."""
        studies = super().get_all_studies()
        for study in studies:
            self._pages.lay_over(study)
        return studies

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: FBT001, FBT002  (Optuna's signature)
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return all trials, the known ones without the long line that the sampler reads."""
        trials = super().get_all_trials(study_id, deepcopy, states)
        return [
            _without_dials(trial) if store.DIALS in trial.user_attrs else trial for trial in trials
        ]


def _without_dials(trial: FrozenTrial) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.user_attrs = {key: value for key, value in trial.user_attrs.items() if key != store.DIALS}
    return shown


def _is_old(page: _Page | None, stamp: Sequence[Any]) -> bool:
    return page is None or page.stamp != tuple(stamp)


def _page(study: Study, stamp: tuple[Any, ...], give_way: GiveWay) -> _Page:
    give_way()
    trials = records.trials(study.storage.engine, study.id)
    curves = records.curves(study.storage.engine, study.id)
    found = recommend(trials if study.stage is None else (), n_images=study.facts.n_val)
    default = found.default
    n_epochs = study.spec.train.epochs
    attributes = {"dashboard:objective_names": [TOP1]} | _figures(
        study, trials, curves, found, give_way
    )
    shown = {}
    for trial in trials:
        is_default = default is None or trial == default
        shown[trial.trial_id] = _Curve(
            title=curve_title(trial),
            epochs=curves.get(trial.number, ()),
            reference=() if default is None or is_default else curves.get(default.number, ()),
            n_epochs=n_epochs,
        )
    return _Page(
        stamp=stamp,
        attributes=attributes,
        notes={trial.trial_id: trial_note(trial, n_epochs=n_epochs) for trial in trials},
        verdict=_verdict(found),
        curves=shown,
    )


def _figures(
    study: Study,
    trials: Sequence[TrialRecord],
    curves: Mapping[int, Sequence[Epoch]],
    found: Recommendation,
    give_way: GiveWay,
) -> dict[str, str]:
    if not trials:
        return {}
    best = found.best
    drawings: dict[str, Callable[[], go.Figure]] = {
        "nbtl-history": lambda: figures.history(trials),
        "nbtl-learning-curves": lambda: figures.learning_curves(trials, curves, best=best),
        "nbtl-non-binary": lambda: figures.non_binary(
            trials, n_blocks=study.facts.n_blocks, best=best
        ),
        "nbtl-dials": lambda: figures.dials(trials),
        "nbtl-rate": lambda: paper_figures.rate_by_new_layers(trials),
        "nbtl-low-layers": lambda: paper_figures.low_layers(trials, best=best),
        "nbtl-l2sp": lambda: paper_figures.l2sp_blocks(trials, best=best),
    }
    if study.stage is None:  # else its trials are final runs, which the search's page compares
        drawings["nbtl-optimal"] = lambda: paper_figures.optimal_against_default(
            found, verdict_of(study)
        )
    drawn = {}
    for key, draw in drawings.items():
        give_way()
        drawn[f"dashboard:plot_data:{key}:0"] = draw().to_json()
    return drawn


def _verdict(found: Recommendation) -> dict[str, str]:
    """Return the comparison that the study is for, as rows of its page's table."""
    rows = {
        title: f"{value.describe()} (trial {trial.number})"
        for title, trial in (("best", found.best), ("default", found.default))
        if trial is not None and (value := found.value_of(trial)) is not None
    }
    if found.gain is not None:
        rows["difference"] = found.gain.describe()
    return rows
