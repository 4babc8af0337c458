"""Options of the framework's own tests."""

from __future__ import annotations

import pytest

SOAK = "20s"  # in CI
collect_ignore = ["soak"]  # its cases are run by a night of the soak, on boards of its own


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", default=SOAK, metavar="TIME", help="how long tests/test_soak.py makes trouble: 1h")
    parser.addoption("--fuzz", default="", metavar="TIME", help="how long tests/test_fuzz.py tries chances: 1h")
    parser.addoption("--fuzz-seed", default=0, type=int, metavar="N", help="the first seed of tests/test_fuzz.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a run by chance has tried, and what a soak has done: the figures that the tests recorded."""
    said = [
        f"{value} {name}: {report.nodeid}"
        for report in terminalreporter.stats.get("", ())  # of setups and teardowns that passed
        for name, value in report.user_properties
        if name in ("chances", "soak") and report.when == "teardown"
    ]
    if said and (terminalreporter.config.getoption("--fuzz") or terminalreporter.config.getoption("--soak") != SOAK):
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(said))
