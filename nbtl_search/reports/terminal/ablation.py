"""An ablation in a terminal: what each group is worth as a table, and what that says."""

from rich.console import Group, RenderableType
from rich.text import Text

from nbtl_search import escaping
from nbtl_search.reports import ablation
from nbtl_search.reports.table import Column, Row, Table, count, number, terminal, text_of
from nbtl_search.spec.ablation import Ablation

_GROUP: Column = Column(
    title="", show=lambda row: text_of(row["group"]), is_text=True, max_width=26
)


def render(found: Ablation, *, name: str) -> RenderableType:
    """Return an ablation as a table of at most 80 columns.

    Args:
        found: where it stands.
        name: of the study.
    """
    made = ablation.table(found)
    columns = (
        _GROUP,
        count("seeds", "n_seeds"),
        number("without it", "without_mean"),
        Column(title="worth", show=_worth),
        Column(title="", show=lambda row: str(row["need"]), is_text=True, is_whole=True),
    )
    drawn = Table(name=made.name, title=made.title, rows=made.rows, columns=columns)

    def emphasis(row: Row) -> str:
        return "bold" if row["need"] in {"needed", "harmful"} else ""

    more = [] if found.is_done else [f"go on with: nbtl-search ablate {escaping.terminal(name)}"]
    return Group(
        Text(f"validation top-1 after the last epoch, up to {found.n_seeds} seeds", style="bold"),
        terminal(drawn, gap=2, emphasis=emphasis),
        "",
        *(Text(escaping.terminal(said)) for said in ablation.sentences(found)),
        *map(Text, more),
    )


def _worth(row: Row) -> str:
    if row["gain"] is None:
        return ""
    return f"{row['gain']:+.2f} [{row['gain_low']:+.2f}, {row['gain_high']:+.2f}]"
