"""The tables of the search: what was searched, its trials, what mattered and what it cost."""

from collections.abc import Sequence

from nbtl_search import space
from nbtl_search.reports.content import Content
from nbtl_search.reports.drawing.importance import NAMES
from nbtl_search.reports.page.sheet import (
    Row,
    Sheet,
    count,
    number,
    remark,
    words,
)
from nbtl_search.reports.spending import spending
from nbtl_search.reports.words import recipe_in_words
from nbtl_search.spec import Dials
from nbtl_search.study.records import TrialRecord


def searched(content: Content) -> Sheet:
    """Return the rows of the search space, and what is held fixed."""
    rows: list[Row] = [
        {
            "dial": row.name,
            "meaning": NAMES.get(row.name, row.name),
            "values": space.in_words(row.domain),
            "only_if": str(row.when or ""),
        }
        for row in content.searched.rows
    ]
    rows += [
        {
            "dial": name,
            "meaning": NAMES.get(name, name),
            "values": f"fixed: {value}",
            "only_if": "",
        }
        for name, value in content.searched.fixed.items()
    ]
    columns = (
        words("dial", "dial"),
        words("meaning", "meaning"),
        words("values", "values"),
        words("only if", "only_if"),
    )
    return Sheet(name="space", title="The search space", rows=tuple(rows), columns=columns)


def trials(content: Content, only: Sequence[TrialRecord] | None = None) -> Sheet:
    """Return the trials of the search, all of them or these."""
    written = {name for trial in content.trials for name in trial.dials.model_dump()}
    dials = [name for name in Dials.model_fields if name in written]
    rows: list[Row] = [
        {
            "trial": trial.number,
            "name": trial.name,
            "state": trial.state,
            "top1": trial.value,
            "best_epoch": trial.best_epoch,
            "n_epochs": trial.n_epochs,
            "seconds": round(trial.seconds, 1),
            "attempts": trial.n_attempts,
            "cause": trial.cause,
            "message": trial.message,
            **{name: getattr(trial.dials, name) for name in dials},
            "settings": recipe_in_words(trial.dials, n_blocks=content.facts.n_blocks),
        }
        for trial in (content.trials if only is None else only)
    ]
    columns = (
        count("trial", "trial"),
        words("name", "name"),
        words("state", "state"),
        number("validation top-1", "top1"),
        count("epochs", "n_epochs"),
        remark("settings", "settings"),
    )
    return Sheet(name="trials", title="Trials of the search", rows=tuple(rows), columns=columns)


def importance(content: Content) -> Sheet:
    """Return the shares of the dials."""
    rows: tuple[Row, ...] = tuple(
        {"dial": name, "meaning": NAMES.get(name, name), "share": share}
        for name, share in content.importances.shares.items()
    )
    columns = (words("dial", "dial"), words("meaning", "meaning"), number("share", "share", ".1%"))
    return Sheet(name="importances", title="Importance of the dials", rows=rows, columns=columns)


def cost(content: Content) -> Sheet:
    """Return what the search and the final runs have cost."""
    rows: tuple[Row, ...] = tuple(
        {
            "part": part.name,
            "runs": part.n_runs,
            "epochs": part.epochs,
            "slot_seconds": round(part.seconds, 1),
            "retried": part.n_retried,
        }
        for part in spending(content)
    )
    columns = (
        words("part", "part"),
        count("runs", "runs"),
        count("epochs", "epochs"),
        number("slot-seconds", "slot_seconds", ",.0f"),
        count("of them retried", "retried"),
    )
    return Sheet(name="cost", title="Cost", rows=rows, columns=columns)
