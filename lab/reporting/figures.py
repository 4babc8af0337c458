"""Drawings as self-contained SVG, legible on light and dark ground."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape

from lab.results.run_folder import visible_line

WIDTH = 440.0  # of a timeline: a phone shows it without shrinking it much
LANE = 30.0
FOCUSED = 0.7  # of the width: the part of a timeline that matters
_MARGIN = 8.0
_TOP = 30.0
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
    "stopped": "#4477aa",
    "handed over": "#117788",
    "silent": "#77609a",
}
_STYLE = """
.ground{fill:#fff}.text{fill:#222;font:12px system-ui,sans-serif}.grid{stroke:#ccc}.mark{stroke:#555}
.focus{fill:#eef2f7}
@media(prefers-color-scheme:dark){.ground{fill:#1b1d21}.text{fill:#ddd}.grid{stroke:#444}.mark{stroke:#aaa}.focus{fill:#272c34}}
"""


def timeline_svg(
    title: str,
    spans: Sequence[tuple[str, float, float, str]],
    marks: Sequence[tuple[float, str]] = (),
    focus: tuple[float, float] | None = None,
) -> str:
    """Spans of time in lanes, one lane a label, with marked instants across all lanes.

    A span is (label, start, end, kind), a mark (time, text), all in seconds of one clock; the axis counts
    from the earliest. ``kind`` gives the colour: ``good``, ``bad``, ``warn``, ``neutral``, a verdict, or any
    other word, each with a colour of its own. It is narrow enough for a phone.

    :param focus: the time that matters: it gets FOCUSED of the width on a scale of its own, on a darker ground.
    """
    spans = [span for span in spans if math.isfinite(span[1]) and math.isfinite(span[2])]
    marks = sorted((mark for mark in marks if math.isfinite(mark[0])), key=lambda mark: mark[0])
    times = [time for span in spans for time in span[1:3]] + [mark[0] for mark in marks]
    first = min(times, default=0.0)
    scale = _Scale(first, max(max(times, default=1.0), first + 1e-3), focus)
    lanes = {label: index for index, label in enumerate(dict.fromkeys(span[0] for span in spans))}
    others = dict.fromkeys(span[3] for span in spans if span[3] not in _KINDS)
    colours = _KINDS | {kind: _COLOURS[index % len(_COLOURS)] for index, kind in enumerate(others)}
    bottom = _TOP + LANE * len(lanes)
    height = bottom + 24 + 16 * len(marks)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height:.0f}" width="{WIDTH:.0f}"'
        f' height="{height:.0f}" role="img"><title>{_text(title)}</title><style>{_STYLE}</style>',
        f'<rect class="ground" width="{WIDTH:.0f}" height="{height:.0f}"/>',
        f'<text class="text" x="4" y="16" font-weight="bold">{_text(title, 56)}</text>',
    ]
    if scale.focus:
        left, right = (scale.x(time) for time in scale.focus)
        parts.append(
            f'<rect class="focus" x="{left:.1f}" y="{_TOP - 6:.0f}" width="{right - left:.1f}"'
            f' height="{bottom - _TOP + 6:.0f}"><title>this part has a scale of its own</title></rect>'
        )
    for time in scale.ticks():
        at = scale.x(time)
        side = "end" if at > WIDTH - 24 else "start" if at < 24 else "middle"
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6:.0f}" y2="{bottom:.0f}"/>')
        said = f"{time - first:.4g} s"
        parts.append(f'<text class="text" x="{at:.1f}" y="{bottom + 14:.0f}" text-anchor="{side}">{said}</text>')
    for label, index in lanes.items():
        mine = [span for span in spans if span[0] == label]
        length = f": {abs(mine[0][2] - mine[0][1]):.3g} s" if len(mine) == 1 else ""
        y = _TOP + LANE * index
        parts.append(f'<text class="text" x="4" y="{y + 11:.0f}">{_text(f"{label}{length}", 56)}</text>')
    for label, start, end, kind in spans:
        start, end = min(start, end), max(start, end)
        y = _TOP + LANE * lanes[label] + 14
        width = max(scale.x(end) - scale.x(start), 1.5)
        tip = f"{label}: {end - start:.3g} s" + (f" ({kind})" if kind else "")
        parts.append(
            f'<rect x="{scale.x(start):.1f}" y="{y:.0f}" width="{width:.1f}" height="{LANE - 18:.0f}" rx="2"'
            f' fill="{colours[kind]}"><title>{_text(tip)}</title></rect>'
        )
    for number, (time, text) in enumerate(marks):
        at, y = scale.x(time), bottom + 30 + 16 * number
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6:.0f}" y2="{y - 4:.0f}"'
            ' stroke-dasharray="3 2"/>'
        )
        side = "end" if at > WIDTH / 2 else "start"
        shift = -4 if side == "end" else 4
        parts.append(
            f'<text class="text" x="{at + shift:.1f}" y="{y:.0f}" text-anchor="{side}">'
            f"{_text(text, 34)} ({time - first:.4g} s)</text>"
        )
    return "".join([*parts, "</svg>\n"])


# The parts of a relocation in which the guest does not run, each with a colour that says nothing of good or bad.
_STOPPED = {"state": "stopped", "hand over": "handed over", "guest silent": "silent"}


def relocation_svg(
    title: str, spans: Sequence[tuple[str, float, float]], marks: Sequence[tuple[float, str]] = ()
) -> str:
    """A relocation over time. The part in which the guest stands still has a scale of its own."""
    coloured = [(name, start, end, _STOPPED.get(name, "neutral")) for name, start, end in spans]
    still = [(start, end) for name, start, end in spans if name in _STOPPED]
    focus = None
    if still:
        start, end = min(start for start, _ in still), max(end for _, end in still)
        around = 0.1 * (end - start)
        focus = start - around, end + around
    return timeline_svg(title, coloured, marks, focus)


class _Scale:
    """From times to places: even, or with a part that gets most of the width."""

    def __init__(self, first: float, last: float, focus: tuple[float, float] | None) -> None:
        self.first, self.last = first, last
        self.focus: tuple[float, float] | None = None
        if focus and all(map(math.isfinite, focus)):
            start, end = max(first, min(focus)), min(last, max(focus))
            if 0 < end - start < FOCUSED * (last - first):
                self.focus = start, end
        self._edges = [first, *(self.focus or ()), last]
        wide, beside = WIDTH - 2 * _MARGIN, 0.0
        if self.focus:
            beside = wide * (1 - FOCUSED) / 2
            before = beside if self.focus[0] > first else 0.0
            after = beside if self.focus[1] < last else 0.0
            widths = [before, wide - before - after, after]
        else:
            widths = [wide]
        self._places = [_MARGIN]
        for width in widths:
            self._places.append(self._places[-1] + width)

    def x(self, time: float) -> float:
        for at, (start, end) in enumerate(zip(self._edges, self._edges[1:], strict=False)):
            if time <= end or at == len(self._edges) - 2:
                left, right = self._places[at], self._places[at + 1]
                return left + (right - left) * ((time - start) / (end - start) if end > start else 0.0)
        raise AssertionError("the last part takes all")

    def ticks(self) -> list[float]:
        """Times to be named: even ones, and where a part has its own scale its ends and even ones within."""
        if not self.focus:
            step = _step(self.last - self.first)
            return [self.first + number * step for number in range(int((self.last - self.first) / step + 1e-9) + 1)]
        start, end = self.focus
        step = _step((end - start) * 2)
        inner = [start + number * step for number in range(1, int((end - start) / step + 1e-9))]
        return [start, *(time for time in inner if end - time > step / 2), end]


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
    href: str = ""  # where it leads


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
            parts.append(f'<a href="{_text(tile.href)}">{drawn}</a>' if tile.href else drawn)
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


def spread_svg(title: str, groups: Sequence[tuple[str, Sequence[float]]]) -> str:
    """A figure over builds, the newest last: a dot for each value, a line for the median, a bar for the spread."""
    groups = [(name, [value for value in values if math.isfinite(value)]) for name, values in groups]
    every = [value for _, values in groups for value in values]
    low, high = min(every, default=0.0), max(every, default=1.0)
    low = 0.0 if 0 <= low < high / 2 else low
    room = (high - low) or abs(high) or 1.0
    tall, step, left, top = 96.0, 34.0, 64.0, 24.0
    width = max(left + step * len(groups) + 30, 320.0)
    height = top + tall + 44

    def y(value: float) -> float:
        return top + tall - (value - low) / room * tall

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
        f' height="{height:.0f}" role="img"><title>{_text(title)}</title><style>{_STYLE}</style>',
        f'<text class="text" x="0" y="14" font-weight="bold">{_text(title, 60)}</text>',
    ]
    for value in dict.fromkeys((low, low + room / 2, low + room)):
        parts.append(f'<line class="grid" x1="{left:.0f}" x2="{width:.0f}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(
            f'<text class="text" x="{left - 6:.0f}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for index, (name, values) in enumerate(groups):
        if not values:
            continue
        at, median = left + step * index + step / 2, statistics.median(values)
        tip = f"{name}: median {median:.4g}, {min(values):.4g} to {max(values):.4g}, {len(values)} values"
        parts.append(
            f'<g><title>{_text(tip)}</title><rect x="{at - 9:.1f}" y="{y(max(values)):.1f}" width="18"'
            f' height="{max(y(min(values)) - y(max(values)), 1):.1f}" fill="{_COLOURS[0]}" opacity="0.3"/>'
            f'<line x1="{at - 10:.1f}" x2="{at + 10:.1f}" y1="{y(median):.1f}" y2="{y(median):.1f}"'
            f' stroke="{_COLOURS[0]}" stroke-width="2.5"/>'
        )
        parts += [f'<circle cx="{at:.1f}" cy="{y(value):.1f}" r="2" fill="{_COLOURS[0]}"/>' for value in values]
        parts.append("</g>")
        turned = f"translate({at:.1f} {top + tall + 12:.0f}) rotate(35)"
        parts.append(f'<text class="text" transform="{turned}" font-size="10">{_text(name, 9)}</text>')
    return "".join([*parts, "</svg>\n"])


@dataclass(frozen=True, slots=True)
class Band:
    """Builds from ``first`` to before ``end`` with one level; ``noise`` is a share of it."""

    first: int
    end: int
    level: float
    noise: float


def level_svg(title: str, builds: Sequence[tuple[str, Sequence[float]]], bands: Sequence[Band]) -> str:
    """A figure over builds, the newest last: a dot for each value, a band for each level and its noise.

    Where one band follows another a mark says by how much. ``builds`` have a name and at least one value above 0.
    """
    every = [value for _, values in builds for value in values]
    ends = [band.level * (1 + side * band.noise) for band in bands for side in (-1, 1)]
    low, high = min([*every, *ends], default=0.0), max([*every, *ends], default=1.0)
    room = max(high - low, high * 0.02)  # what moves by less than a per cent looks as if it stood
    low, tall, step, left, top = (low + high - room) / 2, 150.0, 13.0, 74.0, 44.0
    width, bottom = max(left + step * len(builds) + 20, 360.0), top + tall

    def x(at: float) -> float:
        return left + step * at

    def y(value: float) -> float:
        return bottom - (value - low) / room * tall

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {bottom + 24:.0f}" width="{width:.0f}"'
        f' height="{bottom + 24:.0f}" role="img"><title>{_text(title)}</title><style>{_STYLE}</style>',
        f'<text class="text" x="0" y="14" font-weight="bold">{_text(title, 90)}</text>',
    ]
    for value in (low, low + room / 2, low + room):
        parts.append(f'<line class="grid" x1="{left:.0f}" x2="{width:.0f}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(
            f'<text class="text" x="{left - 6:.0f}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.5g}</text>'
        )
    for old, band in zip([None, *bands], bands, strict=False):
        from_x, to_x = x(band.first), x(band.end)
        above, below = y(band.level * (1 + band.noise)), y(band.level * (1 - band.noise))
        tip = f"level {band.level:.6g}, noise {band.noise:.2%}, {band.end - band.first} builds"
        parts.append(
            f'<g><title>{_text(tip)}</title><rect x="{from_x:.1f}" y="{above:.1f}" width="{to_x - from_x:.1f}"'
            f' height="{max(below - above, 2):.1f}" fill="{_COLOURS[0]}" opacity="0.3"/>'
            f'<line x1="{from_x:.1f}" x2="{to_x:.1f}" y1="{y(band.level):.1f}" y2="{y(band.level):.1f}"'
            f' stroke="{_COLOURS[0]}" stroke-width="1.5"/></g>'
        )
        if old:
            change = band.level / old.level - 1
            side = "end" if from_x > width / 2 else "start"
            parts.append(
                f'<line class="mark" x1="{from_x:.1f}" x2="{from_x:.1f}" y1="{top - 8:.0f}" y2="{bottom:.0f}"'
                f' stroke-dasharray="3 2"/><text x="{from_x:.1f}" y="{top - 12:.0f}" text-anchor="{side}"'
                f' font-size="12" font-family="system-ui,sans-serif" fill="{_KINDS["bad" if change > 0 else "good"]}">'
                f"{change:+.2%}</text>"
            )
    for at, (name, values) in enumerate(builds):
        tip = f"{name}: {', '.join(f'{value:.6g}' for value in values)}"
        dots = [f'<circle cx="{x(at + 0.5):.1f}" cy="{y(value):.1f}" r="2.5"/>' for value in values]
        parts.append(f'<g fill="{_COLOURS[0]}"><title>{_text(tip)}</title>{"".join(dots)}</g>')
    for at, side, name in ((0, "start", builds[0][0]), (len(builds), "end", builds[-1][0])) if builds else ():
        parts.append(
            f'<text class="text" x="{x(at):.1f}" y="{bottom + 16:.0f}" text-anchor="{side}">{_text(name, 20)}</text>'
        )
    return "".join([*parts, "</svg>\n"])


@lru_cache(maxsize=4096)  # few words, many times
def _text(text: str, limit: int = 200) -> str:
    text = visible_line(text)
    return escape(text if len(text) <= limit else text[: limit - 1] + "…")


def _step(length: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are at most six of them."""
    rough = length / 6
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
