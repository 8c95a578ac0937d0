"""Charts as inline SVG: no script, no external resource, readable from disk and on paper.

What belongs here: numbers to pictures. What does not: which numbers (`page`). Every text is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 200, 60, 34
_SPARK = 90, 18
_MOST_LABELS = 12


@dataclass(frozen=True)
class Bar:
    """One delivery in a chart over time."""

    label: str
    #: What a pointer over the bar shows.
    title: str
    #: CSS class and height of each part, from the bottom.
    parts: Sequence[tuple[str, float]]
    #: Drawn above the bar, e.g. for a failed delivery.
    mark: str = ""
    #: A limit that holds for this bar alone.
    limit: float | None = None


def bars_over_time(bars: Sequence[Bar], *, percent: bool = False) -> Markup:
    """Stacked bars, oldest first, with a scale; `percent`: values are shares."""
    if not bars:
        return Markup('<p class="none">No deliveries yet.</p>')
    tops = [sum(height for _, height in bar.parts) for bar in bars] + [bar.limit or 0 for bar in bars]
    top = _round_up(max(tops), percent=percent)
    step = (_WIDTH - _LEFT) / len(bars)
    drawn = [_bar(bar, _LEFT + place * step, min(step * 0.8, 48), top) for place, bar in enumerate(bars)]
    every = max(1, -(-len(bars) // _MOST_LABELS))
    labels = [
        _text(_LEFT + place * step, _HEIGHT + 14, bar.label) for place, bar in enumerate(bars) if place % every == 0
    ]
    scale = [_level(share * top, top, percent=percent) for share in (0, 0.5, 1)]
    size = f"0 -14 {_WIDTH} {_HEIGHT + _BOTTOM + 8}"
    return Markup(f'<svg viewBox="{size}" role="img">{"".join([*scale, *drawn, *labels])}</svg>')  # noqa: S704 - escaped


def sparkline(values: Sequence[tuple[str, float]], *, percent: bool = False) -> Markup:
    """A small line over time, oldest first: (what it belongs to, value); the last value has a dot."""
    if not values:
        return Markup("")
    top = max(value for _, value in values) or 1.0
    step = _SPARK[0] / max(1, len(values) - 1)
    points = [(place * step, _SPARK[1] * (1 - value / top)) for place, (_, value) in enumerate(values)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    name, last = values[-1]
    said = f"{name}: {last:.1%}" if percent else f"{name}: {last:,.0f}"
    return Markup(
        '<svg viewBox="-3 -3 {} {}" role="img"><title>{}</title><polyline points="{}"/><circle cx="{:.1f}" cy="{:.1f}" '
        'r="2.5"/></svg>'
    ).format(_SPARK[0] + 6, _SPARK[1] + 6, said, line, *points[-1])


# Drawn as plain text, which is many times faster than with Markup's own format; whatever is no number is escaped.


def _bar(bar: Bar, x: float, width: float, top: float) -> str:
    pieces, y = [], float(_HEIGHT)
    for name, height in bar.parts:
        tall = height / top * _HEIGHT
        y -= tall
        if tall:
            pieces.append(_rect(x, y, width, tall, name))
    if bar.limit is not None:
        at = _HEIGHT - bar.limit / top * _HEIGHT
        left, right = x - width * 0.1, x + width * 1.1
        pieces.append(f'<line class="limit" x1="{left:.1f}" x2="{right:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
    if bar.mark:
        pieces.append(_text(x, y - 3, bar.mark, "mark"))
    # An invisible full-height field, so that a bar of no height can be pointed at too.
    pieces.append(_rect(x, 0, width, _HEIGHT, "hit"))
    return f"<g><title>{escape(bar.title)}</title>{''.join(pieces)}</g>"


def _rect(x: float, y: float, width: float, height: float, name: str) -> str:
    return f'<rect class="{escape(name)}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _text(x: float, y: float, text: str, name: str = "label") -> str:
    return f'<text class="{escape(name)}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _level(value: float, top: float, *, percent: bool) -> str:
    y = _HEIGHT - value / top * _HEIGHT
    said = f"{value:.0%}" if percent and top > 0.05 else f"{value:.1%}" if percent else f"{value:,.0f}"  # noqa: PLR2004
    line = f'<line class="level" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="scale" x="{_LEFT - 6}" y="{y + 4:.1f}">{escape(said)}</text>'


def _round_up(value: float, *, percent: bool) -> float:
    """The next 1, 2 or 5 times a power of ten: the top of a scale."""
    if value <= 0:
        return 0.01 if percent else 1
    power = 1e-3 if percent else 1.0
    while power * 10 < value:
        power *= 10
    top = next(step * power for step in (1, 2, 5, 10) if step * power >= value)
    return min(top, 1.0) if percent else top
