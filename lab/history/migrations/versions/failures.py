"""Failures have names, builds have sources; known issues are linked.

Results of runs whose folders are still there are taken over anew, since the old tables kept neither their figures nor
the findings that excused them.
"""

import sqlalchemy as sa
from alembic import op

from lab.results.failures import failure_key
from lab.results.record import Verdict

revision = "failures"
down_revision = "crashes"

_SOURCE = ("commit", "subject", "date", "branch", "package", "version")
_RESULT = ("failure", "known", "bad", "figures")


def upgrade() -> None:
    for name in _SOURCE:
        op.add_column("builds", sa.Column(f"source_{name}", sa.String))
    for name in _RESULT:
        op.add_column("results", sa.Column(name, sa.String, nullable=False, server_default=""))
    failed = sa.text("failure <> ''")
    columns = ["failure", "build_id"]
    op.create_index("ix_results_failure", "results", columns, sqlite_where=failed, postgresql_where=failed)
    op.create_table(
        "known_issues",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("failure", sa.String, nullable=False),
        sa.Column("case_name", sa.String, nullable=False),
        sa.Column("link", sa.String, nullable=False),
        sa.Column("note", sa.String, nullable=False),
        sa.Column("author", sa.String, nullable=False),
        sa.Column("added", sa.Double, nullable=False),
        sa.UniqueConstraint("failure", "case_name", "link", name="uq_known_issues"),
    )
    _name_failures(op.get_bind())
    op.execute("UPDATE runs SET digest = ''")


def _name_failures(connection: sa.Connection) -> None:
    results = sa.table(
        "results",
        *(sa.column(name) for name in ("id", "verdict", "rule", "reason", "boards", "fingerprint", "failure")),
    )
    rows = connection.execute(sa.select(results).where(results.c.verdict.not_in(("PASS", "SKIP")))).mappings().all()
    named = [
        {
            "of": row["id"],
            "named": failure_key(
                Verdict(row["verdict"]), row["rule"], row["reason"], row["boards"].split(","), row["fingerprint"]
            ),
        }
        for row in rows
    ]
    if named:
        mine = results.c.id == sa.bindparam("of")
        connection.execute(sa.update(results).where(mine).values(failure=sa.bindparam("named")), named)


def downgrade() -> None:
    op.drop_table("known_issues")
    op.drop_index("ix_results_failure", "results")
    for name in _RESULT:
        op.drop_column("results", name)
    for name in _SOURCE:
        op.drop_column("builds", f"source_{name}")
