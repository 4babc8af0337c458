"""Results know by which crash they ended."""

import sqlalchemy as sa
from alembic import op

revision = "crashes"
down_revision = "first"


def upgrade() -> None:
    op.add_column("results", sa.Column("fingerprint", sa.String, nullable=False, server_default=""))
    crashed = sa.text("fingerprint <> ''")
    columns = ["fingerprint", "build_id"]
    op.create_index("ix_results_crash", "results", columns, sqlite_where=crashed, postgresql_where=crashed)


def downgrade() -> None:
    op.drop_index("ix_results_crash", "results")
    op.drop_column("results", "fingerprint")
