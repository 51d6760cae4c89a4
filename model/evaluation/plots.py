"""Line charts as pictures, drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

CHART_SIZE = (720, 480)
"""Width and height of a chart in pixels."""

CURVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Distinguishable for colour-blind readers, too (Okabe and Ito)."""

_MARGIN = 48
_GRID_COLOUR = "#dddddd"
_LINE_WIDTH = 2
_LEGEND_LINE = 20

Points = Sequence[tuple[float, float]]
Range = tuple[float, float]


def line_chart(
    curves: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    x_range: Range | None = None,
    y_range: Range | None = None,
) -> Image.Image:
    """A chart of `CHART_SIZE` with a curve per name, a grid at round numbers, and a legend above.

    Args:
        curves: points (x, y) in the order of drawing; a curve of one point is drawn as a dot.
        x_label, y_label: what the axes show.
        x_range, y_range: the ends of the axes; those of the points if None.

    Raises:
        ValueError: if there is no point to draw.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError("no points to draw")
    x_low, x_high = x_range or _ends([x for x, _ in points])
    y_low, y_high = y_range or _ends([y for _, y in points])
    width, height = CHART_SIZE
    left, right, top, bottom = _MARGIN, width - 16, 16 + _LEGEND_LINE, height - _MARGIN
    image = Image.new("RGB", CHART_SIZE, "white")
    draw = ImageDraw.Draw(image)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (right - left) * (x - x_low) / (x_high - x_low),
            bottom - (bottom - top) * (y - y_low) / (y_high - y_low),
        )

    for value in round_numbers(y_low, y_high):
        draw.line([place(x_low, value), place(x_high, value)], fill=_GRID_COLOUR)
        x, y = place(x_low, value)
        draw.text((x - 6, y), f"{value:g}", fill="black", anchor="rm")
    for value in round_numbers(x_low, x_high):
        draw.line([place(value, y_low), place(value, y_high)], fill=_GRID_COLOUR)
        x, y = place(value, y_low)
        draw.text((x, y + 8), f"{value:g}", fill="black", anchor="mt")
    draw.text(((left + right) / 2, height - 8), x_label, fill="black", anchor="mb")
    draw.text((left + 6, top + 4), y_label, fill="black")
    legend = float(left)
    for number, (name, curve) in enumerate(curves.items()):
        colour = CURVE_COLOURS[number % len(CURVE_COLOURS)]
        placed = [place(x, y) for x, y in curve]
        if len(placed) > 1:
            draw.line(placed, fill=colour, width=_LINE_WIDTH, joint="curve")
        elif placed:
            draw.circle(placed[0], 2 * _LINE_WIDTH, fill=colour)
        draw.line([(legend, _LEGEND_LINE), (legend + 20, _LEGEND_LINE)], fill=colour, width=_LINE_WIDTH)
        draw.text((legend + 26, _LEGEND_LINE), name, fill="black", anchor="lm")
        legend += 26 + draw.textlength(name) + 20
    return image


def stacked(charts: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one width, one below the other."""
    image = Image.new("RGB", (charts[0].width, sum(chart.height for chart in charts)), "white")
    top = 0
    for chart in charts:
        image.paste(chart, (0, top))
        top += chart.height
    return image


def round_numbers(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten, within [low, high].

    Example:
        >>> round_numbers(0, 1)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [round(number * step, 12) for number in range(first, last + 1)]
    raise AssertionError("unreachable: a step of 20 powers gives fewer than `most` numbers")


def _ends(values: Sequence[float]) -> Range:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
