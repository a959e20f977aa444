"""The note beside a study in the dashboard: what is searched, on what, how long, how to read it."""

import html

from nbtl_search import space
from nbtl_search.spec import Facts, StudySpec

_READING = """\
**How to read this.** The value of a trial is its best validation top-1 accuracy in percent, over
the epochs it trained; higher is better. A trial's own page shows its learning curve. *Pruned*
trials were stopped early, ran out of memory or diverged (`nbtl:cause`). The first trial,
`default`, is the usual binary practice: every other trial is to be compared with it, and a
difference smaller than that between two seeds is none. The test set has not been looked at."""


def write_note(spec: StudySpec, facts: Facts) -> str:
    """Return the note as Markdown; what a user wrote is escaped.

    Raises:
        SpecError: the study's search space is not valid.
    """
    parts = [
        f"## {_text(spec.name)}",
        _text(spec.description),
        _data(spec, facts),
        _searched(spec, facts),
        _known(spec),
        f"**Budget:** {spec.budget.in_words()}.",
        _READING,
    ]
    return "\n\n".join(part for part in parts if part)


def _data(spec: StudySpec, facts: Facts) -> str:
    return (
        f"**Data:** {_text(spec.data.dataset)}, {facts.n_classes} classes, "
        f"{facts.n_train} training, {facts.n_val} validation and {facts.n_test} test images. "
        f"**Network:** {_text(spec.model.name)} ({facts.n_blocks} blocks and the head)."
    )


def _searched(spec: StudySpec, facts: Facts) -> str:
    built = space.build(spec.search, n_blocks=facts.n_blocks)
    rows = [
        f"| `{row.name}` | {_text(space.in_words(row.domain))} | "
        f"{f'`{row.when.dial}` > 0' if row.when else ''} |"
        for row in built.rows
    ]
    rows += [f"| `{name}` | fixed: {_text(str(value))} | |" for name, value in built.fixed.items()]
    head = [f"**Searched** (space `{spec.search.space}`):", "", "| dial | values | only if |"]
    return "\n".join([*head, "|---|---|---|", *rows])


def _known(spec: StudySpec) -> str:
    recipes = [
        f"* {_text(known.name)}{': ' if known.reason else ''}{_text(known.reason)}"
        for known in spec.search.known
    ]
    return "\n".join(["**Tried first, never pruned:**", "", *recipes])


def _text(value: str) -> str:
    """Escape what HTML and a Markdown table would take for their own, and keep it in one line."""
    return html.escape(" ".join(value.split()), quote=False).replace("|", "\\|")
