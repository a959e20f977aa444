"""Fork of a study: what a new one takes over of the trials of another, whose setting it changes.

Accuracies can be compared where all that decides them is equal, but for the dials. There every
trial inside the new space is *evidence*: an ended trial of the new study's Optuna part, from which
the sampler starts. It is none of the new study's ledger, and so takes nothing of its budget and is
none of its results. Where accuracies cannot be compared, recipes still can be tried: the best of
the source are enqueued.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from nbtl_search import space
from nbtl_search.errors import SpecError
from nbtl_search.ledger import records
from nbtl_search.ledger.ledger import INFEASIBLE
from nbtl_search.ledger.recommendation import recommend
from nbtl_search.ledger.records import DEFAULT, TrialRecord
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.space import effective
from nbtl_search.space.rows import COUNTS
from nbtl_search.spec import Dials, Epoch, Fork, KnownRecipe, SettingValue, StudySpec
from nbtl_search.spec.verdict import Estimate
from nbtl_search.study import sampling
from nbtl_search.study.store import DIALS, SOURCE, Evidence, Study
from nbtl_search.study.warm_start import N_BEST, with_l2sp_cut

# A seed, a device and threads move an accuracy no more than another run does; the split and the
# contents of images and weights are among the facts, wherever they lie.
_DECIDES_NOTHING: Final = (
    "name", "description", "search", "budget", "advice",
    "data.dataset", "data.root", "data.partition", "data.val_fraction", "data.test_fraction",
    "data.split_seed", "model.weights",
    "train.seed", "train.device", "train.n_threads", "train.n_loaders",
)  # fmt: skip
_OF_FACTS: Final = {
    "facts.data_digest": "other images, or another split",
    "facts.weights_digest": "other weights",
}


@dataclass(frozen=True, kw_only=True)
class _Past:
    """A trial of the source: its dials, and what `create_trial` needs beside the params.

    `unended` says why nothing is known of it yet.
    """

    dials: Dials
    kept: Mapping[str, Any]
    unended: str = ""


def evidence(source: Study, spec: StudySpec) -> Evidence:
    """Return what a study takes over of the source, as the ledger has it now.

    Trials that are paused at a rung count like those that ended there. A fork of a fork takes over
    what its source did, too.

    Args:
        source: a search, whether it runs, is over, paused or stopped; it is only read.
        spec: of the new study, with its facts.

    Raises:
        SpecError: the new study's space is not valid.
        StorageError: the database refuses.
    """
    assert spec.facts is not None  # noqa: S101
    searched = space.build_for(spec.search, spec.facts)
    trials = records.trials(source.storage.engine, source.id)
    past = [*_taken_over(source), *_of_ledger(source, trials)]
    differences = incomparable(source.spec, spec)
    if differences:
        why = {"; ".join(differences[:3]): len(past)} if past else {}
        best = tuple(_best(source, trials, spec, searched))
        return Evidence(fork=Fork(source=source.name, left_out=why, recipes=best))
    carried, left_out = [], Counter[str]()
    for one in past:
        reason = one.unended or _outside(searched, one.dials)
        if reason:
            left_out[reason] += 1
        else:
            carried.append(_inside(searched, one))
    fork = Fork(source=source.name, n_carried=len(carried), left_out=dict(left_out.most_common()))
    return Evidence(fork=fork, trials=tuple(carried))


def incomparable(ours: StudySpec, theirs: StudySpec) -> list[str]:
    """Name what makes accuracies of the same dials differ between two studies with facts."""
    found = []
    for line in ours.differences(theirs):
        key = line.partition(":")[0]
        if key in _OF_FACTS:
            found.append(_OF_FACTS[key])
        elif not key.startswith("facts.") and not _decides_nothing(key):
            found.append(line)
    return found


def _decides_nothing(key: str) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in _DECIDES_NOTHING)


def _outside(searched: space.Space, dials: Dials) -> str:
    names = space.dials_outside(searched, dials)
    return f"outside the new space: {', '.join(names)}" if names else ""


def _inside(searched: space.Space, past: _Past) -> FrozenTrial:
    """Return a trial as the new study's sampler would have had it: params of the new space."""
    params = space.params_of(searched, past.dials)
    asked = FixedTrial(params)
    for name in params:
        space.suggest_row(searched, name, asked)
    return create_trial(params=asked.params, distributions=asked.distributions, **past.kept)


def _of_ledger(source: Study, trials: Sequence[TrialRecord]) -> Iterator[_Past]:
    curves = records.curves(source.storage.engine, source.id)
    for trial in trials:
        yield _past(source, trial, curves.get(trial.number, ()))


def _past(source: Study, trial: TrialRecord, curve: Iterable[Epoch]) -> _Past:
    """Return a trial with what was reported of it, as `sampling.tell` does."""
    ladder = source.ladder
    reports = {
        epoch.epoch: epoch.val_top1
        for epoch in curve
        if epoch.val_top1 is not None
        and sampling.is_reported(epoch.epoch, n_epochs=ladder.n_epochs, rungs=ladder.rungs)
    }
    attributes = {
        SOURCE: f"{source.name} trial {trial.number}",
        DIALS: trial.dials.model_dump_json(),
    }
    kept: dict[str, Any] = {"intermediate_values": reports, "user_attrs": attributes}
    if trial.state == "complete":
        kept |= {"state": TrialState.COMPLETE, "value": trial.value}
    else:
        kept |= {"state": TrialState.PRUNED, "value": reports.get(max(reports, default=0))}
    if trial.cause in INFEASIBLE:
        kept["constraints"] = {sampling.CONSTRAINT: 1.0}
        attributes[sampling.CAUSE] = trial.cause
    unended = {"failed": "failed", "running": "not ended", "waiting": "not ended"}
    return _Past(dials=trial.dials, kept=kept, unended=unended.get(trial.state, ""))


def _taken_over(source: Study) -> Iterator[_Past]:
    """Yield what the source, itself a fork, took over; Optuna's tables alone have it."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    with storage_errors():
        trials = source.optuna.get_trials(deepcopy=False, states=ended)
    for trial in trials:
        if SOURCE in trial.user_attrs:
            kept = {
                "state": trial.state,
                "value": trial.value,
                "intermediate_values": trial.intermediate_values,
                "user_attrs": trial.user_attrs,
                "constraints": trial.constraints,
            }
            yield _Past(dials=Dials.parse_json(trial.user_attrs[DIALS]), kept=kept)


def _best(
    source: Study, trials: Sequence[TrialRecord], spec: StudySpec, searched: space.Space
) -> Iterator[KnownRecipe]:
    """Yield the source's best recipes that the new study's space holds and nothing else tries."""
    tried = {effective(space.known_dials(one, space=searched)) for one in spec.search.known}
    n_left = N_BEST
    for trial, worth in recommend(trials, n_images=source.facts.n_val).ranked:
        recipe = _recipe(source, trial, worth)
        try:
            dials = space.known_dials(recipe, space=searched)
        except SpecError:  # what one network can train, another may not
            continue
        if trial.name == DEFAULT or effective(dials) in tried or _outside(searched, dials):
            continue
        tried.add(effective(dials))
        yield recipe
        n_left -= 1
        if n_left == 0:
            return


def _recipe(source: Study, trial: TrialRecord, worth: Estimate) -> KnownRecipe:
    """Return a trial's dials for any network: counts of blocks as parts of its own."""
    n_blocks = source.facts.n_blocks
    dials: dict[str, SettingValue] = {}
    for name, value in with_l2sp_cut(trial.dials, n_blocks=n_blocks).plain().items():
        is_part = name in COUNTS and name != "reinit_layers"
        dials[name] = f"{value}/{n_blocks}" if is_part else value
    return KnownRecipe(
        name=f"{source.name} trial {trial.number}",
        reason=f"one of the best of study {source.name}: validation top-1 {worth.mean:.2f} there",
        dials=dials,
    )
