"""Study: what is searched, for how long, from which recipes, and with what advice.

The studies that come with the package are here, too: one TOML file per dataset.
"""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Final, Literal

from pydantic import Field, field_validator

from nbtl_search.errors import SpecError
from nbtl_search.spec.recipe import (
    AtLeastOne,
    AugmentSettings,
    Count,
    DataSettings,
    Dials,
    Facts,
    Fraction,
    KnownRecipe,
    MethodSettings,
    ModelSettings,
    Positive,
    Recipe,
    SettingValue,
    TrainSettings,
)
from nbtl_search.spec.values import Value

Regime = Literal["suited", "unsuited", "borderline", "unknown"]


class Prior(Value):
    """Where in a dial's range start-up points fall more often; the whole range stays possible."""

    low: SettingValue = Field(description="a number, 'all', or a fraction of the blocks")
    high: SettingValue
    weight: Fraction = Field(0.5, description="share of the points that are drawn in [low, high]")
    reason: str = ""


class Advised(Value):
    """Advice as a study holds it: filled in by `create`, and never part of its fingerprint."""

    regime: Regime = "unknown"
    evidence: tuple[str, ...] = Field((), description="lines that say what it was concluded from")
    recipes: tuple[KnownRecipe, ...] = Field((), description="tried after the study's own")
    prior: dict[str, Prior] = Field(default_factory=dict, description="by dial")


_MOST_REASONS: Final = 6


class Fork(Value):
    """What a fork took over from another study, as it was then; never part of a specification."""

    source: str = Field(description="the name of the study that was forked")
    n_carried: Count = Field(0, description="its trials that the sampler starts from")
    left_out: dict[str, Count] = Field(
        default_factory=dict, description="how many others it had, by reason, the commonest first"
    )
    recipes: tuple[KnownRecipe, ...] = Field(
        (), description="its best, tried after the known ones where no trial is comparable"
    )

    @property
    def n_trials(self) -> int:
        """Return how many trials the source had."""
        return self.n_carried + sum(self.left_out.values())

    def why_left_out(self) -> list[str]:
        """Return the commonest reasons, such as 'outside the new space: lr_high (3)'."""
        n_all = self.n_trials
        reasons = [
            f"{reason} ({'all ' if n == n_all else ''}{n})" for reason, n in self.left_out.items()
        ]
        n_rest = sum(list(self.left_out.values())[_MOST_REASONS:])
        return reasons[:_MOST_REASONS] + ([f"other reasons ({n_rest})"] if n_rest else [])


STUDY_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def _is_none(value: Any) -> bool:
    return value is None


class Budget(Value):
    """When a study ends: at the first of these that is reached."""

    n_trials: AtLeastOne = Field(40, description="finished trials, pruned ones included")
    epochs: int | None = Field(None, ge=1, description="granted to all trials, never more")
    gpu_h: Positive | None = Field(
        None, description="nothing is granted after this many slot-hours"
    )
    wall_clock_h: Positive | None = Field(
        None, description="nothing is granted after this many hours"
    )

    def describe(self) -> str:
        """Return the limits that are set, such as '40 trials or 12 hours'."""
        limits = [f"{self.n_trials} trials"]
        limits += [f"{self.epochs} epochs"] if self.epochs is not None else []
        limits += [f"{self.gpu_h:g} slot-hours"] if self.gpu_h is not None else []
        limits += [f"{self.wall_clock_h:g} hours"] if self.wall_clock_h is not None else []
        return " or ".join(limits)


class Row(Value):
    """A change to one row of the search space: new bounds, options, or one fixed value."""

    low: float | None = None
    high: float | str | None = None
    options: tuple[SettingValue, ...] | None = None
    fixed: SettingValue | None = None


AUDIT: Final = 0.1


class Pruning(Value):
    """Asynchronous successive halving (promotion type), at fixed fractions of the schedule."""

    rungs: tuple[Fraction, ...] = Field(
        (0.25,), description="fractions of the epochs at which trials pause; () = never"
    )
    reduction: float = Field(3.0, gt=1, description="one in so many goes on from each rung")
    min_epochs: Count = Field(3, description="no rung before this epoch")
    min_updates: Count = Field(20, description="no rung before this many updates")
    min_peers: int = Field(3, ge=1, description="none goes on while fewer trials are at its rung")
    audit: Fraction = Field(
        AUDIT,
        description="share of the trials that run to their end whatever a rung says, drawn by lot",
        exclude_if=lambda share: share == AUDIT,
    )


REPEATS: Final = 0.25


class SearchSettings(Value):
    """What is searched, and how."""

    space: Literal["binary", "paper", "extended"] = Field(
        "paper", description="a named search space"
    )
    rows: dict[str, Row] = Field(default_factory=dict, description="changes to its rows")
    seed: Count = Field(0, description="of the sampler; each ask adds its trial's number")
    n_startup: Count = Field(8, description="space-filling trials before the sampler's model")
    pruning: Pruning = Pruning()
    repeats: Fraction = Field(
        REPEATS,
        description="share of the epochs that may go to further seeds of the best recipes",
        exclude_if=lambda share: share == REPEATS,
    )
    known: tuple[KnownRecipe, ...] = Field(
        (KnownRecipe(name="default"),), description="enqueued first; the first is the baseline"
    )

    @field_validator("known")
    @classmethod
    def _distinct(cls, known: tuple[KnownRecipe, ...]) -> tuple[KnownRecipe, ...]:
        names = [recipe.name for recipe in known]
        if len(set(names)) < len(names):
            message = f"the names of known recipes must differ, got {names}"
            raise ValueError(message)
        if names[:1] != ["default"]:
            message = f"the first known recipe must be named 'default', got {names}"
            raise ValueError(message)
        return known


class StudySpec(Value):
    """Everything that defines a study; one TOML file, one JSON text in the database."""

    name: str = Field(
        pattern=STUDY_NAME,
        description="letters, digits, '.', '_', '-'; at most 100 of them",
    )
    description: str = Field("", description="shown in the dashboard")
    data: DataSettings
    model: ModelSettings = ModelSettings()
    augment: AugmentSettings = AugmentSettings()
    train: TrainSettings = TrainSettings()
    compat: Literal["paper", "authors"] = "paper"
    methods: MethodSettings = Field(
        MethodSettings(), exclude_if=lambda methods: methods == MethodSettings()
    )
    search: SearchSettings = SearchSettings()
    budget: Budget = Budget()
    facts: Facts | None = Field(None, description="filled in by `create`")
    advice: Advised | None = Field(
        None, description="filled in by `create` where measures exist", exclude_if=_is_none
    )

    @field_validator("data")
    @classmethod
    def _judged_by_unseen_images(cls, data: DataSettings) -> DataSettings:
        if data.train_on != "train":
            message = (
                "a search judges by validation images that it does not train on: train_on must be "
                f"'train' in a study, got {data.train_on!r}; leave it out, or train one recipe "
                "with it (nbtl-search train)"
            )
            raise ValueError(message)
        return data

    def with_facts(self, facts: Facts) -> "StudySpec":
        """Return it with what was measured, and with the settings that wait for the budget.

        Known recipes that fit the classifier first are left out where that cannot be. Runs of few
        updates may have another default.

        Raises:
            SpecError: the default is one that fits the classifier first, which cannot be.
        """
        n_updates = self.train.epochs * self.train.updates_per_epoch(facts.n_train)
        default, *others = self.search.known
        if not facts.fits_head:
            if default.dials.get("head_start") == "logistic":
                message = (
                    "the default recipe must be one that this network can train, got head_start = "
                    "'logistic', which needs pre-trained weights and a classifier of one linear "
                    "layer; leave it out"
                )
                raise SpecError(message)
            others = [one for one in others if one.dials.get("head_start") != "logistic"]
        known = _default_first((default, *others), n_updates)
        return self.replace(
            facts=facts,
            augment=self.augment.for_updates(n_updates),
            search=self.search.replace(known=known),
        )

    def recipe(self, dials: Dials) -> Recipe:
        """Return the whole recipe of a trial with these dials."""
        return Recipe(
            data=self.data,
            model=self.model,
            augment=self.augment,
            train=self.train,
            dials=dials,
            compat=self.compat,
            methods=self.methods,
        )

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that differ where the result can differ.

        Name, description, reasons, budget and the number of loader processes do not count, nor does
        advice, which changes with what the database holds. Where the facts are known, the contents
        of data and weights count, and the places they were read from do not.
        """
        plain = self.model_dump(mode="json", exclude={"name", "description", "budget", "advice"})
        del plain["train"]["n_loaders"]
        for known in plain["search"]["known"]:
            del known["reason"]
        if self.facts is not None:
            for key in ("dataset", "root"):
                del plain["data"][key]
            del plain["model"]["weights"]
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: "StudySpec") -> list[str]:
        """Name the settings in which two specifications differ, as dotted paths with values."""
        ours, theirs = _flat(self.plain()), _flat(other.plain())
        return [
            f"{key}: {ours.get(key)!r} != {theirs.get(key)!r}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]


def _default_first(known: Sequence[KnownRecipe], n_updates: int) -> tuple[KnownRecipe, ...]:
    """Return the recipes with the one as default that is for runs of so many updates."""
    default, *others = known
    chosen = min(
        (one for one in others if one.default_below > n_updates),
        key=lambda one: one.default_below,
        default=default,
    )
    former = default.replace(name=f"default-from-{chosen.default_below}-updates")
    # Nothing waits for the updates any more: asked again, a study has the default that it has.
    rest = [former if one is chosen else one.replace(default_below=0) for one in others]
    return (chosen.replace(name=default.name, default_below=0), *rest)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def shipped_studies() -> dict[str, Traversable]:
    """Return the TOML file of each shipped study by the study's name, in order of names.

    In a wheel they lie inside the package; in a checkout, beside it.
    """
    package = resources.files("nbtl_search")
    inside = package.joinpath("studies")
    folder = inside if inside.is_dir() else package.joinpath("..", "studies")
    if not folder.is_dir():
        return {}
    files = [file for file in folder.iterdir() if file.name.endswith(".toml")]
    return {file.name.removesuffix(".toml"): file for file in sorted(files, key=_name)}


def shipped_study(name: str) -> dict[str, Any]:
    """Return a shipped study as plain data, ready for changes and `StudySpec.parse`.

    Raises:
        SpecError: no study of this name is shipped.
    """
    studies = shipped_studies()
    if name not in studies:
        message = f"a shipped study must be one of {', '.join(studies)}; got {name!r}"
        raise SpecError(message)
    return tomllib.loads(studies[name].read_text("utf-8"))


def _name(file: Traversable) -> str:
    return file.name
