"""Learning curve of one trial, as a small SVG for its page in the dashboard."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from nbtl_search import escaping
from nbtl_search.spec import Epoch, best_epoch

WIDTH_PX: Final = 640
HEIGHT_PX: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 34, 44
_STEPS: Final = (1, 2, 5, 10)
_OPEN: Final = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" '
    f'width="{WIDTH_PX}" height="{HEIGHT_PX}" font-family="sans-serif" font-size="12" fill="#444">'
)


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """A range with round ends, and where its values lie in the picture."""

    low: float
    high: float
    step: float
    start_px: float
    end_px: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start_px + share * (self.end_px - self.start_px), 1)

    def ticks(self) -> list[float]:
        n = round((self.high - self.low) / self.step)
        return [self.low + i * self.step for i in range(n + 1)]


def draw(
    epochs: Sequence[Epoch], *, title: str, n_epochs: int, reference: Sequence[Epoch] = ()
) -> str:
    """Return an SVG of validation top-1 over the epochs.

    Args:
        epochs: of the trial; those without validation are left out.
        title: text above the curve.
        n_epochs: length of the schedule, and of the axis.
        reference: epochs of the default recipe, drawn faint for comparison.
    """
    x, y = _axes([*epochs, *reference], n_epochs=n_epochs)
    return "\n".join(
        [
            _OPEN,
            f'<rect width="{WIDTH_PX}" height="{HEIGHT_PX}" fill="#fff"/>',
            f'<text x="{_LEFT}" y="20" font-size="14" fill="#222">{escaping.html(title)}</text>',
            *_grid(x, y),
            *_line(reference, x, y, color="#e07b00", width=1.2),
            *_line(epochs, x, y, color="#1f77b4", width=2.2),
            *_best(epochs, x, y),
            *_key(reference),
            "</svg>",
        ]
    )


def _axes(epochs: Sequence[Epoch], *, n_epochs: int) -> tuple[_Axis, _Axis]:
    last = max([n_epochs, 2, *(epoch.epoch for epoch in epochs)])
    tops = [top1 for _, top1 in _validated(epochs)] or [0.0, 100.0]
    step = _round_step((max(tops) - min(tops)) or 10.0, n=8)
    low = max(0.0, math.floor(min(tops) / step) * step)
    high = min(100.0, max(math.ceil(max(tops) / step) * step, low + step))
    low = min(low, high - step)
    x_step = max(1.0, _round_step(last - 1, n=10))
    x = _Axis(low=1, high=last, step=x_step, start_px=_LEFT, end_px=WIDTH_PX - _RIGHT)
    y = _Axis(low=low, high=high, step=step, start_px=HEIGHT_PX - _BOTTOM, end_px=_TOP)
    return x, y


def _validated(epochs: Sequence[Epoch]) -> list[tuple[int, float]]:
    return [(epoch.epoch, epoch.val_top1) for epoch in epochs if epoch.val_top1 is not None]


def _round_step(span: float, *, n: int) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that cuts the span into <= n."""
    power = 10.0 ** math.floor(math.log10(span / n))
    return next(step * power for step in _STEPS if step * power * n >= span * (1 - 1e-9))


def _grid(x: _Axis, y: _Axis) -> Iterator[str]:
    for value in y.ticks():
        yield (
            f'<path d="M{_LEFT} {y.at(value)}H{WIDTH_PX - _RIGHT}" stroke="#e6e6e6"/>'
            f'<text x="{_LEFT - 6}" y="{y.at(value) + 4}" text-anchor="end">{value:g}</text>'
        )
    ticks = {1, *(int(x.step * i) for i in range(1, int(x.high / x.step) + 1))}
    base = HEIGHT_PX - _BOTTOM
    for epoch in sorted(ticks):
        if epoch == 1 or epoch - 1 >= x.step / 2:
            yield (
                f'<path d="M{x.at(epoch)} {base}v4" stroke="#999"/>'
                f'<text x="{x.at(epoch)}" y="{base + 17}" text-anchor="middle">{epoch}</text>'
            )
    yield f'<path d="M{_LEFT} {base}H{WIDTH_PX - _RIGHT}" stroke="#999"/>'
    middle = (_LEFT + WIDTH_PX - _RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT_PX - 10}" text-anchor="middle">epoch</text>'
    yield f'<text x="{_LEFT - 38}" y="{_TOP - 14}">%</text>'


def _line(
    epochs: Sequence[Epoch], x: _Axis, y: _Axis, *, color: str, width: float
) -> Iterator[str]:
    places = [(x.at(epoch), y.at(top1)) for epoch, top1 in _validated(epochs)]
    if not places:
        return
    points = " ".join(f"{left},{top}" for left, top in places)
    yield f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width}"/>'
    if len(places) <= 60:
        for left, top in places:
            yield f'<circle cx="{left}" cy="{top}" r="{width}" fill="{color}"/>'


def _best(epochs: Sequence[Epoch], x: _Axis, y: _Axis) -> Iterator[str]:
    """Ring the epoch that the trial's value comes from: the first with the highest accuracy."""
    best = best_epoch(epochs)
    if best is not None and best.val_top1 is not None:
        place = f'cx="{x.at(best.epoch)}" cy="{y.at(best.val_top1)}"'
        yield f'<circle {place} r="6.5" fill="none" stroke="#2a9d3a" stroke-width="2"/>'


def _key(reference: Sequence[Epoch]) -> Iterator[str]:
    place = f'y="20" text-anchor="end" x="{WIDTH_PX - _RIGHT}"'
    if reference:
        yield f'<text {place} fill="#b86500">orange: the default recipe</text>'
