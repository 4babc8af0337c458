"""The tables. A change here needs a migration in ``migrations/versions``, and its name in HEAD."""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, Index, Integer, MetaData, String, Table, UniqueConstraint, text

HEAD = "failures"  # the newest migration

metadata = MetaData()
_CRASHED = text("fingerprint <> ''")  # few are
_FAILED = text("failure <> ''")

runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),  # RunHeader.run_id
    Column("started", Double, nullable=False),  # seconds since the epoch, as all times here
    Column("finished", Double),
    Column("exit_status", Integer),
    Column("selection", String, nullable=False),
    Column("folder", String, nullable=False),  # where it was imported from
    Column("digest", String, nullable=False),  # of the files it was imported from
)

builds = Table(
    "builds",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("line", String, nullable=False),  # the recipe's name
    Column("key", String, nullable=False),  # of what went into it; "run:RUN" where the run did not note it
    Column("build_id", String, nullable=False),
    Column("version", String, nullable=False),
    Column("first_seen", Double, nullable=False),  # start of its first run: the order of a line's builds
    Column("last_seen", Double, nullable=False),
    Column("accepted", Double),  # when; null: never
    Column("source_commit", String),  # as builds.json notes it; null: not noted
    Column("source_subject", String),
    Column("source_date", String),
    Column("source_branch", String),
    Column("source_package", String),
    Column("source_version", String),
    UniqueConstraint("line", "key", name="uq_builds_line_key"),
)

cases = Table(
    "cases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),  # pytest node id
    Column("doc", String, nullable=False),
)

series = Table(  # what is compared over time
    "series",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("case_id", Integer, ForeignKey("cases.id"), nullable=False),
    Column("line", String, nullable=False),
    Column("board_class", String, nullable=False),  # empty: results that never had a board
    UniqueConstraint("case_id", "line", "board_class", name="uq_series"),
)

results = Table(  # every attempt
    "results",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", Integer, ForeignKey("runs.id"), nullable=False),
    Column("ordinal", Integer, nullable=False),  # place in the run
    Column("build_id", Integer, ForeignKey("builds.id"), nullable=False),
    Column("series_id", Integer, ForeignKey("series.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("verdict", String, nullable=False),
    Column("rule", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("boards", String, nullable=False),  # sorted, joined by commas
    Column("started", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("fingerprint", String, nullable=False, server_default=""),  # of the crash that decided
    Column("failure", String, nullable=False, server_default=""),  # lab.results.failures.failure_key
    Column("known", String, nullable=False, server_default=""),  # findings that excused it: "NAME:CHECK,CHECK NAME"
    Column("bad", String, nullable=False, server_default=""),  # checks that failed, by blanks
    Column("figures", String, nullable=False, server_default=""),  # JSON: name -> number
    UniqueConstraint("run_id", "ordinal", name="uq_results_run_ordinal"),
    Index("ix_results_build", "build_id", "verdict", "series_id"),
    Index("ix_results_series", "series_id", "verdict", "started"),
    Index("ix_results_crash", "fingerprint", "build_id", sqlite_where=_CRASHED, postgresql_where=_CRASHED),
    Index("ix_results_failure", "failure", "build_id", sqlite_where=_FAILED, postgresql_where=_FAILED),
)

known_issues = Table(  # what people have said of failures
    "known_issues",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("failure", String, nullable=False),  # as in results
    Column("case_name", String, nullable=False),  # the only case that it is said of; empty: all
    Column("link", String, nullable=False),
    Column("note", String, nullable=False),
    Column("author", String, nullable=False),
    Column("added", Double, nullable=False),
    UniqueConstraint("failure", "case_name", "link", name="uq_known_issues"),
)
