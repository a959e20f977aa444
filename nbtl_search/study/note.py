"""The note beside a study in the dashboard: what is searched, on what, how long, how to read it."""

from typing import Final

from nbtl_search import space
from nbtl_search.advice import conclude
from nbtl_search.escaping import markdown, markdown_source
from nbtl_search.spec import (
    TITLES,
    Advised,
    Diagnosis,
    Facts,
    Fork,
    KnownRecipe,
    Measured,
    StudySpec,
)

_READING = """\
**How to read this.** The value of a trial is its best validation top-1 accuracy in percent, over
the epochs it trained; higher is better. A trial's own page shows its learning curve. *Pruned*
trials were stopped early or cancelled, or could not be trained: out of memory, diverged, or
infeasible, which says what the network lacks for the recipe (`nbtl:cause`). One that *runs* may be
paused at a rung: its own page says so. A name such as *trial 7, run 2* is the recipe of trial 7
with another seed: the best single run is partly lucky, so what a recipe is worth is shown on the
study's page, and may be below the highest trial here. The trial `default` is what would be trained
without a search: every other is to be compared with it. No test image has been looked at."""

_DIAGNOSIS: Final = "### How well the weights fit"
_END: Final = "*(end of the diagnosis)*"


def write_note(spec: StudySpec, facts: Facts, fork: Fork | None = None) -> str:
    """Return the note as Markdown; what a user wrote is escaped.

    Raises:
        SpecError: the study's search space is not valid.
    """
    parts = [
        f"## {markdown(spec.name)}",
        markdown_source(spec.description),
        _data(spec, facts),
        _searched(spec, facts),
        _forked(fork),
        _known(spec.search.known),
        _advised(spec.advice),
        f"**Budget:** {spec.budget.describe()}.",
        _READING,
    ]
    return "\n\n".join(part for part in parts if part)


def _data(spec: StudySpec, facts: Facts) -> str:
    return (
        f"**Data:** {markdown(spec.data.dataset)}, {facts.n_classes} classes, "
        f"{facts.n_train} training, {facts.n_val} validation and {facts.n_test} test images. "
        f"**Network:** {markdown(spec.model.name)} ({facts.n_blocks} blocks and the head)."
    )


def _searched(spec: StudySpec, facts: Facts) -> str:
    built = space.build_for(spec.search, facts)
    rows = [
        f"| `{row.name}` | {markdown(space.describe(row.domain))} | {row.when or ''} |"
        for row in built.rows
    ]
    rows += [
        f"| `{name}` | fixed: {markdown(str(value))} | |" for name, value in built.fixed.items()
    ]
    head = [f"**Searched** (space `{spec.search.space}`):", "", "| dial | values | only if |"]
    return "\n".join([*head, "|---|---|---|", *rows])


def _forked(fork: Fork | None) -> str:
    if fork is None:
        return ""
    source = markdown(fork.source)
    lines = [f"**Fork** of the study {source}: {fork.n_carried} of its trials were taken over."]
    if fork.n_carried:
        lines[0] += (
            " They come first in the table, with `nbtl:source`: the sampler starts from them. They "
            "cost no budget and are no results of this study, also where the best of all is one of "
            "them. Recipes below that were tried there do not run again, but for the default."
        )
    lines += ["", *(f"* left out: {markdown(reason)}" for reason in fork.why_left_out())]
    if fork.recipes:
        lines += ["", f"The best of {source} are tried after the known recipes:", ""]
        lines += _recipes(fork.recipes)
    return "\n".join(lines)


def _known(known: tuple[KnownRecipe, ...]) -> str:
    return "\n".join(["**Tried first:**", "", *_recipes(known)])


def _advised(advice: Advised | None) -> str:
    if advice is None:
        return ""
    lines = [f"**Advice** (the weights look {advice.regime}):", ""]
    lines += [f"* {markdown(line)}" for line in advice.evidence]
    if advice.recipes:
        lines += ["", "Tried next:", "", *_recipes(advice.recipes)]
    if advice.prior:
        lines += ["", "Start-up points fall here more often; no other value is excluded:", ""]
        lines += [
            f"* `{name}` {prior.low} to {prior.high}, {100 * prior.weight:.0f} % of the points"
            f"{': ' if prior.reason else ''}{markdown_source(prior.reason)}"
            for name, prior in advice.prior.items()
        ]
    return "\n".join(lines)


def _recipes(known: tuple[KnownRecipe, ...]) -> list[str]:
    return [
        f"* {markdown(recipe.name)}{': ' if recipe.reason else ''}{markdown_source(recipe.reason)}"
        for recipe in known
    ]


def with_diagnosis(note: str, diagnosis: Diagnosis) -> str:
    """Return a note with this diagnosis, in place of an earlier one; all else is kept."""
    section = _diagnosis(diagnosis)
    until, closing, after = note.partition(_END)
    before, heading, _ = until.rpartition(_DIAGNOSIS)
    if not heading or not closing:
        return f"{note}\n\n{section}" if note else section
    return before + section + after


def _diagnosis(diagnosis: Diagnosis) -> str:
    about = (
        f"{diagnosis.n_images} {markdown(diagnosis.split)} images of {diagnosis.n_classes} "
        f"classes, {diagnosis.n_features} features ({markdown(diagnosis.layer)}) at "
        f"{diagnosis.image_px} px; "
        f"accuracies on {diagnosis.n_val} validation images."
    )
    lines = [
        _DIAGNOSIS,
        "",
        about,
        "",
        "| measure | value | without information |",
        "|---|---|---|",
        *(_measure(measure) for measure in diagnosis.measures),
        "",
        *(f"* {markdown(line)}" for line in conclude(diagnosis).evidence),
        "",
        _END,
    ]
    return "\n".join(lines)


def _measure(measure: Measured) -> str:
    value = markdown(measure.reason) if measure.value is None else f"{measure.value:.4g}"
    null = "" if measure.null is None else f"{measure.null:.4g}"
    return f"| {markdown(TITLES.get(measure.name, measure.name))} | {value} | {null} |"
