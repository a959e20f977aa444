"""The methods that were on in a run, in words: what its dials add to plain fine-tuning."""

from collections.abc import Iterator

from nbtl_search.spec import Recipe


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
