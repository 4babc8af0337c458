"""Options of the framework's own tests."""

from __future__ import annotations

import pytest

collect_ignore = ["soak"]  # its cases are run by a night of the soak, on boards of its own


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", default="20s", metavar="TIME", help="how long tests/test_soak.py makes trouble: 1h")
    parser.addoption("--fuzz", default="", metavar="TIME", help="how long tests/test_fuzz.py tries chances: 1h")
    parser.addoption("--fuzz-seed", default=0, type=int, metavar="N", help="the first seed of tests/test_fuzz.py")
