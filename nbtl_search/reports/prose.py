"""Prose of a report: its sentences, such as what is said of a winner or a tie."""

from nbtl_search.ledger.recommendation import Recommendation
from nbtl_search.reports.content import Content
from nbtl_search.reports.table import NONE
from nbtl_search.spec import Dials
from nbtl_search.spec.verdict import Contender, Entry, Interval, Summary, Verdict


def verdict_sentences(content: Content) -> tuple[str, str]:
    """Return the verdict as plain text: what was found, and how sure that is."""
    verdict = content.verdict
    if verdict is None:
        return _of_search(content)
    if verdict.stage != "done" or verdict.winner is None or not verdict.entries:
        n_done = sum(run.state == "complete" for run in verdict.runs)
        found, _ = _of_search(content)
        stage = {"confirm": "first", "test": "second"}.get(verdict.stage, "last")
        return found, (
            f"The final runs, which decide, are under way: {n_done} of {len(verdict.runs)} "
            f"known so far have ended, in the {stage} of two stages."
        )
    if len(verdict.entries) == 1 and verdict.unmade:
        entry = verdict.entries[0]
        return f"The default recipe stands{_on_test(content, entry)}.", unmade_remark(verdict)
    found, sure = (
        _default_won(content, verdict, verdict.entries[0])
        if len(verdict.entries) == 1
        else _of_test(content, verdict)
    )
    return found, f"{sure} {unmade_remark(verdict)}" if verdict.unmade else sure


def unmade_remark(verdict: Verdict) -> str:
    """Return a sentence on an average that had won and could not be made."""
    return (
        f"An average of {len(verdict.unmade)} recipes had the highest bound on the validation "
        "images, and none could be made in the test stage (the logs say why): its first recipe "
        "stands for it."
    )


def describe_recipe(dials: Dials, *, n_blocks: int) -> str:
    """Return in words what a point of the search space means for a network of so many blocks."""
    layers = "layer" if dials.reinit_layers == 1 else "layers"
    words = [f"{dials.reinit_layers} new {layers}", f"rate {dials.lr_high:.2g}"]
    if dials.n_low and f"{dials.lr_low_ratio:.2g}" != "1":
        words.append(f"first {dials.n_low} of {n_blocks} blocks at {dials.lr_low_ratio:.2g} of it")
    if f"{dials.lr_head_ratio:.2g}" != "1":
        words.append(f"classifier at {dials.lr_head_ratio:.2g} of it")
    if dials.n_l2sp:
        beyond = dials.n_l2sp > n_blocks  # a kept source classifier is one more
        count = f"{dials.n_l2sp} of {n_blocks} blocks"
        where = "all blocks and the source classifier" if beyond else count
        words.append(f"L2-SP {dials.alpha:.1g} on {where}")
    if dials.beta:
        words.append(f"L2 {dials.beta:.1g}" if dials.n_l2sp else f"plain L2 {dials.beta:.1g}")
    return ", ".join([*words, *_describe_methods(dials)])


def describe_candidate(candidate: Contender | Entry, *, n_blocks: int) -> str:
    """Return in words what a candidate's recipe is, or that it is an average of weights."""
    if candidate.averaged:
        return f"weights of {len(candidate.averaged)} recipes averaged, seed by seed"
    return describe_recipe(candidate.dials, n_blocks=n_blocks)


def _describe_methods(dials: Dials) -> list[str]:
    """Say what departs from usual practice beyond the paper's dials."""
    blocks = "block" if dials.frozen_layers == 1 else f"{dials.frozen_layers} blocks"
    delta = {"plain": "plain DELTA", "attention": "DELTA"}.get(dials.delta, "")
    dtnh = {"conflict": "DTNH", "always": "DTNH always"}.get(dials.dtnh, "")
    said = {
        f"first {blocks} frozen": dials.frozen_layers > 0,
        "source classifier kept": dials.source_head == "keep",
        "classifier fitted first": dials.head_start == "logistic",
        f"{delta} {dials.delta_alpha:.1g}": delta != "",
        f"distillation {dials.distill:g} at T {dials.distill_temperature:.2g}": dials.distill > 0,
        dtnh: dtnh != "",
        f"BSS {dials.bss:.1g}": dials.bss > 0,
        f"rates x {dials.layer_decay:.2g} a block": dials.layer_decay < 1,
        f"stochastic norm {dials.stochnorm_p:g}": dials.stochnorm_p != 1,
        f"momentum {dials.momentum:.2g}": dials.momentum != Dials().momentum,
        f"rates x {dials.decay_factor:.2g} every {dials.decay_updates} updates": (
            dials.decay_updates > 0
        ),
    }
    return [words for words, is_so in said.items() if is_so]


def describe_trial(number: int, name: str, how: str) -> str:
    """Return how a text names a trial: its name or number, and what its recipe is."""
    plain = f"trial {number}"
    if name in {"", plain}:
        return f"{plain} ({how})"
    return f"{isolated(name)} ({plain}: {how})"


def isolated(name: str) -> str:
    """Return a user's name as part of a sentence, with its own direction of writing."""
    line = " ".join(name.split())
    return line if line.isascii() else f"\u2068{line}\u2069"


def mean_std(summary: Summary) -> str:
    """Return a mean with its standard deviation, in percent, or a dash."""
    if summary.mean is None:
        return NONE
    spread = "" if summary.std is None else f" ± {summary.std:.2f}"
    return f"{summary.mean:.2f}{spread}"


def _of_search(content: Content) -> tuple[str, str]:
    found, n_val = content.recommendation, content.facts.n_val
    best, value = found.best, found.value_of(found.best)
    if best is None or value is None:
        n = len(content.trials)
        return (
            "No trial has run to its end yet.",
            f"{n} of {content.totals.n_trials} trials have started; nothing can be said so far.",
        )
    caveat = (
        "A recipe's value is the mean of its runs, drawn towards that of all recipes, the more the "
        f"fewer runs it has, and its 95 % interval; each of the {n_val} validation images is worth "
        f"{100 / n_val:.2f} points, and the test images were not read."
    )
    how = describe_recipe(best.dials, n_blocks=content.facts.n_blocks)
    worth = f"{value.describe()}, on the validation images"
    if best == found.default:
        return f"No recipe was better than the default ({how}): {worth}.", caveat
    start = f"The best is {describe_trial(best.number, best.name, how)} with {worth}"
    return _against_default(found, start), caveat


def _against_default(found: Recommendation, start: str) -> str:
    gain, usual = found.gain, found.value_of(found.default)
    if gain is None or usual is None:
        return f"{start}; the default recipe has not run to its end, so there is no comparison yet."
    other = f"the default recipe's {usual.mean:.2f} %"
    bounds = f"[{gain.low:+.2f}, {gain.high:+.2f}]"
    if gain.is_tie:
        return f"{start}, against {other}: {gain.mean:+.2f} points {bounds}, and so a tie."
    return f"{start}, {gain.mean:.2f} points {bounds} above {other}."


def _default_won(content: Content, verdict: Verdict, entry: Entry) -> tuple[str, str]:
    tied = [contender for contender in verdict.contenders if contender.is_tied_with_winner]
    n_others = max(0, len(verdict.contenders) - 1)
    found = f"The default recipe is the best found{_on_test(content, entry)}."
    sure = (
        f"None of the {n_others} candidates from {len(content.trials)} trials was better over "
        f"up to {verdict.n_confirm_seeds} seeds on the validation images"
    )
    if tied:
        return found, f"{sure}; {len(tied)} of them cannot be told apart from it."
    return found, f"{sure}."


def _of_test(content: Content, verdict: Verdict) -> tuple[str, str]:
    default, winner = verdict.entries[0], verdict.entries[-1]
    how = describe_candidate(winner, n_blocks=content.facts.n_blocks)
    n = winner.single.n
    name = (
        f"{isolated(winner.name)} ({how})"
        if winner.averaged
        else describe_trial(winner.trial, winner.name, how)
    )
    found = f"The winner, {name}, reaches {mean_std(winner.single)} %"
    other = f"{mean_std(default.single)} % of the default recipe"
    gain = verdict.gain
    if gain is None:
        sure = (
            "No pair of final runs with one seed has ended well, so nothing was compared on test."
        )
        return _of_search(content)[0], sure
    where = f"on the test images, mean and standard deviation of {n} runs, single crop"
    told = f"{gain.mean:+.2f} points, and {_interval(gain)}"
    if gain.is_tie:
        sure = f"The gain is {told}, so the runs cannot tell the two apart."
        return f"{found} against {other} ({where}): a tie.", sure
    if gain.mean < 0:
        better = f"the default recipe is better with {mean_std(default.single)} %"
        sure = f"The difference is {told}: what validation favoured did not hold."
        return f"{found}, but {better} ({where}).", sure
    sure = (
        f"This gain is larger than the luck of the seeds: {_interval(gain)}, without zero, for "
        "recipes chosen before the test images were read."
    )
    return f"{found} against {other} ({where}): {gain.mean:+.2f} points.", sure


def _on_test(content: Content, entry: Entry) -> str:
    if entry.single.mean is None:
        default = content.default
        value = "" if default is None or default.value is None else _value(default.value)
        return f", with {value} on the validation images" if value else ""
    runs = f"mean and standard deviation of {entry.single.n} runs, single crop"
    return f": {mean_std(entry.single)} % on the test images ({runs})"


def _interval(gain: Interval) -> str:
    return (
        f"its {gain.confidence:.0%} interval over {gain.n} {_seeds(gain.n)} is "
        f"{gain.low:+.2f} to {gain.high:+.2f}"
    )


def _value(top1: float) -> str:
    return f"{top1:.2f} %"


def _seeds(n: int) -> str:
    return "seed" if n == 1 else "seeds"
