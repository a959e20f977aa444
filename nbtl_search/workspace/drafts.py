"""Drafts: specifications made of a dataset or a TOML file, without a look at data or weights."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from nbtl_search import space
from nbtl_search.errors import SpecError
from nbtl_search.launchers import local
from nbtl_search.space.regimes import SURVEY, starting_recipe
from nbtl_search.spec import StudySpec, read_toml, with_settings
from nbtl_search.spec.recipe import OF_CYCLE, OF_EPOCHS, OF_STRENGTH
from nbtl_search.spec.study import shipped_studies, shipped_study


def draft(
    dataset: str | None = None,
    *,
    study: Path | None = None,
    name: str | None = None,
    settings: Sequence[str] = (),
) -> StudySpec:
    """Return the specification that `create` would store, without looking at data or weights.

    Args:
        dataset: a shipped study's name, or a folder of images.
        study: a TOML file instead.
        name: of the study; by default that of the dataset or the file's.
        settings: `dotted.key=value`, applied last.

    Raises:
        SpecError: neither or both are given, or something in them is not valid.
    """
    if (dataset is None) == (study is None):
        message = "create takes either --dataset or --study, got both or neither"
        raise SpecError(message)
    plain = _of_dataset(str(dataset), settings) if study is None else _of_file(study, settings)
    return drafted(plain, name=name, settings=settings)


def drafted(
    plain: dict[str, Any], *, name: str | None = None, settings: Sequence[str] = ()
) -> StudySpec:
    """Return the specification in this plain data, with its name and settings changed.

    Raises:
        SpecError: something in them is not valid.
    """
    if name is not None:
        plain = plain | {"name": name}
    spec = StudySpec.parse(_absolute(with_settings(_with_room(plain, settings), settings)))
    _check_rates(spec)
    return spec


def forked(spec: StudySpec, *, name: str, settings: Sequence[str] = ()) -> StudySpec:
    """Return a study's specification under another name, with settings changed and none measured.

    Raises:
        SpecError: something in the settings is not valid.
    """
    plain = spec.plain()
    measured = ("facts", "advice")
    return drafted(_without(plain, measured), name=name, settings=settings)


def _check_rates(spec: StudySpec) -> None:
    """Refuse AdamW beside recipes and rates that are SGD's."""
    if spec.train.optimiser != "adamw":
        return
    of_folder = [known["dials"] for known in shipped_study("folder")["search"]["known"]]
    has_own = not any(recipe.dials in of_folder for recipe in spec.search.known)
    if not has_own or "lr_high" not in spec.search.rows:
        message = (
            "train.optimiser = 'adamw' needs rates of its own, about a tenth of SGD's: give "
            "search.rows.lr_high its bounds and search.known its recipes, in a file of your own; "
            "got those of SGD"
        )
        raise SpecError(message)


def with_threads(spec: StudySpec) -> StudySpec:
    """Return it with the threads of a CPU slot fixed: they are part of the result, bit for bit."""
    if spec.train.n_threads is not None or local.gpus():
        return spec
    return spec.replace(train=spec.train.replace(n_threads=1))


def with_starts(spec: StudySpec, regimes: Sequence[str]) -> StudySpec:
    """Return it with the survey's starting recipes of these regimes behind its known recipes.

    Where the facts are known and the space searches `decay_updates`, they have the regime's own
    decay, counted in the study's updates; elsewhere the rates follow the schedule of [train].

    Args:
        spec: the study.
        regimes: of `nbtl_search.space.regimes.SURVEY`; the same one twice counts once.

    Raises:
        SpecError: there is no such regime, or the study knows a recipe of its name already.
    """
    added = []
    for name in dict.fromkeys(regimes):
        regime = next((known for known in SURVEY if known == name), None)
        if regime is None:
            message = f"start must be one of {', '.join(SURVEY)}; got {name!r}; choose one of them"
            raise SpecError(message)
        added.append(starting_recipe(regime, n_updates=_decaying_updates(spec)))
    taken = {known.name for known in spec.search.known} & {recipe.name for recipe in added}
    if taken:
        message = (
            f"known recipes have different names, and the study has {', '.join(sorted(taken))} "
            "already; leave its start out"
        )
        raise SpecError(message)
    return spec.replace(search=spec.search.replace(known=(*spec.search.known, *added)))


def _decaying_updates(spec: StudySpec) -> int | None:
    """Return the updates of a run, where their number is known and decay in them is searched."""
    facts = spec.facts
    if facts is None:
        return None
    if space.build_for(spec.search, facts).row("decay_updates") is None:
        return None
    return spec.train.updates_per_epoch(facts.n_train) * spec.train.epochs


def _of_file(study: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Return the study of a TOML file; what it leaves out of the training is as for a folder.

    Settings of the command count as if they stood in the file.
    """
    plain, folder = read_toml(study), shipped_study("folder")
    said = with_settings(plain, settings)
    train, search = said.get("train", {}), said.get("search", {})
    if not isinstance(train, dict) or not isinstance(search, dict):
        return plain  # which is refused, by name
    of_training = {"schedule", *OF_EPOCHS, *OF_CYCLE} & train.keys()
    says_nothing = not of_training and not {"augment", "compat"} & said.keys()
    if says_nothing:
        plain["train"] = {"schedule": folder["train"]["schedule"]} | plain.get("train", {})
        plain["augment"] = folder["augment"]
    if "known" not in search:
        found = folder["search"]
        as_folder = says_nothing and search.get("space") != "binary" and "rows" not in search
        first = {"rows": found["rows"], "known": found["known"]} if as_folder else _binary(found)
        plain["search"] = first | plain.get("search", {})
    return plain


def _binary(search: dict[str, Any]) -> dict[str, Any]:
    """Return the binary recipe as the only known one: what suits any schedule and any space."""
    found = next(known for known in search["known"] if known["name"] == "binary")
    return {"known": [found | {"name": "default"}]}


def _with_room(plain: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return it without what a setting of the command takes the place of."""
    given = with_settings({}, settings)
    augment, train = (_table(given, name) for name in ("augment", "train"))
    if set(OF_STRENGTH) & augment.keys():
        plain = plain | {"augment": _without(_table(plain, "augment"), ("strength",))}
    if "schedule" in train:
        others = OF_EPOCHS if train["schedule"] == "one_cycle" else OF_CYCLE
        plain = plain | {"train": _without(_table(plain, "train"), others)}
    return plain


def _table(plain: dict[str, Any], name: str) -> dict[str, Any]:
    found = plain.get(name)
    return found if isinstance(found, dict) else {}


def _without(table: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in names}


def _of_dataset(dataset: str, settings: Sequence[str]) -> dict[str, Any]:
    """Return the shipped study of this name, or the one for folders with this folder in it."""
    folder = Path(dataset).expanduser()
    if dataset in shipped_studies() and dataset != "folder":
        return shipped_study(dataset)
    if not folder.is_dir():
        names = ", ".join(known for known in shipped_studies() if known != "folder")
        message = f"--dataset must be one of {names}, or a folder of images; got {dataset!r}"
        raise SpecError(message)
    plain = shipped_study("folder")
    search = _table(with_settings({}, settings), "search")
    if search.get("space") == "binary":
        others = _without(plain["search"], ("known", "rows"))
        plain["search"] = others | _binary(plain["search"])
    plain["data"]["dataset"] = str(folder)
    plain["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._") or "folder"
    return plain


def _absolute(plain: dict[str, Any]) -> dict[str, Any]:
    """Make the paths of a specification absolute, since workers start in other folders."""
    paths = (("data", "dataset"), ("data", "root"), ("model", "weights"))
    for table, key in paths:
        value = plain.get(table, {}).get(key)
        if isinstance(value, str) and Path(value).expanduser().exists() and _is_path(table, value):
            plain[table][key] = str(Path(value).expanduser().resolve())
    return plain


def _is_path(table: str, value: str) -> bool:
    """Tell a path from a name that a file of the current folder happens to have."""
    names = {"timm", "shipped", "random"} if table == "model" else set(shipped_studies())
    return value not in names
