"""Write the final model of a study as a folder that timm loads."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened_study
from nbtl_search.errors import StudyNotFoundError, WeightsError
from nbtl_search.study.verdict import Entry, FinalRun, Verdict
from nbtl_search.study.verdicts import verdict_of

if TYPE_CHECKING:
    from nbtl_search.exports.export import Export, Source
    from nbtl_search.exports.story import Gain, Outcome, Story

Which = Literal["default", "winner"]


def export(
    name: str,
    output: Path,
    *,
    onnx: bool = False,
    seed_ensemble: bool = False,
    which: Which = "winner",
    force: bool = False,
    home: Path | None = None,
    storage: str | None = None,
) -> "Export":
    """Write the winner's weights of the first seed of the test stage, or those of all its seeds.

    The first seed, whatever the test images said of it: to take the best would be to select on
    them.

    Args:
        name: of the study, which is finalised.
        output: the folder to make; it must not exist, or be empty.
        onnx: write model.onnx as well, checked against torch.
        seed_ensemble: all seeds, each in a folder of its own, to be averaged by `predict`.
        which: the winner, or the default recipe.
        force: replace a folder that an earlier export made.
        home: see above.
        storage: see above.

    Raises:
        StudyNotFoundError: no such study, or it is not finalised.
        WeightsError: the weights are not on this machine, or damaged; or `output` is taken.
    """
    with opened_study(name, storage, home or default_home()) as study:
        found = verdict_of(study)
    if found is None or found.stage != "done":
        stands = "it never was" if found is None else f"its {found.stage} stage is not over"
        message = (
            f"a study is exported after it was finalised, got {name!r}: {stands}; run: "
            f"nbtl-search finalize {name}"
        )
        raise StudyNotFoundError(message)
    return write(
        found,
        output,
        study=name,
        onnx=onnx,
        seed_ensemble=seed_ensemble,
        which=which,
        force=force,
    )


def write(
    verdict: Verdict,
    output: Path,
    *,
    study: str,
    onnx: bool = False,
    seed_ensemble: bool = False,
    which: Which = "winner",
    force: bool = False,
) -> "Export":
    """Write the weights that a verdict speaks of; the arguments are those of `export`.

    Raises:
        WeightsError: the weights are not on this machine, or damaged; or `output` is taken.
    """
    from nbtl_search.exports.export import export as write_folder

    entry = _entry(verdict, which)
    runs = sorted(
        (run for run in verdict.runs if run.stage == "test" and run.candidate == entry.trial),
        key=lambda run: run.seed,
    )
    wanted = runs if seed_ensemble else runs[:1]
    if not wanted or any(run.weights is None for run in wanted):
        message = (
            f"a run that is exported has left its weights, got none of {study!r}, recipe "
            f"{entry.name!r}; run: nbtl-search finalize {study} --again 'weights were lost'"
        )
        raise WeightsError(message)
    return write_folder(
        [_source(run) for run in wanted],
        output,
        story=_story(verdict, entry, runs, study=study),
        onnx=onnx,
        force=force,
    )


def _entry(verdict: Verdict, which: Which) -> Entry:
    """Return the winner or the default, which come as (default, winner), or alone."""
    return verdict.entries[0] if which == "default" else verdict.entries[-1]


def _source(run: FinalRun) -> "Source":
    from nbtl_search.exports.export import Source
    from nbtl_search.exports.story import Member

    assert run.weights is not None, "checked by the caller"  # noqa: S101
    return Source(
        folder=Path(run.weights.folder),
        host=run.weights.host,
        digest=run.weights.digest,
        member=Member(
            seed=run.seed,
            test_top1=run.test.top1 if run.test else None,
            test_ten_crop_top1=run.test.ten_crop_top1 if run.test else None,
        ),
    )


def _story(verdict: Verdict, entry: Entry, runs: list[FinalRun], *, study: str) -> "Story":
    from nbtl_search.exports.story import Story

    default = verdict.entries[0]
    tied = [contender for contender in verdict.contenders if contender.is_tied_with_winner]
    return Story(
        study=study,
        final_study=verdict.study,
        chosen=_outcome(entry),
        is_default=entry is default,
        is_winner=entry.trial == verdict.winner,
        default=None if entry is default else _outcome(default),
        gain=_gain(verdict),
        n_test_images=next((run.test.n_images for run in runs if run.test), None),
        n_readings=len(verdict.readings),
        n_candidates=len(verdict.contenders),
        n_confirm_seeds=verdict.n_confirm_seeds,
        tied_with_winner=tuple(contender.name for contender in tied),
    )


def _outcome(entry: Entry) -> "Outcome":
    from nbtl_search.exports.story import Outcome

    return Outcome(
        name=entry.name,
        n_seeds=entry.single.n,
        top1_mean=entry.single.mean,
        top1_std=entry.single.std,
        ten_crop_mean=entry.ten_crop.mean,
        ten_crop_std=entry.ten_crop.std,
        ensemble_top1=entry.ensemble_top1,
    )


def _gain(verdict: Verdict) -> "Gain | None":
    from nbtl_search.exports.story import Gain

    gain = verdict.gain
    if gain is None:
        return None
    return Gain(
        n_seeds=gain.n,
        mean=gain.mean,
        low=gain.low,
        high=gain.high,
        confidence=gain.confidence,
    )
