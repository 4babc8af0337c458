"""Writes tests/data/figures/change_points.json: where ruptures and Apache Otava divide series of times.

Both bring numpy and scipy, 220 MB, so they are no dependency: their answers are kept. To renew them::

    python3 -m venv V && V/bin/pip install ruptures && V/bin/pip install --no-deps apache-otava
    V/bin/python tests/record_change_points.py
"""

from __future__ import annotations

import json
import random
from importlib.metadata import version
from pathlib import Path

import numpy
import ruptures
from otava.change_point_divisive.calculator import PairDistanceCalculator
from otava.change_point_divisive.detector import ChangePointDetector
from otava.change_point_divisive.significance_test import PermutationsSignificanceTester

FILE = Path(__file__).parent / "data" / "figures" / "change_points.json"
LEAST = 2  # values on each side of a change
PLANTED = ({}, {}, {}, {15: 0.2}, {15: -0.2}, {27: 0.2}, {3: 0.2}, {10: 0.2, 20: 0.2}, {8: 0.1, 22: -0.15}, {20: 0.05})


def main() -> None:
    """Series of 30 times with 2 % of noise; a planted change is a share of the level before it, and stays."""
    chances = random.Random(20261130)
    found = []
    for planted in PLANTED:
        level, values = 1000.0, []
        for at in range(30):
            level *= 1 + planted.get(at, 0.0)
            values.append(round(chances.gauss(level, level * 0.02), 2))
        signal = numpy.array(values)
        tester = PermutationsSignificanceTester(0.001, 1999, PairDistanceCalculator, seed=1)
        otava = [
            int(one.index) for one in ChangePointDetector(tester, PairDistanceCalculator).get_change_points(signal)
        ]
        means = ruptures.Binseg(model="l2", min_size=LEAST, jump=1).fit(signal)
        best = {count: [int(at) for at in means.predict(n_bkps=count)[:-1]] for count in (1, 2)}
        found.append({"planted": [*planted], "values": values, "otava": sorted(otava), "ruptures": best})
    made_by = {name: version(name) for name in ("ruptures", "apache-otava")}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps({"made by": made_by, "series": found}, indent=1) + "\n", encoding="utf-8")


main()
