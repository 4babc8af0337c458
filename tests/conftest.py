"""Options of the framework's own tests."""

from __future__ import annotations

import pytest

collect_ignore = ["soak"]  # its cases are run by a night of the soak, on boards of its own

# Files that take longest come first: a file is run by one worker, so a long one that began last would be the end.
LONGEST = (
    *("test_night", "test_command_line", "test_booking", "test_services", "test_soak", "test_environment"),
    *("test_secrets", "test_bmc", "test_health", "test_ledger", "test_rack_of_three", "test_power", "test_console"),
    *("test_builds", "test_packaging", "test_virtual", "test_payloads", "test_site", "test_fuzz", "test_history"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", default="20s", metavar="TIME", help="how long tests/test_soak.py makes trouble: 1h")
    parser.addoption("--fuzz", default="", metavar="TIME", help="how long tests/test_fuzz.py tries chances: 1h")
    parser.addoption("--fuzz-seed", default=0, type=int, metavar="N", help="the first seed of tests/test_fuzz.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
