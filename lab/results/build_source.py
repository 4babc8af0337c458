"""From which source a build was made, as ``builds.json`` notes it under ``source``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """A git commit, or a source package of Debian. Nothing is known of a build that an older xenlab noted."""

    commit: str | None = None
    subject: str | None = None  # the first line of the commit's message
    date: str | None = None  # of the commit, ISO 8601
    branch: str | None = None
    package: str | None = None
    version: str | None = None  # of the package

    def __bool__(self) -> bool:
        return bool(self.commit or self.package)

    @property
    def name(self) -> str | None:
        """``abc1234``, or ``xen 4.17.5+72-g01140da4e8-1``."""
        if self.commit:
            return self.commit[:7]
        return " ".join(filter(None, (self.package, self.version))) or None

    def text(self) -> str:
        """One line that says all that is known."""
        if self.package:
            return self.name or ""
        commit = (self.commit or "")[:12]
        subject = f" ({self.subject})" if self.subject else ""
        return " ".join(filter(None, (commit + subject, self.date, self.branch and f"on {self.branch}")))

    @classmethod
    def read(cls, noted: object) -> Source:
        """What ``builds.json`` has under ``source``; anything else there counts as nothing."""
        if not isinstance(noted, Mapping):
            return cls()
        words = {key: value for key in cls.__slots__ if isinstance(value := noted.get(key), str) and value}
        return cls(**words)
