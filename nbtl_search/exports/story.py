"""How an exported model came about: the values its card and its config.json are made of."""

from dataclasses import dataclass

from nbtl_search.spec import Dials, Recipe


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one recipe gave on the test images; accuracies in percent, None if never measured."""

    name: str
    n_seeds: int
    top1_mean: float | None
    top1_std: float | None
    """Sample standard deviation over the seeds (n - 1)."""
    ten_crop_mean: float | None
    ten_crop_std: float | None
    ensemble_top1: float | None
    """Of the mean softmax over the seeds and ten crops."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Mean test top-1 of the winner minus that of the default, paired by seed, in points."""

    n_seeds: int
    mean: float
    low: float | None
    high: float | None
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Story:
    """How a model came about, and what its recipe is worth."""

    study: str
    final_study: str
    chosen: Outcome
    is_default: bool
    """Whether the recipe is the default one."""
    is_winner: bool
    """Whether the recipe won; the default may have."""
    default: Outcome | None
    """None where the recipe is the default one itself."""
    gain: Gain | None
    """Of the winner over the default; None where they are one recipe, or nothing was tested."""
    n_test_images: int | None
    n_readings: int
    """How often the study's test images were opened, this time included."""
    n_candidates: int
    n_confirm_seeds: int
    tied_with_winner: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run whose weights are exported; its own accuracies in percent."""

    seed: int
    test_top1: float | None
    test_ten_crop_top1: float | None


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
