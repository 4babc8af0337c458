"""What pages show of one result, as the report and the site have it thousands of times.

It is made here and not in templates, since a template takes several times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from markupsafe import Markup, escape

from lab.reporting.marks import badge, escaped
from lab.reporting.shown import Fact, Shown, Slice
from lab.reporting.words import seconds_text
from lab.results.record import Verdict
from lab.results.run_folder import stamp, visible


def facts_of(case: Shown) -> Markup:
    """What was decided, of what, and when."""
    return Markup("".join(_facts(case)))


def evidence_of(case: Shown) -> Markup:
    """Its drawings and its evidence."""
    opens = case.verdict not in (Verdict.PASS, Verdict.SKIP)
    pictures = [_picture(title, uri) for title, uri in case.pictures]
    return Markup("".join([*pictures, *(_fact(fact, opens and not fact.is_folded) for fact in case.facts)]))


def timeline_of(case: Shown) -> Markup:
    """The drawing of its phases, folded."""
    if not case.timeline:
        return Markup("")
    drawn = f'<img src="{case.timeline}" alt="phases of the case over time">'
    return Markup(f"<details><summary>phases</summary>{drawn}</details>\n")


def together_of(case: Shown) -> Markup:
    """Two consoles beside each other, by time."""
    told = "; ".join(f"{escaped(one.board)}: {escaped(one.path)}{_crashes(one)}" for one in case.slices)
    names = "".join(f'<span class="name at{at}">{escaped(one.board)}</span>' for at, one in enumerate(case.slices))
    times = _all_escaped(line.time for _, line in case.together)
    texts = _all_escaped(line.text for _, line in case.together)
    lines = [
        f'<b>{time}</b><span class="at{column}{" " if line.mark else ""}{line.mark}">{text}</span>'
        for (column, line), time, text in zip(case.together, times, texts, strict=True)
    ]
    head = f'<h3>Both consoles, by time</h3>\n<p class="soft">{told}</p>\n'
    pair = '<div class="pair" tabindex="0" role="group" aria-label="both consoles, by time">'
    return Markup(f"{head}{pair}<b></b>{names}{''.join(lines)}</div>\n")


def console_title(slice: Slice) -> Markup:
    """Whose console it is, and what it tells of."""
    warnings = f' · <span class="v MISS">{slice.warnings} warnings</span>' if slice.warnings else ""
    path = f'<span class="soft">{escaped(slice.path)}</span>'
    return Markup(f"console of {escaped(slice.board)}{_crashes(slice)}{warnings} {path}")


def section(number: int, case: Shown, head: str, repeat: str) -> Markup:
    """One of several results of a page, the ``number``-th of its run.

    :param head: markup: what its title has beside verdict and name, and the lines below it.
    :param repeat: the command that runs the case again.
    """
    if case.together:
        boards = escaped(" and ".join(case.boards))
        consoles = f"<details><summary>consoles of {boards}</summary>\n{together_of(case)}\n</details>\n"
    else:
        consoles = "".join(_console(slice, f"r{number}c{at}") for at, slice in enumerate(case.slices))
    name = escaped(case.name)
    return Markup(
        f'<section id="r{number}" aria-label="{name}">\n<h2>{badge(case.verdict)} {name}{head}\n'
        f'{facts_of(case)}\n<p class="repeat"><span class="soft">again</span> <code>{escaped(repeat)}</code></p>\n'
        f"{evidence_of(case)}\n{consoles}{timeline_of(case)}\n</section>"
    )


def _facts(case: Shown) -> Iterator[str]:
    result = case.result
    if result and result.doc:
        yield f"<p>{escaped(result.doc)}</p>\n"
    reason = f": {escaped(case.reason)}" if case.reason else ""
    yield f"<dl>\n<dt>decided by</dt><dd>rule {escaped(case.rule)}{reason}</dd>\n"
    if result and result.fingerprint:
        yield f"<dt>crash</dt><dd>{escaped(result.fingerprint)}</dd>\n"
    yield f"<dt>case</dt><dd>{escaped(case.case)}</dd>\n<dt>build</dt><dd>{escaped(case.build or 'unnamed')}</dd>\n"
    if result and case.seconds is not None:
        beside = ""
        if case.provisioning >= 0.1:
            own, other = seconds_text(case.seconds), seconds_text(case.provisioning)
            beside = f"; {other} of provisioning beside its own {own}"
        yield f"<dt>started</dt><dd>{stamp(result.started)}, attempt {result.attempt}{beside}</dd>\n"
        if case.is_flaky:
            yield f"<dt>flaky</dt><dd>passed at attempt {result.attempt}, and not at each</dd>\n"
    for one in case.earlier:
        said = f"{badge(one.verdict)} {escaped(one.rule)}: {escaped(one.reason)}"
        yield f"<dt>attempt {one.attempt}</dt><dd>{said}</dd>\n"
    for name, value in result.figures.items() if result else ():
        yield f"<dt>{escaped(name)}</dt><dd>{value:.6g}</dd>\n"
    yield "</dl>\n"


def _picture(title: str, uri: str) -> str:
    name = escaped(title)
    drawn = f'<p><img src="{uri}" alt="{name}"></p>'
    gone = '<p class="soft">The picture cannot be shown: it is gone or too large.</p>'
    return f"<h3>{name}</h3>\n{drawn if uri else gone}\n"


def _fact(fact: Fact, is_open: bool) -> str:
    board = f' <span class="soft">on {escaped(fact.board)}</span>' if fact.board else ""
    title = f'<span class="soft">{escaped(fact.kind)}</span> {escaped(fact.title)}{board}'
    summary = f'<summary>{title} <span class="soft">{stamp(fact.time)[11:23]}</span></summary>'
    return f"<details{' open' * is_open}>\n{summary}\n<pre>\n{escape(visible(fact.body))}</pre>\n</details>\n"


def _console(slice: Slice, prefix: str) -> str:
    title, lines = console_title(slice), slice.linked(prefix)
    is_open = " open" * bool(slice.crashes)
    return f'<details{is_open}><summary>{title}</summary>\n<pre class="log">{lines}</pre>\n</details>\n'


def _crashes(slice: Slice) -> str:
    return f' · <span class="v FAIL">{slice.crashes} crash lines</span>' if slice.crashes else ""


def _all_escaped(texts: Iterable[str]) -> list[str]:
    """Texts without a newline, all at once."""
    return str(escape("\n".join(texts))).split("\n")


PIECES = (facts_of, evidence_of, timeline_of, together_of, console_title)  # what templates call
