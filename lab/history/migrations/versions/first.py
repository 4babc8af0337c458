"""The tables as they were at first."""

import sqlalchemy as sa
from alembic import op

revision = "first"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("started", sa.Double, nullable=False),
        sa.Column("finished", sa.Double),
        sa.Column("exit_status", sa.Integer),
        sa.Column("selection", sa.String, nullable=False),
        sa.Column("folder", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
    )
    op.create_table(
        "builds",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("line", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("build_id", sa.String, nullable=False),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("first_seen", sa.Double, nullable=False),
        sa.Column("last_seen", sa.Double, nullable=False),
        sa.Column("accepted", sa.Double),
        sa.UniqueConstraint("line", "key", name="uq_builds_line_key"),
    )
    op.create_table(
        "cases",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("doc", sa.String, nullable=False),
    )
    op.create_table(
        "series",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("case_id", sa.Integer, sa.ForeignKey("cases.id"), nullable=False),
        sa.Column("line", sa.String, nullable=False),
        sa.Column("board_class", sa.String, nullable=False),
        sa.UniqueConstraint("case_id", "line", "board_class", name="uq_series"),
    )
    op.create_table(
        "results",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("build_id", sa.Integer, sa.ForeignKey("builds.id"), nullable=False),
        sa.Column("series_id", sa.Integer, sa.ForeignKey("series.id"), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("verdict", sa.String, nullable=False),
        sa.Column("rule", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("boards", sa.String, nullable=False),
        sa.Column("started", sa.Double, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.UniqueConstraint("run_id", "ordinal", name="uq_results_run_ordinal"),
    )
    op.create_index("ix_results_build", "results", ["build_id", "verdict", "series_id"])
    op.create_index("ix_results_series", "results", ["series_id", "verdict", "started"])


def downgrade() -> None:
    for table in ("results", "series", "cases", "builds", "runs"):
        op.drop_table(table)
