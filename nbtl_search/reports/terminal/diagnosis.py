"""Diagnosis in a terminal of 80 columns: every measure, and what follows from them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from nbtl_search import escaping
from nbtl_search.advice import conclude
from nbtl_search.paper.tables import paper_tables
from nbtl_search.reports.table import Column, Row, Table, duration, terminal, text_of
from nbtl_search.space.regimes import survey_regime
from nbtl_search.spec import TITLES, Diagnosis, Measured

MEANINGS: Final[Mapping[str, str]] = {
    "fixed_accuracy": "a linear classifier on frozen features",
    "random_accuracy": "the same network without transfer",
    "fisher": "spread between classes over spread within; compare with chance",
    "emd": "how far the classes lie from the source's; less is closer",
    "emd_similarity": "the same as exp(-gamma x EMD); no ground for advice",
    "emd_scale_free": "the same in units of the prototypes' length",
    "emd_classifier_rows": "a stand-in without source images; not comparable with EMD",
    "logme": "evidence of a linear model of the labels; more is better",
    "hscore": "feature variance that the classes explain; at most classes - 1",
    "hscore_regularised": "the same with a shrunk covariance: safer with few images",
    "leep": "log-likelihood of the labels given source classes; 0 is best",
    "nce": "the same by the source class alone; 0 is best",
    "transrate": "coding rate that knowing the class saves; more is better",
    "gbc": "overlap of the classes as Gaussians; 0 is none",
    "sfda": "posterior of the true class when classes are made to mix; 1 is best",
}
_PAPER: Final[Mapping[str, str]] = {
    "fixed_accuracy": "fixed_features_acc",
    "random_accuracy": "random_init_acc",
    "fisher": "normalised_fisher_score",
    "emd_similarity": "emd_domain_similarity",
}
"""Columns of the paper's table 1."""
_SHORT: Final = {"caltech": "Caltech", "dtd": "DTD", "cars": "Cars", "aircraft": "Aircraft"}


def render(diagnosis: Diagnosis) -> RenderableType:
    """Return a diagnosis as a table of at most 80 columns, and what is concluded from it.

    Args:
        diagnosis: what was measured.
    """
    return Group(
        *(Text(escaping.terminal(line)) for line in _about(diagnosis)),
        "",
        _measures(diagnosis),
        "",
        *(Text(escaping.terminal(line)) for line in _conclusion(diagnosis)),
    )


def _about(diagnosis: Diagnosis) -> Iterator[str]:
    yield (
        f"{diagnosis.dataset}: {diagnosis.n_images} {diagnosis.split} images of "
        f"{diagnosis.n_classes} classes, {diagnosis.n_val} to validate"
    )
    yield (
        f"{diagnosis.model} at {diagnosis.image_px} px, {_layer(diagnosis)}, weights "
        f"{diagnosis.weights_digest[:12]}"
    )
    yield f"measured in {duration(diagnosis.seconds)} ({diagnosis.device})"


def _layer(diagnosis: Diagnosis) -> str:
    where = diagnosis.layer if not diagnosis.layer.isdigit() else f"block {diagnosis.layer}"
    return f"{diagnosis.n_features} features ({where})"


def _measures(diagnosis: Diagnosis) -> RenderableType:
    rows: tuple[Row, ...] = tuple(
        {
            "measure": TITLES.get(measure.name, measure.name),
            "value": _number(measure, measure.value),
            "null": _number(measure, measure.null),
            "meaning": _meaning(measure),
            "is_known": measure.value is not None,
        }
        for measure in diagnosis.measures
    )
    columns = (
        Column(title="measure", show=_shown("measure"), is_text=True, max_width=22),
        Column(title="value", show=_shown("value")),
        Column(title="chance", show=_shown("null")),
        Column(title="what it means", show=_shown("meaning"), is_text=True),
    )
    made = Table(name="measures", title="Measures", rows=rows, columns=columns)
    return terminal(made, gap=2, emphasis=lambda row: "" if row["is_known"] else "dim")


def _shown(key: str) -> Callable[[Row], str]:
    return lambda row: str(row[key])


def _meaning(measure: Measured) -> str:
    if measure.value is None:
        return f"none: {text_of(measure.reason)}"
    lines = [MEANINGS.get(measure.name, "")]
    if measure.settings.get("budget") == "reduced":
        lines.append(f"{_budget(measure)}: a reduced budget")
    if measure.name == "fisher" and measure.has_few_images:
        lines.append("fewer images than features: its size is the ridge's, not the images'")
    elif measure.name in _PAPER:
        lines.append(f"paper: {', '.join(_of_the_paper(_PAPER[measure.name]))}")
    return "\n".join(line for line in lines if line)


def _budget(measure: Measured) -> str:
    budget = f"{measure.settings.get('epochs', '?')} epochs"
    updates = measure.settings.get("updates")
    return budget if updates is None else f"{budget}, {updates} updates"


def _of_the_paper(column: str) -> Iterator[str]:
    table = paper_tables()["table1"]
    place = table["columns"].index(column)
    for key, name in _SHORT.items():
        yield f"{name} {table['rows'][key][place]:g}"


def _number(measure: Measured, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if measure.name.endswith("_accuracy") else f"{value:.4g}"


def _conclusion(diagnosis: Diagnosis) -> Iterator[str]:
    conclusion = conclude(diagnosis)
    yield f"conclusion: {conclusion.regime}"
    for line in conclusion.evidence:
        yield f"- {line}"
    if conclusion.regime in {"suited", "unsuited"}:
        start = survey_regime(
            n_train=diagnosis.n_images,
            n_classes=diagnosis.n_classes,
            similar=conclusion.regime == "suited",
        )
        yield f"the survey's recipe for such a target: nbtl-search create ... --start {start}"
