"""Charts with logarithmic axes, drawn with Pillow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_SCALE = 2  # drawn larger and made smaller, for smooth lines
_WIDTH, _HEIGHT = 560, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 34, 44
_LINE = 17
_INK, _GREY, _PALE = (30, 30, 30), (110, 110, 110), (225, 225, 225)
_SHAPES = ("circle", "square", "diamond", "triangle", "cross")


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: in the legend.
        points: (x, y) or (x, y, low, high), above 0; the last two are drawn as a bar.
        colour: RGB.
        shape: number of the marker.
        line: whether the points are joined.
    """

    label: str
    points: Sequence[tuple[float, ...]]
    colour: tuple[int, int, int]
    shape: int = 0
    line: bool = True


@dataclass(frozen=True)
class Chart:
    """A panel: its title, axes and series; ticks_x are the only ones of the x axis where given.

    Attributes:
        bounds: ceilings, straight lines that meet where the first ends; the axes reach beyond that point.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    ticks_x: Sequence[float] = ()
    bounds: Sequence[Series] = ()


def draw(charts: Sequence[Chart], columns: int, note: str) -> Image.Image:
    """Panels of equal size in rows, each with its legend below, and a line of text under all of them."""
    legend = max(len(chart.series) + len(chart.bounds) for chart in charts)
    height = _HEIGHT + _LINE * ((legend + 1) // 2) + 12
    rows = -(-len(charts) // columns)
    size = (columns * _WIDTH * _SCALE, (rows * height + 26) * _SCALE)
    sheet = Image.new("RGB", size, "white")
    for number, chart in enumerate(charts):
        row, column = divmod(number, columns)
        _Panel(sheet, column * _WIDTH, row * height, chart).draw()
    ImageDraw.Draw(sheet).text((10 * _SCALE, (rows * height + 4) * _SCALE), note, _GREY, _font(12))
    return sheet.resize((size[0] // _SCALE, size[1] // _SCALE), Image.Resampling.LANCZOS)


class _Panel:
    def __init__(self, sheet: Image.Image, left: int, top: int, chart: Chart) -> None:
        self._draw = ImageDraw.Draw(sheet)
        self._left, self._top, self._chart = left, top, chart
        points = [point for series in chart.series for point in series.points]
        ridge = [bound.points[-1][0] / 2 for bound in chart.bounds[:1]]
        self._x = _limits([point[0] for point in points] + list(chart.ticks_x) + ridge)
        self._y = _limits([value for point in points for value in point[1:]])
        for bound in chart.bounds[:1]:
            self._y = (self._y[0], max(self._y[1], math.log10(bound.points[-1][1]) + 0.1))

    def draw(self) -> None:
        chart = self._chart
        self._text(_LEFT, 8, chart.title, 14, _INK)
        self._axes()
        for bound in chart.bounds:
            self._line(self._clipped(bound.points), bound.colour, 2)
        for series in chart.series:
            places = [self._place(*point[:2]) for point in sorted(series.points)]
            if series.line:
                self._line(places, series.colour, 2)
            for point in series.points:
                self._mark(point, series)
        for number, series in enumerate((*chart.series, *chart.bounds)):
            row, column = divmod(number, 2)
            x = _LEFT + column * (_WIDTH - _LEFT) // 2
            y = _HEIGHT + row * _LINE
            if series in chart.bounds:
                self._line([self._at(x, y + 7), self._at(x + 14, y + 7)], series.colour, 2)
            else:
                self._shape(self._at(x + 7, y + 7), series)
            self._text(x + 20, y, series.label, 12, _INK)

    def _axes(self) -> None:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        for value in self._chart.ticks_x or _ticks(self._x):
            x, _ = self._place(value, 10 ** self._y[0])
            self._line([(x, self._at(0, _TOP)[1]), (x, self._at(0, bottom)[1])], _PALE, 1)
            label = _number(value)
            offset = _font(11).getlength(label) / 2
            self._draw.text((x - offset, self._at(0, bottom + 5)[1]), label, _GREY, _font(11))
        for value in _ticks(self._y):
            _, y = self._place(10 ** self._x[0], value)
            self._line([(self._at(_LEFT, 0)[0], y), (self._at(right, 0)[0], y)], _PALE, 1)
            label = _number(value)
            width = _font(11).getlength(label)
            place = (self._at(_LEFT - 6, 0)[0] - width, y - 7 * _SCALE)
            self._draw.text(place, label, _GREY, _font(11))
        corners = [self._at(x, y) for x, y in ((_LEFT, _TOP), (_LEFT, bottom), (right, bottom))]
        self._line(corners, _GREY, 1)
        middle = (_LEFT + right) / 2 - _font(12).getlength(self._chart.x_label) / 2 / _SCALE
        self._text(middle, bottom + 21, self._chart.x_label, 12, _GREY)
        self._text(6, _TOP - 14, self._chart.y_label, 12, _GREY)

    def _mark(self, point: tuple[float, ...], series: Series) -> None:
        if len(point) == 4:
            ends = [self._place(point[0], value) for value in point[2:]]
            self._line(ends, series.colour, 2)
        self._shape(self._place(*point[:2]), series)

    def _shape(self, centre: tuple[float, float], series: Series) -> None:
        x, y = centre
        size = 4.5 * _SCALE
        shape = _SHAPES[series.shape % len(_SHAPES)]
        if shape == "circle":
            self._draw.ellipse((x - size, y - size, x + size, y + size), series.colour)
        elif shape == "square":
            size *= 0.9
            self._draw.rectangle((x - size, y - size, x + size, y + size), series.colour)
        elif shape == "cross":
            for sign in (1, -1):
                self._line(
                    [(x - size, y - sign * size), (x + size, y + sign * size)], series.colour, 3
                )
        else:
            corners = [
                (x, y - 1.2 * size),
                (x + 1.2 * size, y),
                (x, y + 1.2 * size),
                (x - 1.2 * size, y),
            ]
            if shape == "triangle":
                corners = [
                    (x, y - 1.2 * size),
                    (x + 1.1 * size, y + size),
                    (x - 1.1 * size, y + size),
                ]
            self._draw.polygon(corners, series.colour)

    def _clipped(self, points: Sequence[tuple[float, ...]]) -> list[tuple[float, float]]:
        """A bound within the axes: its two ends are moved along the line."""
        (x0, y0), (x1, y1) = [(math.log10(point[0]), math.log10(point[1])) for point in points[:2]]
        slope = (y1 - y0) / (x1 - x0)
        low = (
            max(x0, self._x[0])
            if not slope
            else max(x0, self._x[0], x0 + (self._y[0] - y0) / slope)
        )
        high = min(x1, self._x[1])
        if low >= high:
            return []
        return [self._place(10**x, 10 ** (y0 + slope * (x - x0))) for x in (low, high)]

    def _place(self, x: float, y: float) -> tuple[float, float]:
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        across = (math.log10(x) - self._x[0]) / (self._x[1] - self._x[0])
        up = (math.log10(y) - self._y[0]) / (self._y[1] - self._y[0])
        return self._at(_LEFT + across * (right - _LEFT), bottom - up * (bottom - _TOP))

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (self._left + x) * _SCALE, (self._top + y) * _SCALE

    def _text(self, x: float, y: float, text: str, size: int, colour: tuple[int, int, int]) -> None:
        self._draw.text(self._at(x, y), text, colour, _font(size))

    def _line(
        self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: int
    ) -> None:
        if len(points) > 1:
            self._draw.line(list(points), colour, width * _SCALE, joint="curve")


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Decimal logarithms a little beyond all values."""
    logs = [math.log10(value) for value in values]
    low, high = min(logs), max(logs)
    room = max(0.08 * (high - low), 0.08)
    return low - room, high + room


def _ticks(limits: tuple[float, float]) -> list[float]:
    """Powers of ten; with 2 and 5 times them where there are few."""
    low, high = limits
    steps: tuple[int, ...] = (1,)
    if high - low < 1:
        steps = (1, 2, 3, 4, 5, 6, 8)
    elif high - low < 2.5:
        steps = (1, 2, 5)
    values = (
        step * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for step in steps
    )
    return [value for value in values if low <= math.log10(value) <= high]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1 and value == int(value) and value < 1e5 else f"{value:g}"


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size * _SCALE)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which drawing words needs.")
    return font
