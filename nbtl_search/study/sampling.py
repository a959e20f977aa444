"""Ask Optuna for the next trial of a study, and tell it how one ended."""

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import optuna
from optuna.trial import TrialState
from sqlalchemy import select

from nbtl_search import space
from nbtl_search.ledger import records, schema
from nbtl_search.ledger.leases import Ask, Asked
from nbtl_search.ledger.ledger import INFEASIBLE, FinishedTrial, Ledger
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import Dials, Epoch, StudySpec
from nbtl_search.study.store import (
    DIALS,
    NAME,
    PROTECTED,
    Study,
)

logger = logging.getLogger(__name__)

CAUSE: Final = "nbtl:cause"
MAX_REPORTS: Final = 10
REPEAT_OF: Final = "nbtl:repeat-of"
RUN: Final = "nbtl:run"
_SEEDS_OF_REPEATS: Final = 1_000_000
"""Added to a search's seed: no round of final runs comes so far."""
CONSTRAINT: Final = "trainable"
"""The constraint that a trial of these causes violates, with the value 1."""


def sampler(spec: StudySpec, *, slot: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one ask, seeded from the study's seed and the slot of its budget."""
    digest = hashlib.sha256(f"{spec.search.seed}/{slot}".encode()).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=max(1, spec.search.n_startup),
            multivariate=True,
            group=True,
            # Others' running trials count as bad until they end: workers that ask at once would
            # otherwise all get the same point.
            constant_liar=True,
            # By the slot and not by the worker: workers that shared a seed proposed 8 different
            # points among 16. And the same slot asked again, after a kill, gives the same point.
            seed=int.from_bytes(digest[:4], "big"),
        )


def asking(study: Study) -> Ask:
    """Return `ask` for this study, as `Leases.grant` wants it."""
    return lambda slot, repeat_of: ask(study, slot=slot, repeat_of=repeat_of)


def ask(study: Study, *, slot: int, repeat_of: int | None = None) -> Asked:
    """Propose a trial: one whose asker died before it was entered in the ledger, else another.

    Call it inside `Leases.grant`, which lets only one at a time in.

    Args:
        study: that it is for.
        slot: of the budget.
        repeat_of: the number of the trial whose recipe is to run with another seed; None for a new
            recipe.
    """
    with study.storage.optuna.one_reading():
        return _ask(study, slot, repeat_of)


def _ask(study: Study, slot: int, repeat_of: int | None) -> Asked:
    study.optuna.sampler = sampler(study.spec, slot=slot)
    # The orphan first. Nobody will ever ask for it again, and it would run for ever in Optuna.
    trial = _orphan(study)
    if trial is None:
        trial = study.optuna.ask() if repeat_of is None else _repeat(study, repeat_of)
    if study.stage is not None:
        return _planned(study, trial, slot)
    if REPEAT_OF in trial.user_attrs:
        return _repeated(study, trial)
    searched = space.build_for(study.spec.search, study.facts)
    known = trial.user_attrs.get(DIALS)
    if known is None:
        dials = space.suggest(searched, trial)
    else:
        # A known recipe runs as it is written, also outside the space. The sampler learns of it
        # what lies inside: asking for those rows gives the values that wait with the trial.
        dials = Dials.parse_json(known)
        for name in space.params_of(searched, dials):
            space.suggest_row(searched, name, trial)
    return Asked(
        trial_id=trial._trial_id,  # noqa: SLF001
        number=trial.number,
        name=trial.user_attrs.get(NAME, ""),
        protected=bool(trial.user_attrs.get(PROTECTED, False)),
        recipe=study.spec.recipe(dials),
        audited=is_drawn(study.spec, slot),
    )


def is_drawn(spec: StudySpec, slot: int) -> bool:
    """Tell whether the trial of a slot is audited: by lot, and the same for the same slot."""
    digest = hashlib.sha256(f"audit/{spec.search.seed}/{slot}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < spec.search.pruning.audit * 2**32


def _repeat(study: Study, number: int) -> optuna.Trial:
    """Begin a trial with the values of another; the sampler learns from both."""
    trials = study.optuna.get_trials(deepcopy=False)
    first = next(one for one in trials if one.number == number)
    name = first.user_attrs.get(NAME) or f"trial {number}"
    n_before = sum(one.user_attrs.get(REPEAT_OF) == number for one in trials)
    attributes = {REPEAT_OF: number, NAME: f"{name}, run {n_before + 2}", RUN: n_before + 2}
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=first.params,
        distributions=first.distributions,
        user_attrs=attributes,
    )
    trial_id = study.storage.optuna.create_new_trial(study.id, template)
    return optuna.Trial(study.optuna, trial_id)


def _repeated(study: Study, trial: optuna.Trial) -> Asked:
    """Return the trial that a repeat is: the recipe of the first, with the seed of its run."""
    number = trial.user_attrs[REPEAT_OF]
    first = records.recipe(study.storage.engine, study.id, number)
    assert first is not None, "what is repeated has a row"  # noqa: S101
    seed = first.train.seed + _SEEDS_OF_REPEATS + trial.user_attrs[RUN]
    return Asked(
        trial_id=trial._trial_id,  # noqa: SLF001
        number=trial.number,
        name=trial.user_attrs[NAME],
        protected=True,  # it is chosen as one of the best, and its end is what it is for
        recipe=first.replace(train=first.train.replace(seed=seed)),
        repeat_of=number,
    )


def _planned(study: Study, trial: optuna.Trial, slot: int) -> Asked:
    """Return the final run that is planned for this slot."""
    plan = schema.final_run
    query = select(plan).where(plan.c.study_id == study.id, plan.c.slot == slot)
    with study.storage.engine.connect() as connection:
        run = connection.execute(query).one()
    trial.set_user_attr(NAME, run.name)
    return Asked(
        trial_id=trial._trial_id,  # noqa: SLF001
        number=trial.number,
        name=run.name,
        protected=True,
        recipe=run.recipe,
    )


def _orphan(study: Study) -> optuna.Trial | None:
    known_ids = Ledger(study.storage.engine, study.id).trial_ids()
    for trial in study.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial._trial_id not in known_ids:  # noqa: SLF001
            logger.info("adopting", extra={"action": "adopt", "trial": trial.number})
            return optuna.Trial(study.optuna, trial._trial_id)  # noqa: SLF001
    return None


def report(
    study: Study, trial_id: int, epochs: list[Epoch], *, n_epochs: int, rungs: tuple[int, ...] = ()
) -> None:
    """Report accuracies to Optuna, of those epochs that `is_reported`."""
    trial = optuna.Trial(study.optuna, trial_id)
    # Epochs come again after a lost answer or a resumed attempt; Optuna would warn of each.
    there = trial.storage.get_trial(trial_id).intermediate_values
    with _unless_finished():
        for epoch in epochs:
            wanted = is_reported(epoch.epoch, n_epochs=n_epochs, rungs=rungs)
            if wanted and epoch.epoch not in there and epoch.val_top1 is not None:
                trial.report(epoch.val_top1, step=epoch.epoch)


def is_reported(epoch: int, *, n_epochs: int, rungs: tuple[int, ...]) -> bool:
    """Tell whether Optuna gets this epoch: at most `MAX_REPORTS` evenly spread ones, and the rungs.

    The ledger has all epochs, and our figures draw them. The sampler ranks a trial that was stopped
    by its last report, so that must be the rung; and whoever reads a study reads every report.
    """
    stride = -(-n_epochs // MAX_REPORTS)
    return epoch % stride == 0 or epoch == n_epochs or epoch in rungs


def tell_ended(study: Study) -> None:
    """Tell Optuna of every trial that ended in the ledger; whoever comes first does it.

    Raises:
        StorageError: the database refuses or does not answer.
    """
    ledger = Ledger(study.storage.engine, study.id)
    for ended in ledger.unnotified():
        with storage_errors():
            tell(study, ended)
        ledger.mark_notified(ended.trial_id)


def tell(study: Study, ended: FinishedTrial) -> None:
    """Tell Optuna how a trial ended; telling again, or at the same time, changes nothing.

    What cannot be trained (`INFEASIBLE`) is told as pruned, with a constraint that is not met:
    samplers ignore failed trials, and would propose the same point again.
    """
    trial = optuna.Trial(study.optuna, ended.trial_id)
    if trial.storage.get_trial(ended.trial_id).state.is_finished():
        return
    state = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }[ended.state]
    # A pruned trial's value is its last report; Optuna refuses another one.
    value = ended.value if state is TrialState.COMPLETE else None
    # The attributes go first: once told, a trial takes no more of them, and whoever was killed in
    # between does all of it again.
    with _unless_finished():
        if ended.cause:
            trial.set_user_attr(CAUSE, ended.cause)
        if ended.cause in INFEASIBLE:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # told again: the constraint is there
                trial.set_constraint(CONSTRAINT, 1.0)
        study.optuna.tell(trial.number, value, state=state, skip_if_finished=True)


@contextmanager
def _unless_finished() -> Iterator[None]:
    """Go on quietly where another worker has finished the trial since we looked."""
    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError:
        logger.debug("another worker was quicker", extra={"action": "tell"})
