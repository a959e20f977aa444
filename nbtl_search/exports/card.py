"""Model card (README.md) of an exported model: Markdown with the Hugging Face hub's front matter.

Its text is the template beside this module; here is what the template is given.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import jinja2
import yaml

from nbtl_search import escaping
from nbtl_search.spec import Dials, Recipe
from nbtl_search.spec.verdict import Entry, FinalRun, Summary, Verdict


@dataclass(frozen=True, kw_only=True)
class ModelCardData:
    """What the card and config.json say of a model, besides its run: one recipe of a verdict."""

    study: str
    verdict: Verdict
    chosen: Entry
    """The entry of the verdict whose weights are exported."""

    @property
    def default(self) -> Entry | None:
        """Return what the chosen recipe is compared with; None where it is the default itself."""
        return None if self.is_default else self.verdict.entries[0]

    @property
    def is_default(self) -> bool:
        """Tell whether the recipe is the default one."""
        return self.chosen == self.verdict.entries[0]

    @property
    def is_winner(self) -> bool:
        """Tell whether the recipe won; the default may have."""
        return self.chosen == self.verdict.winning

    @property
    def runs(self) -> list[FinalRun]:
        """Return the runs of the recipe in the test stage, by seed."""
        return sorted(
            (
                run
                for run in self.verdict.runs
                if run.stage == "test" and run.trials == self.chosen.trials
            ),
            key=lambda run: run.seed,
        )

    @property
    def n_test_images(self) -> int | None:
        """Return how many test images there are; None where none were scored."""
        return next((run.test.n_images for run in self.runs if run.test is not None), None)

    @property
    def n_averages(self) -> int:
        """Return how many candidates were averages of weights."""
        return sum(bool(each.averaged) for each in self.verdict.contenders)

    @property
    def n_trained(self) -> int:
        """Return how many candidates were recipes."""
        return len(self.verdict.contenders) - self.n_averages

    @property
    def tied_with_winner(self) -> list[str]:
        """Return the names of the candidates that validation did not tell from the winner."""
        return [each.name for each in self.verdict.contenders if each.is_tied_with_winner]


_MAX_LABELS: Final = 100


def write_card(
    data: ModelCardData,
    *,
    runs: Sequence[FinalRun],
    about: dict[str, Any],
    pretrained_licence: str,
    has_onnx: bool,
) -> str:
    """Return the model card; every name that a user chose is escaped.

    Args:
        data: how the model came about.
        runs: those whose weights it has: one, or those of a seed ensemble.
        about: the about.json of one of them.
        pretrained_licence: of the weights it started from, as timm has it, or 'unknown'.
        has_onnx: whether model.onnx lies beside the weights.
    """
    recipes = [Recipe.parse(each) for each in about.get("averaged", [about["recipe"]])]
    text = (
        _templates()
        .get_template("model_card.md.jinja")
        .render(
            data=data,
            runs=runs,
            is_ensemble=len(runs) > 1,
            about={"device": None, "precision": None} | about,
            entries=[entry for entry in (data.chosen, data.default) if entry is not None],
            gain=data.verdict.gain,
            n_readings=len(data.verdict.readings),
            recipes=[(describe_recipe(each), describe_methods(each)) for each in recipes],
            is_kept=recipes[0].dials.source_head == "keep",
            n_labels=_MAX_LABELS,
            pretrained_licence=pretrained_licence,
            has_onnx=has_onnx,
        )
    )
    return f"{front_matter(data)}\n\n{text}"


class _Quoting(yaml.SafeDumper):
    """YAML with every text in quotes: other readers take a name such as 1e3 for a number."""


_Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def front_matter(data: ModelCardData) -> str:
    """Return what the Hugging Face hub reads of a card: YAML between two rules."""
    fields: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "license": "other",
        "license_name": "unknown",
        "tags": ["image-classification", "timm", "transfer-learning", "nbtl-search"],
        "metrics": ["accuracy"],
    }
    single = data.chosen.single
    if single.mean is not None:
        name = " ".join(escaping.visible(data.study).split())
        metric = {
            "type": "accuracy",
            "name": f"test top-1 in percent, mean of {single.n} seeds",
            "value": round(single.mean, 4),
        }
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": "images"},
            "metrics": [metric],
        }
        fields["model-index"] = [{"name": name, "results": [result]}]
    plain = yaml.dump(fields, Dumper=_Quoting, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{plain}---"


@cache
def _templates() -> jinja2.Environment:
    """Return the templates, in which each expression is escaped for Markdown as it is written."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nbtl_search.exports"),
        # Jinja's own autoescape knows HTML alone. `finalize` sees every expression, none can be
        # forgotten, and the text of the template itself passes as it is.
        autoescape=False,  # noqa: S701
        finalize=lambda value: escaping.markdown(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"mean_std": _mean_std, "percent": _percent}
    return environment


def _mean_std(found: Summary) -> str:
    if found.mean is None:
        return "not measured"
    return f"{found.mean:.2f} %" if found.std is None else f"{found.mean:.2f} ± {found.std:.2f} %"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} %"


def describe_recipe(recipe: Recipe) -> str:
    """Return a paragraph that says how the network was trained."""
    dials, train = recipe.dials, recipe.train
    start = (
        "The whole network started from random weights (no transfer)."
        if recipe.model.weights == "random"
        else f"{_fresh(dials)} started fresh; every other layer from pre-trained weights."
    )
    low = (
        f"the first {dials.n_low} blocks {dials.lr_high * dials.lr_low_ratio:.3g}, the others "
        if dials.n_low
        else "the blocks "
    )
    head = dials.lr_high * dials.lr_head_ratio
    rates = f"Learning rates: {low}{dials.lr_high:.3g}, the classifier {head:.3g}."
    layers = "layers" if dials.source_head == "keep" else "blocks"  # its classifier is one more
    pull = (
        f"The first {dials.n_l2sp} {layers} were pulled to their pre-trained weights (L2-SP, "
        f"strength {dials.alpha:.3g}), the rest to zero (L2, strength {dials.beta:.3g})."
        if dials.n_l2sp and dials.alpha
        else f"All layers were pulled to zero (L2, strength {dials.beta:.3g})."
        if dials.beta
        else "No weight was penalised."
    )
    schedule = "decay in updates" if dials.decay_updates else f"{train.schedule} schedule"
    course = (
        f"{_optimiser(recipe)}, {train.epochs} epochs in batches of "
        f"{train.batch_size}, {schedule}; images of {recipe.data.image_px} px; "
        "the weights after the last epoch."
    )
    return f"{start} {rates} {pull} {course}"


def _optimiser(recipe: Recipe) -> str:
    if recipe.train.optimiser == "adamw":
        return f"AdamW with beta1 {recipe.dials.momentum:.3g} and penalties decoupled"
    return f"SGD with momentum {recipe.dials.momentum:.3g}"


def _fresh(dials: Dials) -> str:
    r = dials.reinit_layers
    if dials.source_head == "keep":
        return "The new layers on top of the kept source classifier"
    return "The classifier alone" if r == 1 else f"The last {r} layers, classifier included,"


def describe_methods(recipe: Recipe) -> tuple[str, ...]:
    """Return a sentence for each method that was on; none where all dials were usual."""
    return (*_layers(recipe), *_source(recipe), *_training(recipe))


def _layers(recipe: Recipe) -> Iterator[str]:
    dials, methods = recipe.dials, recipe.methods
    if dials.source_head == "keep":
        units = " and ".join(str(units) for units in methods.source_hidden)
        hidden = f", with hidden layers of {units} units" if units else ""
        yield (
            "Kept source classifier (Shermin et al., 2019): it stays part of the network, and the "
            f"new layers are on top of it{hidden}."
        )
    if dials.head_start == "logistic":
        yield (
            "Classifier fitted first (Kumar et al., 2022): it started from logistic regression on "
            "the features of the pre-trained weights."
        )
    if dials.layer_decay < 1:
        yield (
            f"Layer-wise rate decay: going down from the classifier, each block learned at "
            f"{dials.layer_decay:.3g} times the rate of the one above it."
        )
    if dials.frozen_layers:
        yield (
            f"Frozen layers: the first {dials.frozen_layers} blocks did not learn, and their "
            "running statistics stayed."
        )


def _source(recipe: Recipe) -> Iterator[str]:
    dials, methods = recipe.dials, recipe.methods
    if dials.delta != "off":
        weighed = (
            f"channels weighed by attention from {methods.delta_batches} batches"
            if dials.delta == "attention"
            else "all channels alike"
        )
        yield (
            f"DELTA (Li et al., 2019), {weighed}: of the last {methods.delta_taps} "
            "feature maps those that kept their weights were pulled to the source network's, "
            f"strength {dials.delta_alpha:.3g}, {methods.delta_reduction} over the batch."
        )
    if dials.distill:
        squared = ", times its square" if methods.distill_squared else ""
        seen = "augmented" if methods.distill_teacher == "online" else "they are"
        yield (
            "Distillation of the source's predictions of the images as "
            f"{seen}: weight {dials.distill:.3g}, temperature "
            f"{dials.distill_temperature:.3g}{squared}."
        )
    if dials.dtnh != "off":
        when = "where they would" if dials.dtnh == "conflict" else "always"
        what = {"tensor": "each tensor", "block": "each block", "global": "the whole network"}
        yield (
            "DTNH (Wan et al., 2019): the pulls to the source could not work against the task's "
            f"gradient; they were projected {when}, in {what[methods.dtnh_granularity]}."
        )


def _training(recipe: Recipe) -> Iterator[str]:
    dials, methods = recipe.dials, recipe.methods
    if dials.bss:
        yield (
            f"Batch spectral shrinkage (Chen et al., 2019): strength {dials.bss:.3g}, smallest "
            f"singular values shrunk: {methods.bss_k}."
        )
    if dials.stochnorm_p < 1:
        yield (
            "Stochastic normalisation (Kou et al., 2020): probability of the batch's statistics "
            f"{dials.stochnorm_p:.3g}; outside training it is plain batch norm."
        )
    if dials.decay_updates:
        yield (
            f"Decay in updates (Plested and Gedeon, 2022): rates times {dials.decay_factor:.3g} "
            f"every {dials.decay_updates} updates."
        )
