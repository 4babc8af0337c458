"""Tests of XTF, Xen's own test framework, from a directory of built tests.

The layout is XTF's: ``tests/NAME/info.json`` describes a test, ``tests/NAME/test-ENV-NAME`` is its kernel, and
``tests/NAME/test-ENV-NAME[~VARIATION].cfg`` is its configuration for xl. Sources: xtf-runner, build/mkinfo.py and
config/default-*.cfg.in of https://github.com/andyhhp/xtf.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from lab.base import files
from lab.base.errors import ProductTimeout, UsageError
from lab.on_board import GUESTS
from lab.xen.domain import Domain, DomainConfig
from lab.xen.host import Host

Outcome = Literal["SUCCESS", "SKIP", "ERROR", "FAILURE", "CRASH"]
OUTCOMES: tuple[Outcome, ...] = ("SUCCESS", "SKIP", "ERROR", "FAILURE")  # as a test reports them
ON_BOARD = "xtf"  # below the folder of guest payloads
BY_DEFAULT = ("functional", "xsa")  # categories that xtf-runner --all runs; the others are in the weekly selection
TIMEOUT = 120.0  # seconds; xtf-runner has no limit, and would wait for a test that hangs without end


class XtfError(Exception):
    """The test reports that it could not do its work: verdict ERROR."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One test in one environment, and one variation if it has any."""

    test: str
    category: str
    environment: str
    variation: str
    kernel: Path
    cfg: Path

    @property
    def name(self) -> str:
        """The name of its domain, without ``test-``."""
        return f"{self.environment}-{self.test}" + (f"~{self.variation}" if self.variation else "")

    @property
    def needs(self) -> tuple[str, ...]:
        """Capabilities that it needs, as xtf-runner asks for them.

        Beyond them, an HVM guest needs a device model, and one with PAE a machine that runs it on nested paging.
        """
        first = ("hvm", "qemu") if self.environment.startswith("hvm") else ("pv",)
        narrow = {"pv32pae": ("pv32",), "hvm32pae": ("pae-guests",)}.get(self.environment, ())
        paging = (self.variation,) if self.variation in ("hap", "shadow") else ()
        return (*first, *narrow, *paging)

    @property
    def on_board(self) -> str:
        """The kernel's path below the folder of guest payloads."""
        return f"{ON_BOARD}/{self.test}/{self.kernel.name}"


class _Info(pydantic.BaseModel):
    """info.json. Keys that a later XTF may add are ignored."""

    name: Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    category: str
    environments: list[Annotated[str, pydantic.StringConstraints(pattern=r"^(pv|hvm)[a-z0-9]+$")]]
    variations: list[Annotated[str, pydantic.StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")]] = []


def instances(directory: Path) -> list[Instance]:
    """All instances of a directory of built tests, by name.

    :raises UsageError: the directory has no built XTF, or a file of a test is missing; names it.
    """
    files = sorted((directory / "tests").glob("*/info.json"))
    if not files:
        raise UsageError(f"{directory}: no built XTF: it has no tests/NAME/info.json")
    return [instance for file in files for instance in _instances_of(file)]


def _instances_of(file: Path) -> list[Instance]:
    try:
        info = _Info.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{file}: {'.'.join(str(part) for part in first['loc'])}: {files.plain(first['msg'])}"
        ) from None
    except (ValueError, OSError) as error:
        raise UsageError(f"{file}: {error}") from None
    found = []
    for environment in info.environments:
        kernel = file.parent / f"test-{environment}-{info.name}"
        for variation in info.variations or [""]:
            cfg = kernel.with_name(kernel.name + (f"~{variation}" if variation else "") + ".cfg")
            for needed in (kernel, cfg):
                if not needed.is_file():
                    raise UsageError(f"{file}: it names {environment}, but {needed} is not there")
            found.append(Instance(info.name, info.category, environment, variation, kernel, cfg))
    return found


def payloads(directory: Path) -> Mapping[str, Path]:
    """The payloads that a board needs for all tests: name on the board -> file here."""
    return {instance.on_board: instance.kernel for instance in instances(directory)}


@dataclass(frozen=True, slots=True)
class XtfConfig(DomainConfig):
    """A configuration that XTF wrote."""

    written: str = ""

    def text(self) -> str:
        return self.written


def config(host: Host, instance: Instance) -> XtfConfig:
    """The test's own configuration, with the kernel's path on this board and a name that was never used there."""
    name, kernel = host.unique(f"xtf-{instance.name.replace('~', '-')}"), f"{GUESTS}/{instance.on_board}"
    written = instance.cfg.read_text(encoding="utf-8")
    written = re.sub(rf"""(["'])[^"'\n]*/{re.escape(instance.kernel.name)}\1""", f'"{kernel}"', written)
    written = re.sub(r"(?m)^[ \t]*name[ \t]*=.*$", f'name = "{name}"', written)
    kind: Literal["pv", "hvm"] = "hvm" if instance.environment.startswith("hvm") else "pv"
    return XtfConfig(name, kind, kernel, written=written)


def outcome(guest: Domain, timeout: float = TIMEOUT) -> tuple[Outcome, str]:
    """Wait for the test's result; the result and the line that says so.

    CRASH, as in xtf-runner: the guest is gone, or ``timeout`` seconds are over, or more on a slow board
    (:meth:`lab.xen.dom0.Dom0.limits`), and it printed no result.
    """

    def result() -> str:
        return next((line for line in guest.console() if "Test result:" in line), "")

    try:
        guest.host.expect(lambda: result() or not guest.is_there, timeout, f"{guest.name}: a result")
    except ProductTimeout as error:
        return "CRASH", f"no result within {error.timeout:.3g} s"
    line = result()
    said = next((word for word in OUTCOMES if word in line), None)
    return (said, line) if said else ("CRASH", line or "the guest is gone without a result")
