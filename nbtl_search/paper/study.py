"""A study of the paper's recipes: every distinct row of its tables 2-6 for one dataset."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbtl_search.paper.tables import PaperRow, figure, paper_rows
from nbtl_search.spec.recipe import SettingValue
from nbtl_search.spec.study import shipped_study


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
