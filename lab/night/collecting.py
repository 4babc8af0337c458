"""Lists cases for planning: a line of JSON each. Run by :mod:`lab.night.nightly` in a process of its own."""

from __future__ import annotations

import json
import sys

import pytest

from lab.case import markers
from lab.night.kept import kept_by


class Listing:
    """Prints the collected cases."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            case = {
                "nodeid": item.nodeid,
                "area": markers.area_of(item),
                "boards": markers.boards_wanted(item),
                "needs": markers.needs_of(item),
                "xen_options": markers.xen_options_of(item),
                "selection": markers.selection_of(item),
                "doc": (getattr(item, "obj", None).__doc__ or "").strip(),
                "evidence": kept_by(item),
            }
            print(json.dumps(case))


if __name__ == "__main__":
    # No case runs here: neither asserts that explain themselves nor labgrid's plugin is needed, and both take seconds.
    words = ["--collect-only", "-qq", "--assert=plain", "-p", "no:labgrid", "-p", "no:cacheprovider"]
    sys.exit(pytest.main([*words, *sys.argv[1:]], plugins=[Listing()]))
