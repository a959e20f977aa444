"""How an exported model came about: the values its card and its config.json are made of.

The methods that were on in a run, in words: what its dials add to plain fine-tuning.

The model card of an exported model: Markdown with the Hugging Face hub's front matter.
"""

import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from nbtl_search.spec import Dials, Recipe
from nbtl_search.spec.verdict import Entry, FinalRun, Interval, Summary, Verdict


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
        return self.chosen.trial == self.verdict.entries[0].trial

    @property
    def is_winner(self) -> bool:
        """Tell whether the recipe won; the default may have."""
        return self.chosen.trial == self.verdict.winner

    @property
    def runs(self) -> list[FinalRun]:
        """Return the runs of the recipe in the test stage, by seed."""
        return sorted(
            (
                run
                for run in self.verdict.runs
                if run.stage == "test" and run.candidate == self.chosen.trial
            ),
            key=lambda run: run.seed,
        )

    @property
    def n_test_images(self) -> int | None:
        """Return how many test images there are; None where none were scored."""
        return next((run.test.n_images for run in self.runs if run.test is not None), None)

    @property
    def tied_with_winner(self) -> list[str]:
        """Return the names of the candidates that validation did not tell from the winner."""
        return [each.name for each in self.verdict.contenders if each.is_tied_with_winner]


def recipe_in_words(recipe: Recipe) -> str:
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
        f"SGD with momentum {dials.momentum:.3g}, {train.epochs} epochs in batches of "
        f"{train.batch_size}, {schedule}; images of {recipe.data.image_px} px; "
        "the weights after the last epoch."
    )
    return f"{start} {rates} {pull} {course}"


def _fresh(dials: Dials) -> str:
    r = dials.reinit_layers
    if dials.source_head == "keep":
        return "The new layers on top of the kept source classifier"
    return "The classifier alone" if r == 1 else f"The last {r} layers, classifier included,"


def methods_in_words(recipe: Recipe) -> tuple[str, ...]:
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


N_LABELS_LISTED = 100


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
    recipe = Recipe.parse(about["recipe"])
    parts = [
        front_matter(data),
        f"# {escape(data.study)}: {escape(about['model'])}, {len(about['classes'])} classes",
        _summary(data, runs),
        _usage(runs, about, has_onnx=has_onnx, is_kept=recipe.dials.source_head == "keep"),
        _results(data, runs),
        _choice(data),
        f"## Recipe\n\n{recipe_in_words(recipe)}",
        *_methods(recipe),
        "Every setting is in `config.json`, under `nbtl_search.recipe`, without its folders.",
        _labels(about["classes"]),
        _limits(data),
        _licences(about, pretrained_licence),
        _versions(about),
    ]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown and HTML show as it is, in one line."""
    line = "".join(c if c.isprintable() or c in "\u200c\u200d" else " " for c in text)
    return re.sub(r"([\\`*_{}\[\]()#!|~$^@])", r"\\\1", html.escape(" ".join(line.split())))


def front_matter(data: ModelCardData) -> str:
    """Return what the Hugging Face hub reads; strings in JSON's form, which is YAML's as well."""
    lines = [
        "library_name: timm",
        "pipeline_tag: image-classification",
        "license: other",
        "license_name: unknown",
        "tags: [image-classification, timm, transfer-learning, nbtl-search]",
        "metrics: [accuracy]",
    ]
    if data.chosen.single.mean is not None:
        name = " ".join("".join(c if c.isprintable() else " " for c in data.study).split())
        metric = {
            "type": "accuracy",
            "name": f"test top-1 in percent, mean of {data.chosen.single.n} seeds",
            "value": round(data.chosen.single.mean, 4),
        }
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": "images"},
            "metrics": [metric],
        }
        lines += ["model-index:", "- " + _flow({"name": name, "results": [result]})]
    return "\n".join(["---", *lines, "---"])


def _flow(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _summary(data: ModelCardData, runs: Sequence[FinalRun]) -> str:
    what = "the winning recipe" if data.is_winner else "the default recipe"
    which = (
        f"the run with seed {runs[0].seed}, the first of the test stage"
        if len(runs) == 1
        else f"all {len(runs)} runs of the test stage, to be averaged"
    )
    return (
        f"An image classifier, fine-tuned with `nbtl-search`. It is {what} of the study "
        f"{escape(data.study)}: {which}. Which run that is was settled before any result was "
        "known: **it is not the run that was best on the test images**, since to choose that one "
        "would be to select on them."
    )


_ONE = Template("""\
## Usage

$loading

```python
import timm
import torch
${also}from PIL import Image

model = timm.create_model("local-dir:$folder", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
with torch.inference_mode():
    image = transform(Image.open("photo.jpg").convert("RGB"))
    probabilities = model(image[None]).softmax(1)[0]
names = model.pretrained_cfg["label_names"]
print(names[int(probabilities.argmax())], float(probabilities.max()))
```

Or `nbtl-search predict $whole photo.jpg` from the shell.""")


_PLAIN = "A plain timm model: `timm` alone loads it."
_KEPT = (
    "A timm model that keeps its source classifier below new layers: `timm` loads it where the "
    "package `nbtl-search` is installed and `nbtl_search.transfer.kept_architecture` was imported, "
    "and refuses it as an unknown model elsewhere."
)
_KEPT_IMPORT = "import nbtl_search.transfer.kept_architecture  # teaches timm this architecture\n"


def _usage(
    runs: Sequence[FinalRun], about: dict[str, Any], *, has_onnx: bool, is_kept: bool
) -> str:
    many = len(runs) > 1
    text = _ONE.substitute(
        folder="THIS_FOLDER/seed-1" if many else "THIS_FOLDER",
        whole="THIS_FOLDER",
        loading=_KEPT if is_kept else _PLAIN,
        also=_KEPT_IMPORT if is_kept else "",
    )
    if many:
        text += (
            " That averages the probabilities of all members, which `ensemble.json` lists; a "
            "single member loads with timm as above."
        )
    if has_onnx:
        size = f"3, {about['image_format']['image_px']}, {about['image_format']['image_px']}"
        text += (
            f"\n\n`model.onnx` takes `images`, float32 (batch, {size}), normalised as by the "
            "transform above, and gives `logits`."
        )
    return text


def _results(data: ModelCardData, runs: Sequence[FinalRun]) -> str:
    if data.chosen.single.mean is None:
        return "## Results\n\nThe study has no test images: nothing was measured on any."
    rows = [_row(entry) for entry in (data.chosen, data.default) if entry is not None]
    table = [
        "| recipe | seeds | top-1, one crop | top-1, ten crops | ensemble, ten crops |",
        "|---|---|---|---|---|",
        *rows,
    ]
    own = [
        f"Seed {run.seed}: {_percent(run.test.top1 if run.test else None)} (one crop), "
        f"{_percent(run.test.ten_crop_top1 if run.test else None)} (ten crops)."
        for run in runs
    ]
    n_readings = len(data.verdict.readings)
    read = (
        "opened once, after every choice was made"
        if n_readings <= 1
        else f"opened {n_readings} times: what was chosen after the first may fit them"
    )
    said = (
        f"On {data.n_test_images} test images, {read}. "
        "Percent, mean ± sample standard deviation over seeds; the ensemble is the mean softmax."
    )
    return "\n\n".join(
        [
            "## Results",
            said,
            "\n".join(table),
            *([_gain(data.verdict.gain)] if data.verdict.gain else []),
            "What is in this folder: " + " ".join(own),
        ]
    )


def _row(entry: Entry) -> str:
    return (
        f"| {escape(entry.name)} | {entry.single.n} | {_spread(entry.single)} "
        f"| {_spread(entry.ten_crop)} | {_percent(entry.ensemble_top1)} |"
    )


def _spread(found: Summary) -> str:
    if found.mean is None:
        return "not measured"
    return f"{found.mean:.2f} %" if found.std is None else f"{found.mean:.2f} ± {found.std:.2f} %"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} %"


def _gain(gain: Interval) -> str:
    text = f"The winner's gain over the default, one crop: {gain.mean:+.2f} points"
    if gain.low is None or gain.high is None:
        return f"{text}; with {gain.n} pair of seeds nothing can be said of its spread."
    tie = " Zero lies inside: a tie." if gain.is_tie else ""
    return (
        f"{text}, {gain.confidence:.0%} confidence interval {gain.low:+.2f} to {gain.high:+.2f} "
        f"({gain.n} pairs of runs with equal seeds).{tie}"
    )


def _choice(data: ModelCardData) -> str:
    text = (
        f"## How it was chosen\n\nOf the search's best trials and the default recipe, "
        f"{len(data.verdict.contenders)} candidates in all, each was trained "
        f"{data.verdict.n_confirm_seeds} times with new seeds and judged on validation images. "
        "The winner has the highest lower confidence bound of the mean. Then it was trained on "
        "training and validation images, over new seeds again, and the test images were read."
    )
    if data.tied_with_winner:
        names = ", ".join(escape(name) for name in data.tied_with_winner)
        text += f" On the validation images it was not told apart from: {names}."
    return text


def _methods(recipe: Recipe) -> list[str]:
    listed = [f"* {method}" for method in methods_in_words(recipe)]
    return ["Methods beyond plain fine-tuning:\n\n" + "\n".join(listed)] if listed else []


def _labels(classes: Sequence[str]) -> str:
    listed = "\n".join(f"{i}. {escape(name)}" for i, name in enumerate(classes[:N_LABELS_LISTED]))
    more = len(classes) - N_LABELS_LISTED
    rest = f"\n\n… and {more} more, in `config.json`." if more > 0 else ""
    return f"## Classes\n\n{listed}{rest}"


def _limits(data: ModelCardData) -> str:
    spread = data.chosen.single.std
    seeds = f" (here by {spread:.2f} points, one standard deviation)" if spread is not None else ""
    return (
        "## Limits\n\n* The accuracies hold for images like those of the study. Photographs of "
        "another kind, camera or resolution will do worse.\n* The classifier knows its own "
        "classes only: an image of anything else gets one of them, too, often with a high "
        f"probability.\n* Probabilities are not calibrated.\n* Runs differ by their seed{seeds}: a "
        "smaller difference between two models says nothing."
    )


def _licences(about: dict[str, Any], pretrained: str) -> str:
    return (
        "## Licence\n\n**To be filled in by whoever passes this model on.** The images it was "
        "trained on have a licence of their own, and so have the pre-trained weights it started "
        f"from ({escape(about['model'])}; timm states for them: {escape(pretrained)}). Which terms "
        "this model may be passed on under follows from both; put them here and at the top of this "
        "file, in place of `other`."
    )


def _versions(about: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{escape(str(name))} {escape(str(version))}" for name, version in about["versions"].items()
    )
    return (
        f"## Made with\n\n{versions}; {escape(str(about['device']))}, "
        f"{escape(str(about['precision']))}."
    )
