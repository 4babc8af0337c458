"""Options of the framework's own tests."""

from __future__ import annotations

import pytest

collect_ignore = ["soak"]  # its cases are run by a night of the soak, on boards of its own


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", default="20s", metavar="TIME", help="how long tests/test_soak.py makes trouble: 1h")
