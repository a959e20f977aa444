"""How well the weights fit the images, and what the study made of it."""

from collections.abc import Mapping

from nbtl_search.advice import conclude
from nbtl_search.reports.content import Content
from nbtl_search.reports.markup import paragraph, table, text
from nbtl_search.reports.table import (
    Row,
    Sheet,
    number,
    remark,
    words,
)
from nbtl_search.spec import TITLES, Diagnosis


def fit(content: Content, drawn: Mapping[str, str]) -> str:  # noqa: ARG001  (as all sections)
    """Return the measures, what follows from them, and the advice that the study began with."""
    diagnosis, advice = content.diagnosis, content.spec.advice
    parts = []
    if diagnosis is not None:
        parts = [_lines(conclude(diagnosis).evidence), table(measures(content)), _about(diagnosis)]
    if advice is not None:
        tried = [f"{recipe.name}: {recipe.reason}" for recipe in advice.recipes]
        often = [
            f"{dial} {prior.low} to {prior.high}, {100 * prior.weight:.0f} % of the start-up "
            f"points: {prior.reason}"
            for dial, prior in advice.prior.items()
        ]
        when = f"When the study was made, the weights looked {advice.regime}."
        parts += [paragraph(when)]
        parts += [paragraph("Tried early, never pruned:"), _lines(tried)] if tried else []
        parts += [paragraph("Looked at more often, to begin with:"), _lines(often)] if often else []
    return "\n".join(parts)


def measures(content: Content) -> Sheet:
    """Return the measures of the latest diagnosis."""
    diagnosis = content.diagnosis
    rows: list[Row] = []
    for measure in () if diagnosis is None else diagnosis.measures:
        settings = ", ".join(f"{key} {value}" for key, value in measure.settings.items())
        rows.append(
            {
                "measure": measure.name,
                "title": TITLES.get(measure.name, measure.name),
                "value": measure.value,
                "null": measure.null,
                "remark": measure.reason or settings,
            }
        )
    return Sheet(
        name="measures",
        title="How well the weights fit the images",
        rows=tuple(rows),
        columns=(
            words("measure", "title"),
            number("value", "value", ".4g"),
            number("without information", "null", ".4g"),
            remark("how, or why not", "remark"),
        ),
    )


def _about(diagnosis: Diagnosis) -> str:
    return paragraph(
        f"{diagnosis.n_images} images of the {diagnosis.split} split, {diagnosis.n_classes} "
        f"classes, {diagnosis.n_features} features ({diagnosis.layer}) at {diagnosis.image_px} px; "
        f"accuracies on {diagnosis.n_val} validation images. Test images were not opened."
    )


def _lines(lines: tuple[str, ...] | list[str]) -> str:
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"
