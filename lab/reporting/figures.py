"""Drawings as self-contained SVG, legible on light and dark ground."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lab.results.run_folder import visible_line

WIDTH = 880.0
LANE = 22.0
_GUTTER = 150.0  # where lanes are named
_TOP = 34.0
_COLOURS = ("#4477aa", "#228833", "#aa7722", "#aa3377", "#117788", "#77609a", "#777777")
_KINDS = {
    "good": "#228833",
    "bad": "#cc3311",
    "warn": "#bb7700",
    "neutral": "#777777",
    "PASS": "#228833",
    "FAIL": "#cc3311",
    "ERROR": "#aa3377",
    "MISS": "#bb7700",
    "SKIP": "#777777",
}
_STYLE = """
.ground{fill:#fff}.text{fill:#222;font:12px system-ui,sans-serif}.grid{stroke:#ccc}.mark{stroke:#cc3311}
@media(prefers-color-scheme:dark){.ground{fill:#1b1d21}.text{fill:#ddd}.grid{stroke:#444}.mark{stroke:#ff7755}}
"""


def timeline_svg(
    title: str,
    spans: Sequence[tuple[str, float, float, str]],
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Spans of time in lanes, one lane a label, with marked instants across all lanes.

    A span is (label, start, end, kind), a mark (time, text), all in seconds of one clock; the axis counts
    from the earliest. ``kind`` gives the colour: ``good``, ``bad``, ``warn``, ``neutral``, a verdict, or any
    other word, each with a colour of its own.
    """
    spans = [span for span in spans if math.isfinite(span[1]) and math.isfinite(span[2])]
    marks = sorted((mark for mark in marks if math.isfinite(mark[0])), key=lambda mark: mark[0])
    times = [time for span in spans for time in span[1:3]] + [mark[0] for mark in marks]
    first = min(times, default=0.0)
    length = max(max(times, default=1.0) - first, 1e-3)
    lanes = {label: index for index, label in enumerate(dict.fromkeys(span[0] for span in spans))}
    others = dict.fromkeys(span[3] for span in spans if span[3] not in _KINDS)
    colours = _KINDS | {kind: _COLOURS[index % len(_COLOURS)] for index, kind in enumerate(others)}
    bottom = _TOP + LANE * len(lanes)
    height = bottom + 24 + 16 * len(marks)

    def x(time: float) -> float:
        return _GUTTER + (time - first) / length * (WIDTH - _GUTTER - 60)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height:.0f}" width="{WIDTH:.0f}"'
        f' height="{height:.0f}" role="img"><title>{_text(title)}</title><style>{_STYLE}</style>',
        f'<rect class="ground" width="{WIDTH:.0f}" height="{height:.0f}"/>',
        f'<text class="text" x="8" y="18" font-weight="bold">{_text(title, 110)}</text>',
    ]
    step = _step(length)
    for number in range(int(length / step + 1e-9) + 1):
        at = x(first + number * step)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6:.0f}" y2="{bottom:.0f}"/>')
        parts.append(
            f'<text class="text" x="{at:.1f}" y="{bottom + 14:.0f}" text-anchor="middle">{number * step:g} s</text>'
        )
    for label, index in lanes.items():
        y = _TOP + LANE * index
        parts.append(f'<text class="text" x="8" y="{y + 14:.0f}">{_text(label, 22)}</text>')
    for label, start, end, kind in spans:
        start, end = min(start, end), max(start, end)
        y = _TOP + LANE * lanes[label] + 3
        width = max(x(end) - x(start), 1.5)
        tip = f"{label}: {end - start:.3g} s" + (f" ({kind})" if kind else "")
        parts.append(
            f'<rect x="{x(start):.1f}" y="{y:.0f}" width="{width:.1f}" height="{LANE - 7:.0f}" rx="2"'
            f' fill="{colours[kind]}"><title>{_text(tip)}</title></rect>'
        )
        said = f"{end - start:.3g} s"
        if x(start) + width + 7 * len(said) < WIDTH and sum(span[0] == label for span in spans) == 1:
            parts.append(f'<text class="text" x="{x(start) + width + 4:.1f}" y="{y + 11:.0f}">{said}</text>')
    for number, (time, text) in enumerate(marks):
        at, y = x(time), bottom + 30 + 16 * number
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6:.0f}" y2="{y - 4:.0f}"'
            ' stroke-dasharray="3 2"/>'
        )
        side = "end" if at > WIDTH / 2 else "start"
        shift = -4 if side == "end" else 4
        parts.append(
            f'<text class="text" x="{at + shift:.1f}" y="{y:.0f}" text-anchor="{side}">'
            f"{_text(text, 70)} ({time - first:.3g} s)</text>"
        )
    return "".join([*parts, "</svg>\n"])


def growth_svg(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, across: str, up: str) -> str:
    """Lines of (x, y), both above 0, on logarithmic axes: a straight one that rises by half as much is a square root.

    :param across: what x is; ``up``: what y is.
    """
    width, height, left, bottom = 640.0, 380.0, 70.0, 330.0
    points = [point for line in lines.values() for point in line if min(point) > 0 and all(map(math.isfinite, point))]
    (low_x, high_x), (low_y, high_y) = (_decades([point[axis] for point in points]) for axis in (0, 1))

    def x(value: float) -> float:
        return left + (math.log10(value) - low_x) / (high_x - low_x) * (width - left - 150)

    def y(value: float) -> float:
        return bottom - (math.log10(value) - low_y) / (high_y - low_y) * (bottom - 40)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
        f' height="{height:.0f}" role="img"><title>{_text(title)}</title><style>{_STYLE}</style>',
        f'<rect class="ground" width="{width:.0f}" height="{height:.0f}"/>',
        f'<text class="text" x="8" y="18" font-weight="bold">{_text(title, 90)}</text>',
        f'<text class="text" x="8" y="34">{_text(up)}</text>',
        f'<text class="text" x="{width - 150:.0f}" y="{bottom + 34:.0f}" text-anchor="end">{_text(across)}</text>',
    ]
    for power in range(low_x, high_x + 1):
        at = x(10.0**power)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="40" y2="{bottom:.0f}"/>')
        parts.append(
            f'<text class="text" x="{at:.1f}" y="{bottom + 16:.0f}" text-anchor="middle">{10.0**power:g}</text>'
        )
    for power in range(low_y, high_y + 1):
        at = y(10.0**power)
        parts.append(f'<line class="grid" x1="{left:.0f}" x2="{width - 150:.0f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="text" x="{left - 6:.0f}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour, good = _COLOURS[number % len(_COLOURS)], sorted(point for point in line if point in points)
        if not good:
            continue
        path = " ".join(f"{x(one):.1f},{y(other):.1f}" for one, other in good)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(one):.1f}" cy="{y(other):.1f}" r="4" fill="{colour}">'
            f"<title>{_text(name)}: {other:.3g} at {one:g}</title></circle>"
            for one, other in good
        ]
        where = x(good[-1][0]) + 10, y(good[-1][1]) + 4
        parts.append(
            f'<text class="text" x="{where[0]:.1f}" y="{where[1]:.1f}" fill="{colour}">{_text(name, 18)}</text>'
        )
    return "".join([*parts, "</svg>\n"])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Powers of ten around values."""
    low = math.floor(math.log10(min(values, default=1.0)) + 1e-9)
    return low, max(math.ceil(math.log10(max(values, default=1.0)) - 1e-9), low + 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """A field of a :func:`heat_map`. ``kind`` gives the colour, ``tip`` is shown to who points at it."""

    text: str
    kind: str
    tip: str = ""
    anchor: str = ""  # element of the page it leads to


def heat_map(title: str, rows: Sequence[str], columns: Sequence[str], tiles: Mapping[tuple[str, str], Tile]) -> str:
    """A tile for each row and column that has one; to stand in a page, since its tiles are links."""
    gutter, tall, wide, top = 170.0, 20.0, 62.0, 150.0
    width, height = gutter + wide * len(columns) + 90, top + tall * len(rows) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
        f' height="{height:.0f}" role="img"><title>{_text(title)}</title><style>{_STYLE}</style>',
        f'<rect class="ground" width="{width:.0f}" height="{height:.0f}"/>',
        f'<text class="text" x="8" y="18" font-weight="bold">{_text(title, 110)}</text>',
    ]
    for index, column in enumerate(columns):
        at = gutter + wide * index + wide / 2
        parts.append(
            f'<text class="text" transform="translate({at:.1f} {top - 8:.0f}) rotate(-55)">{_text(column, 28)}</text>'
        )
    for index, row in enumerate(rows):
        y = top + tall * index
        parts.append(f'<text class="text" x="8" y="{y + 14:.0f}">{_text(row, 26)}</text>')
        for number, column in enumerate(columns):
            tile = tiles.get((row, column))
            if tile is None:
                continue
            x = gutter + wide * number
            drawn = (
                f'<rect x="{x + 1:.1f}" y="{y + 1:.0f}" width="{wide - 2:.0f}" height="{tall - 2:.0f}" rx="2"'
                f' fill="{_KINDS.get(tile.kind, _KINDS["neutral"])}"><title>{_text(tile.tip)}</title></rect>'
                f'<text x="{x + wide / 2:.1f}" y="{y + 14:.0f}" text-anchor="middle" fill="#fff"'
                f' font-size="10" font-family="system-ui,sans-serif" pointer-events="none">'
                f"{_text(tile.text, 12)}</text>"
            )
            parts.append(f'<a href="#{_text(tile.anchor)}">{drawn}</a>' if tile.anchor else drawn)
    return "".join([*parts, "</svg>\n"])


def durations_svg(title: str, attempts: Sequence[tuple[float, str, str]]) -> str:
    """A bar for each attempt: (seconds, verdict, what is shown to who points at it); the newest is last."""
    tall, step = 60.0, 13.0
    longest = max((seconds for seconds, _, _ in attempts if math.isfinite(seconds)), default=0.0) or 1.0
    width = max(step * len(attempts) + 90, 400.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {tall + 26:.0f}" width="{width:.0f}"'
        f' height="{tall + 26:.0f}" role="img"><title>{_text(title)}</title><style>{_STYLE}</style>',
        f'<line class="grid" x1="0" x2="{width:.0f}" y1="{tall:.0f}" y2="{tall:.0f}"/>',
        f'<text class="text" x="0" y="{tall + 16:.0f}">{_text(title)}; the longest {longest:.3g} s</text>',
    ]
    for number, (seconds, verdict, tip) in enumerate(attempts):
        high = max(tall * seconds / longest, 2.0) if math.isfinite(seconds) else 2.0
        parts.append(
            f'<rect x="{number * step:.0f}" y="{tall - high:.1f}" width="{step - 2:.0f}" height="{high:.1f}"'
            f' fill="{_KINDS.get(verdict, _KINDS["neutral"])}">'
            f"<title>{_text(verdict)} {seconds:.3g} s {_text(tip)}</title></rect>"
        )
    return "".join([*parts, "</svg>\n"])


def _text(text: str, limit: int = 200) -> str:
    text = visible_line(text)
    return escape(text if len(text) <= limit else text[: limit - 1] + "…")


def _step(length: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are at most eight of them."""
    rough = length / 8
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
