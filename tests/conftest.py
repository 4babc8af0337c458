"""Options of the framework's own tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SOAK = "20s"  # in CI
# The files that take longest, the longest first: a worker that began one of them last would work on it alone.
# `pytest --durations=0` says how long each test takes.
LONGEST = """
    night controller booking faults bmc services hosts soak labgrids_client rack_of_three
    ssh_console console recorder_flood switch health power redfish_zoo command_line pulse site history
    recorded_bmcs behind_a_host sol_console environment proxy redfish_oddities secrets netboot ledger field_bmcs
""".split()
collect_ignore = ["soak"]  # its cases are run by a night of the soak, on boards of its own


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", default=SOAK, metavar="TIME", help="how long tests/test_soak.py makes trouble: 1h")
    parser.addoption("--fuzz", default="", metavar="TIME", help="how long tests/test_fuzz.py tries chances: 1h")
    parser.addoption("--fuzz-seed", default=0, type=int, metavar="N", help="the first seed of tests/test_fuzz.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order in which xdist hands them out, and tests in the order of their file."""
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(Path(item.location[0]).stem, len(LONGEST)))


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
