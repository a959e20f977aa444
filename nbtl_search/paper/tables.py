"""The paper's tables 2-6: their figures as printed, the recipes behind them, and a study of these.

Plested, Shen and Gedeon, "Rethinking binary hyperparameters for deep transfer learning for image
classification", 2021, arXiv 2107.08585. Where it does not print all that a recipe needs, the row
says what was assumed; where a cell contradicts others, it says so too, and keeps what is printed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import resources
from typing import Any, Final

from nbtl_search.errors import SpecError
from nbtl_search.spec.recipe import SettingValue
from nbtl_search.spec.study import shipped_study

KEYS: Final[Mapping[str, str]] = {
    "aircraft": "aircraft",
    "caltech256": "caltech",
    "cars": "cars",
    "dtd": "dtd",
}
"""The paper's datasets by our names, and their columns in its tables."""

_NO_RATE: Final = "table 5 prints no learning rate: the default's"
_NO_LAYERS: Final = (
    "table 5 prints neither rates nor new layers for it: those of the optimum of table 6"
)


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row of one of the tables, in the column of one dataset; accuracies in percent."""

    table: int
    label: str
    slug: str
    """For names: 'table3-2-layers'."""
    setting: str
    """What the table prints of it, in short."""
    top1: float
    std: float | None
    """None where the table prints none."""
    dials: Mapping[str, SettingValue] | None
    """As in `KnownRecipe`; None for a figure that is no recipe's (ensemble, state of the art)."""
    suspect: tuple[str, ...] = ()
    """Why the cell is doubtful."""
    assumed: tuple[str, ...] = ()
    """What the paper does not print, and what stands in for it."""


@cache
def paper_tables() -> dict[str, Any]:
    """Return tables 1-7 as `paper/tables.json` has them; do not change what is returned."""
    file = resources.files("nbtl_search").joinpath("paper", "tables.json")
    tables: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return tables


def paper_rows(dataset: str) -> tuple[PaperRow, ...]:
    """Return the rows of tables 2-6 for a dataset, in their order.

    Raises:
        SpecError: the paper has no such dataset.
    """
    column = _column(dataset)
    return (
        column.row(2, "default", "default", column.cell(2), f"lr {column.lr:g}", column.default),
        *_table3(column),
        *_table4(column),
        *_table5(column),
        *_table6(column),
    )


def table_notes(dataset: str) -> dict[int, tuple[str, ...]]:
    """Return what is doubtful of whole tables rather than of one cell.

    Raises:
        SpecError: the paper has no such dataset.
    """
    column = _column(dataset)
    return {table: notes for table in range(2, 7) if (notes := column.suspects(table, None))}


def figure(top1: float, std: float | None) -> str:
    """Return an accuracy with what spread the paper prints.

    >>> figure(78.9, 0.243)
    '78.90 ± 0.243'
    """
    return f"{top1:.2f}" if std is None else f"{top1:.2f} ± {std:.3f}"


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One dataset's column through all tables, and what its plain L2 rows share."""

    key: str
    beta: float

    @property
    def lr(self) -> float:
        return float(self.cell(2)["lr"])

    @property
    def default(self) -> dict[str, SettingValue]:
        return self.dials(1, {"lr": self.lr})

    @property
    def no_decay(self) -> str:
        return (
            f"the paper prints no weight decay: beta {self.beta:g} is the authors' released "
            "command's"
        )

    def cell(self, table: int, row: str | None = None) -> dict[str, Any]:
        rows = paper_tables()[f"table{table}"]["rows"]
        cell: dict[str, Any] = (rows if row is None else rows[row])[self.key]
        return cell

    def suspects(self, table: int, row: str | None) -> tuple[str, ...]:
        """Return the notes on a row; those on the whole table where it is None."""
        return tuple(
            entry["note"]
            for entry in paper_tables()[f"table{table}"].get("suspect", [])
            if self.key in entry["datasets"]
            and (row in entry["rows"] if row is not None else not entry["rows"])
        )

    def dials(
        self, new_layers: int, rates: Mapping[str, Any], l2sp: Mapping[str, Any] | None = None
    ) -> dict[str, SettingValue]:
        """Return the dials of a cell; counts of blocks are parts of Inception-v4's 22."""
        high = rates.get("high_lr", rates.get("lr"))
        dials: dict[str, SettingValue] = {"reinit_layers": new_layers, "lr_high": high}
        dials["n_low"] = 0
        if "fc_lr" in rates:
            dials["lr_head_ratio"] = _ratio(rates["fc_lr"], high)
        if "low_lr" in rates:
            dials["n_low"] = f"{rates['n_low']}/22"
            dials["lr_low_ratio"] = _ratio(rates["low_lr"], high)
        if l2sp is None:
            return dials | {"n_l2sp": 0, "beta": self.beta}
        n_l2sp = "all" if l2sp["n_layers"] == "all" else f"{l2sp['n_layers']}/22"
        return dials | {"n_l2sp": n_l2sp, "alpha": l2sp["alpha"], "beta": l2sp["beta"]}

    def row(
        self,
        table: int,
        key: str,
        label: str,
        cell: Mapping[str, Any],
        setting: str,
        dials: dict[str, SettingValue] | None,
        *assumed: str,
    ) -> PaperRow:
        if dials is not None and dials["n_l2sp"] == 0:
            assumed = (*assumed, self.no_decay)
        return PaperRow(
            table=table,
            label=label,
            slug=f"table{table}-{_slug(label)}",
            setting=setting,
            top1=cell["acc"],
            std=cell.get("std"),
            dials=dials,
            suspect=self.suspects(table, key),
            assumed=assumed,
        )


def _column(dataset: str) -> _Column:
    if dataset not in KEYS:
        message = f"a dataset of the paper must be one of {', '.join(KEYS)}; got {dataset!r}"
        raise SpecError(message)
    default = shipped_study(dataset)["search"]["known"][0]
    return _Column(key=KEYS[dataset], beta=default["dials"]["beta"])


def _table3(column: _Column) -> Iterator[PaperRow]:
    for n in (1, 2, 3):
        cell = column.cell(3, str(n))
        yield column.row(3, str(n), _layers(n), cell, f"lr {cell['lr']:g}", column.dials(n, cell))


def _table4(column: _Column) -> Iterator[PaperRow]:
    yield column.row(
        4, "default", "default", column.cell(4, "default"), f"lr {column.lr:g}", column.default
    )
    for n in (1, 2, 3):
        cell = column.cell(4, str(n))
        yield column.row(4, str(n), _layers(n), cell, _rates(cell), column.dials(n, cell))


def _table5(column: _Column) -> Iterator[PaperRow]:
    plain = {"acc": column.cell(5, "l2")}
    yield column.row(5, "l2", "L2", plain, f"lr {column.lr:g}", column.default)
    for key, label in (
        ("default_l2sp_1_new_layer", "default L2-SP, 1 layer"),
        ("optimal_l2sp_1_new_layer", "optimal L2-SP, 1 layer"),
    ):
        cell = column.cell(5, key)
        l2sp = _l2sp(cell)
        dials = column.dials(1, {"lr": column.lr}, l2sp)
        yield column.row(5, key, label, cell, _pull(l2sp), dials, _NO_RATE)
    key, cell, best = "optimal_l2sp_overall", column.cell(5, "optimal_l2sp_overall"), _best(column)
    l2sp = _l2sp(cell)
    dials = column.dials(best["new_layers"], best, l2sp)
    assumed = () if best["l2sp"] == l2sp else (_NO_LAYERS,)
    yield column.row(5, key, "optimal L2-SP overall", cell, _pull(l2sp), dials, *assumed)


def _table6(column: _Column) -> Iterator[PaperRow]:
    cell, best = column.cell(6), _best(column)
    default = {"acc": cell["default_acc"]}
    yield column.row(6, "default", "default", default, f"lr {column.lr:g}", column.default)
    l2sp = _l2sp(column.cell(5, "default_l2sp_1_new_layer"))
    dials = column.dials(1, {"lr": column.lr}, l2sp)
    found = {"acc": cell["default_l2sp_acc"]}
    yield column.row(6, "default_l2sp", "default L2-SP", found, _pull(l2sp), dials, _NO_RATE)
    setting = f"{best['new_layers']} new, {_rates(best)}"
    if best["l2sp"] is not None:
        setting = f"{setting}, {_pull(best['l2sp'])}"
    dials = column.dials(best["new_layers"], best, best["l2sp"])
    yield column.row(6, "optimal", "optimal", {"acc": cell["optimal_acc"]}, setting, dials)
    ensemble = {"acc": cell["ensemble"]}
    yield column.row(6, "ensemble", "ensemble", ensemble, "4 runs of it, 10 crops", None)
    before = {"acc": cell["sota"]}
    yield column.row(6, "sota", "state of the art", before, "of others, in 2021", None)


def _best(column: _Column) -> dict[str, Any]:
    best: dict[str, Any] = column.cell(6)["optimal"]
    return best


def _l2sp(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell of table 5 in the form of table 6."""
    return {"alpha": cell["alpha"], "beta": cell["beta"], "n_layers": cell["n_l2sp"]}


def _pull(l2sp: Mapping[str, Any]) -> str:
    return f"L2-SP {l2sp['alpha']:g} {l2sp['beta']:g}, layers {l2sp['n_layers']}"


def _rates(cell: Mapping[str, Any]) -> str:
    """Return rates in the order of table 4: classifier where it has its own, high, low."""
    if "lr" in cell:
        return f"lr {cell['lr']:g}"
    head = f"{cell['fc_lr']:g} " if "fc_lr" in cell else ""
    return f"lr {head}{cell['high_lr']:g} {cell['low_lr']:g}, low {cell['n_low']}"


def _layers(n: int) -> str:
    return f"{n} layer" if n == 1 else f"{n} layers"


def _slug(label: str) -> str:
    return label.lower().replace("l2-sp", "l2sp").replace(",", "").replace(" ", "-")


def _ratio(numerator: float, denominator: float) -> float:
    """Divide decimals as printed: 0.015 / 0.025 is 0.6, which floats may miss."""
    return float(Fraction(str(numerator)) / Fraction(str(denominator)))


@dataclass(frozen=True, kw_only=True)
class PaperRecipe:
    """A recipe to train, and every row of the tables that shows it."""

    name: str
    dials: Mapping[str, SettingValue]
    rows: tuple[PaperRow, ...]

    @property
    def reason(self) -> str:
        """Return where the recipe comes from, the paper's figures, assumptions and doubts."""
        where = "; ".join(
            f"paper table {row.table}, {row.label}: {figure(row.top1, row.std)}"
            for row in self.rows
        )
        assumed = dict.fromkeys(text for row in self.rows for text in row.assumed)
        suspect = dict.fromkeys(text for row in self.rows for text in row.suspect)
        return "; ".join([where, *assumed, *(f"suspect: {text}" for text in suspect)])


def paper_recipes(dataset: str) -> tuple[PaperRecipe, ...]:
    """Return the distinct recipes of tables 2-6, the default first.

    Raises:
        SpecError: the paper has no such dataset.
    """
    rows: dict[frozenset[tuple[str, SettingValue]], list[PaperRow]] = {}
    for row in paper_rows(dataset):
        if row.dials is not None:
            rows.setdefault(frozenset(row.dials.items()), []).append(row)
    return tuple(
        PaperRecipe(
            name="default" if index == 0 else same[0].slug,
            dials=same[0].dials or {},
            rows=tuple(same),
        )
        for index, same in enumerate(rows.values())
    )


def paper_study(dataset: str) -> dict[str, Any]:
    """Return a study of these recipes alone, as plain data; the rest is the shipped study's.

    Every trial runs to its end, so that its figure can stand beside the paper's.

    Raises:
        SpecError: the paper has no such dataset.
    """
    recipes = paper_recipes(dataset)
    plain = shipped_study(dataset)
    plain["name"] = f"paper-{dataset}"
    plain["description"] = f"Tables 2-6 of arXiv 2107.08585 for {dataset}: every recipe, once"
    plain["search"] = {
        "space": "paper",
        "n_startup": 0,
        "pruning": {"rungs": []},
        "known": [
            {"name": recipe.name, "reason": recipe.reason, "dials": dict(recipe.dials)}
            for recipe in recipes
        ],
    }
    plain["budget"] = {"n_trials": len(recipes)}
    return plain
