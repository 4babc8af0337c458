"""A run as a report of KCIDB, which Linux' kernel CI systems send to each other.

Source: the schema 5 of ``kcidb-io``. Version 5.0 has all that is written here, so a receiver of any 5.x takes it.

KCIDB's words for a verdict are ours. There is one ``test`` for each planned case and build, with the attempt that
decides; the others stand in its ``misc``. A planned case without a result is a MISS. A run that did not come to its end
has one more MISS for each build, the test :data:`RUN`, since all that it has so far might be PASS; so has a run that is
not good for another reason than its cases.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime

from lab.base.errors import UsageError
from lab.reporting.words import shortened
from lab.results.failures import known_findings
from lab.results.record import CRASH, TestResult, Verdict
from lab.results.run_folder import slug, visible, visible_line
from lab.results.summary import DID_NOT_RUN, RunSummary, did_not_run, is_flaky

ORIGIN = "xenlab"  # who says it, unless a lab gives itself another name
SUITE = "xenlab"  # where the cases begin in the receiver's tree of tests
RUN = "run"  # the test that stands for the run itself, where that is not good

_VERSION = {"major": 5, "minor": 0}
_EXCERPT = 16_000  # characters; the schema takes 16384
_COMMIT = re.compile(r"[0-9a-f]{40}")

Json = str | int | float | bool | list["Json"] | dict[str, "Json"] | None
Object = dict[str, Json]


def text(run: RunSummary, origin: str = ORIGIN) -> str:
    """The report as JSON, with a newline at its end.

    :param origin: the name under which the receiver knows this lab; it begins every id.
    :raises UsageError: ``origin`` is no such name.
    """
    if not re.fullmatch(r"[a-z0-9_]+", origin):
        raise UsageError(f"invalid origin {origin!r}; use lower-case letters, digits and _, as in my_lab")
    return json.dumps(_Report(run, origin).whole(), indent=1, allow_nan=False) + "\n"


class _Report:
    def __init__(self, run: RunSummary, origin: str) -> None:
        self._run, self._origin = run, origin
        said = [*run.header.builds, *(result.build for result in run.results)]
        self._builds = tuple(dict.fromkeys(said)) or ("",)

    def whole(self) -> Object:
        checkouts = {str(one["id"]): one for one in map(self._checkout, self._builds)}
        tests = [self._test(result) for result in self._run.results]
        tests += [self._test(did_not_run(self._run.header, one)) for one in self._run.missing]
        if why := self._why_not_good():
            tests += [self._run_itself(build, why) for build in self._builds]
        return {
            "version": {**_VERSION},
            "checkouts": [*checkouts.values()],
            "builds": [self._build(name) for name in self._builds],
            "tests": [*tests],
        }

    # -- what was tested: the same words in each run of a build, because its id is the same too

    def _key(self, build: str) -> str:
        """What names the content of a build; without that, a build is the run's own."""
        return self._run.builds.get(build, {}).get("key") or f"unknown in run {self._run.header.run_id}"

    def _checkout(self, build: str) -> Object:
        checkout: Object = {"id": self._id(self._key(build)), "origin": self._origin}
        if self._key_is_known(build):
            checkout["valid"] = True  # it was compiled, or taken as it is
        if not (source := self._run.sources.get(build)):
            return checkout
        checkout["comment"] = visible_line(source.text())
        if source.commit and _COMMIT.fullmatch(source.commit):
            checkout["git_commit_hash"] = source.commit
        if source.subject:
            checkout["git_commit_message"] = visible_line(source.subject)
        if source.branch:
            checkout["git_repository_branch"] = visible_line(source.branch)
        facts = {"commit": source.commit, "date": source.date, "package": source.package, "version": source.version}
        checkout["misc"] = {key: visible_line(value) for key, value in facts.items() if value}
        return checkout

    def _build(self, build: str) -> Object:
        made: Object = {
            "id": self._build_id(build),
            "checkout_id": self._id(self._key(build)),
            "origin": self._origin,
            "architecture": "x86_64",
            "config_name": visible_line(build),
        }
        if self._key_is_known(build):
            made["status"] = Verdict.PASS.value
        if facts := self._run.builds.get(build):
            made["misc"] = {visible_line(key): visible_line(value) for key, value in facts.items()}
        return made

    def _key_is_known(self, build: str) -> bool:
        return bool(self._run.builds.get(build, {}).get("key"))

    # -- what came of it

    def _test(self, result: TestResult) -> Object:
        attempts = self._run.attempts.get((result.case, result.build), [])
        earlier = [one for one in attempts if one is not result]
        known = known_findings(result)
        test: Object = {
            "id": self._test_id(result.build, slug(result.case)),
            "build_id": self._build_id(result.build),
            "origin": self._origin,
            "path": _path(result.case),
            "status": result.verdict.value,
            "start_time": _time(result.started),
            "duration": result.own_seconds,
        }
        misc: Object = {**self._run_facts(), "case": visible_line(result.case), "rule": visible_line(result.rule)}
        if result.area:
            misc["area"] = visible_line(result.area)
        if result.boards:
            boards: list[Json] = [visible_line(board) for board in result.boards]
            facts = self._run.header.boards
            test["environment"] = {
                "comment": ", ".join(map(str, boards)),
                "misc": {visible_line(board): _words(facts.get(board, {})) for board in result.boards},
            }
        if known:
            misc["known_findings"] = [
                {"name": visible_line(one.name), "checks": [*map(visible_line, one.checks)]} for one in known
            ]
        if result.reason:
            test["comment"] = visible_line(result.reason)
        elif known:
            test["comment"] = f"PASS, known bug {', '.join(visible_line(one.name) for one in known)}"
        if decisive := [one for one in result.evidence if one.kind in ("exception", "console", CRASH)]:
            said = "\n\n".join(f"--- {one.kind}: {one.title} ---\n{one.body}" for one in decisive)
            test["log_excerpt"] = shortened(visible(said), _EXCERPT)
        if result.fingerprint:
            misc["fingerprint"] = visible_line(result.fingerprint)
        if figures := {visible_line(key): one for key, one in result.figures.items() if math.isfinite(one)}:
            misc["figures"] = {**figures}
        if result.provisioning_seconds:
            misc["provisioning_s"] = result.provisioning_seconds
        if result.rule != DID_NOT_RUN:
            misc["attempt"] = result.attempt
        if earlier:
            misc["flaky"] = is_flaky(attempts)
            misc["other_attempts"] = [
                {"attempt": one.attempt, "status": one.verdict.value, "reason": visible_line(one.reason)}
                for one in earlier
            ]
        return test | {"misc": misc}

    def _run_itself(self, build: str, why: str) -> Object:
        header = self._run.header
        return {
            "id": self._test_id(build, RUN),
            "build_id": self._build_id(build),
            "origin": self._origin,
            "path": f"{SUITE}.{RUN}",
            "status": Verdict.MISS.value,
            "start_time": _time(header.started),
            "comment": visible_line(why),
            "misc": {**self._run_facts(), "remarks": [visible_line(one) for one in self._run.remarks]},
        }

    def _why_not_good(self) -> str | None:
        """What makes the run less than good and is in none of its tests."""
        run = self._run
        if run.progress:
            return run.progress
        is_seen = run.missing or any(one.verdict.severity >= Verdict.MISS.severity for one in run.results)
        if is_seen or run.overall in (Verdict.PASS, Verdict.SKIP):
            return None
        return "; ".join(run.shortfalls) or f"exit status {run.status}: {run.meaning}"

    def _run_facts(self) -> Object:
        header = self._run.header
        facts: Object = {"run": visible_line(header.run_id), "run_state": self._run.state.value}
        return facts | ({} if header.exit_status is None else {"run_exit_status": header.exit_status})

    # -- names

    def _id(self, text: str) -> str:
        return f"{self._origin}:{visible_line(text)}"

    def _build_id(self, build: str) -> str:
        return self._id(f"{build}@{self._key(build)}")

    def _test_id(self, build: str, name: str) -> str:
        return self._id(f"{self._run.header.run_id}:{slug(build)}:{name}")


def _path(case: str) -> str:
    """``xenlab.sleep.test_s3.test_s3_rtc_wake``; what the schema does not take in a path is ``_`` there."""
    file, *inner = case.removeprefix("testcases/").split("::")
    parts = [SUITE, *file.removesuffix(".py").split("/"), *inner]
    plain = (re.sub(r"[^A-Za-z0-9_-]+", "_", part).strip("_") for part in parts)
    return ".".join(part for part in plain if part)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _words(facts: object) -> Json:
    return {visible_line(k): visible_line(v) for k, v in facts.items()} if isinstance(facts, dict) else {}
