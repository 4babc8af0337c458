"""``junit.xml``, as GitLab, GitHub and Jenkins read it.

One ``testcase`` for each planned case and build, with the attempt that decides; the others stand in its output. So a
case has the same name in every run. Its ``time`` is without provisioning, which is the property ``provisioning_s``. A
case that passes with a known bug has the property ``known-bug``.
"""

from __future__ import annotations

import time
from pathlib import Path
from xml.etree import ElementTree as ET

from lab.reporting.words import shortened
from lab.results.failures import failure_of, known_findings
from lab.results.record import CRASH, Evidence, TestResult, Verdict
from lab.results.run_folder import replace_file, visible, visible_line
from lab.results.summary import DID_NOT_RUN, Missing, RunSummary, State, is_flaky

NAME = "junit.xml"
BODY_LIMIT = 2000  # characters of an evidence's body
_CONTAINERS = {
    Verdict.FAIL: ("failure", ""),
    Verdict.ERROR: ("error", ""),
    Verdict.MISS: ("error", "miss"),
    Verdict.SKIP: ("skipped", "skip"),
}


def write(run: RunSummary) -> Path:
    """Write ``junit.xml`` into the run folder; its path."""
    header, results, gone = run.header, run.results, run.missing
    suites = ET.Element("testsuites", name="xenlab")
    suite = ET.SubElement(suites, "testsuite", name="xenlab")
    _properties(suite, _facts(run))
    names = _Names(run.has_several_builds)
    for result in results:
        others = [one for one in run.attempts[result.case, result.build] if one is not result]
        _result(suite, names, result, others)
    for one in gone:
        _missing(suite, names, one)
    if run.remarks:
        ET.SubElement(suite, "system-err").text = "\n".join(run.remarks)

    verdicts = [result.verdict for result in results]
    counts = {
        "tests": len(results) + len(gone),
        "failures": verdicts.count(Verdict.FAIL),
        "errors": verdicts.count(Verdict.ERROR) + verdicts.count(Verdict.MISS) + len(gone),
        "skipped": verdicts.count(Verdict.SKIP),
    }
    for element in (suites, suite):
        for key, count in counts.items():
            element.set(key, str(count))
        element.set("time", f"{sum(result.own_seconds for result in results):.3f}")
    suite.set("timestamp", time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(header.started)))

    path = run.path / NAME
    _make_readable(suites)
    ET.indent(suites, " ")
    text = ET.tostring(suites, encoding="unicode")
    replace_file(path, f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')
    return path


def _make_readable(root: ET.Element) -> None:
    """Show what XML cannot carry, in every text and attribute: ElementTree checks nothing of what it writes."""
    for element in root.iter():
        element.text = visible(element.text) if element.text else None
        for name, value in element.attrib.items():
            element.set(name, visible_line(value))


class _Names:
    """Class name and name of a case; no pair is given twice."""

    def __init__(self, several_builds: bool) -> None:
        self._several, self._given = several_builds, set[tuple[str, str]]()

    def of(self, case: str, build: str) -> dict[str, str]:
        file, *inner = visible_line(case).split("::")
        classname = ".".join([file.removesuffix(".py").replace("/", "."), *inner[:-1]])
        name = inner[-1] if inner else file
        if self._several:
            name = f"{name} ({visible_line(build)})"
        wanted, number = name, 1
        while (classname, name) in self._given:
            number += 1
            name = f"{wanted} #{number}"
        self._given.add((classname, name))
        return {"classname": classname, "name": name, "file": file}


def _result(suite: ET.Element, names: _Names, result: TestResult, others: list[TestResult]) -> None:
    attributes = names.of(result.case, result.build)
    case = ET.SubElement(suite, "testcase", attributes, time=f"{result.own_seconds:.3f}")
    facts = {
        "verdict": result.verdict.value,
        "rule": result.rule,
        "fingerprint": result.fingerprint,
        "failure": failure_of(result),
        "boards": ",".join(result.boards),
        "restored": ",".join(result.restored),
        "build": result.build,
        "area": result.area,
        "attempt": str(result.attempt),
        "provisioning_s": f"{result.provisioning_seconds:.3f}" if result.provisioning_seconds else "",
    }
    known = [one.name for one in known_findings(result)]
    if known:
        facts["known-bug"] = ",".join(known)
    if is_flaky([result, *others]):
        facts["flaky"] = "true"
    facts |= {f"figure:{name}": f"{value:g}" for name, value in result.figures.items()}
    _properties(case, {key: value for key, value in facts.items() if value})
    if result.verdict in _CONTAINERS:
        tag, kind = _CONTAINERS[result.verdict]
        reason = result.reason or result.rule
        inner = ET.SubElement(case, tag, message=reason, type=kind or result.rule)
        decisive = [one for one in result.evidence if one.kind in ("exception", "console", CRASH)]
        where = f" on {', '.join(result.boards)}" if result.boards else ""
        said = f"{result.verdict} by rule {result.rule}{where}: {result.reason}"
        inner.text = "\n\n".join([said, *(_evidence(one) for one in decisive)])
    output = [f"PASS, known bug {name}" for name in known]
    output += [_attempt(one) for one in others] + [_evidence(one) for one in result.evidence]
    output += [f"console of {board}: {path}" for board, path in result.consoles.items()]
    if output:
        ET.SubElement(case, "system-out").text = "\n\n".join(output)


def _missing(suite: ET.Element, names: _Names, one: Missing) -> None:
    case = ET.SubElement(suite, "testcase", names.of(one.case, one.build), time="0.000")
    _properties(case, {"verdict": Verdict.MISS.value, "rule": DID_NOT_RUN, "build": one.build})
    inner = ET.SubElement(case, "error", message="did not run", type="miss")
    inner.text = "planned, but the run has no result of it"


def _facts(run: RunSummary) -> dict[str, str]:
    header = run.header
    facts = {"run": header.run_id, "selection": header.selection, "builds": ",".join(header.builds)}
    facts |= {
        f"board:{board}": " ".join(f"{key}={value}" for key, value in about.items())
        for board, about in header.boards.items()
    }
    for name, source in run.sources.items():
        if source:
            facts[f"source:{name}"] = source.text()
    if header.exit_status is not None:
        facts["exit_status"] = str(header.exit_status)
    if run.state is not State.COMPLETE:
        facts["state"] = run.state.value
    return facts


def _properties(parent: ET.Element, facts: dict[str, str]) -> None:
    properties = ET.SubElement(parent, "properties")
    for name, value in facts.items():
        ET.SubElement(properties, "property", name=name, value=value)


def _attempt(result: TestResult) -> str:
    return f"attempt {result.attempt}: {result.verdict} by rule {result.rule}: {result.reason}"


def _evidence(one: Evidence) -> str:
    where = f" [{one.board}]" if one.board else ""
    return f"--- {one.kind}: {one.title}{where} ---\n{shortened(one.body, BODY_LIMIT)}"
