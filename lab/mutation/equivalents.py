"""Mutants that no test can tell from the original, each with the reason: ``testcases/equivalent-mutants.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import pydantic

from lab.base import paths
from lab.base.files import Strict, read_yaml, validate

FILE = paths.TESTCASES / "equivalent-mutants.yaml"

_Id = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{12}$")]
_Reason = Annotated[str, pydantic.StringConstraints(min_length=10)]


class _Equivalent(Strict):
    file: str
    reason: _Reason


class _File(Strict):
    equivalent: dict[_Id, _Equivalent]


def load() -> Mapping[str, str]:
    """The reason by the point's id. :raises UsageError: the file is wrong; says line and key."""
    found = validate(_File, FILE, read_yaml(FILE))
    return {point: one.reason for point, one in found.equivalent.items()}
