"""The tables of the ledger's SQLite file, see :mod:`lab.leases.ledger`.

Times are seconds since the epoch, unless the column says otherwise.
"""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()
leases = sa.Table(
    "leases",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("names", sa.JSON, nullable=False),
    sa.Column("needs", sa.JSON, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("asked", sa.Float, nullable=False),
    sa.Column("waiter", sa.String, nullable=False),  # process whose end withdraws a waiting request
    sa.Column("job", sa.String, nullable=False),  # process whose end ends the lease; empty: none
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("since", sa.Float),
    sa.Column("until", sa.Float),
    sa.Column("boot", sa.String),  # the boot in which `until` was last set, and when it is by that boot's own clock:
    sa.Column("until_boottime", sa.Float),  # so a clock that is set ends no lease, and makes none last longer
    sa.Column("wanted_back", sa.String, nullable=False, server_default=""),
    sa.Column("why_ended", sa.String, nullable=False, server_default=""),
)
holds = sa.Table(
    "holds",
    METADATA,
    sa.Column("board", sa.String, primary_key=True),
    sa.Column("lease", sa.Integer, sa.ForeignKey("leases.id"), nullable=False),
    sa.Column("mark", sa.Integer),  # number of the first console record of the lease
)
reservations = sa.Table(  # in the coordinator's queue
    "reservations",
    METADATA,
    sa.Column("token", sa.String, primary_key=True),
    sa.Column("lease", sa.Integer, sa.ForeignKey("leases.id"), nullable=False),
    sa.Column("board", sa.String, nullable=False),
)
boards = sa.Table(
    "boards",
    METADATA,
    sa.Column("board", sa.String, primary_key=True),
    sa.Column("last_holder", sa.String, nullable=False, server_default=""),  # empty: it is clean
    sa.Column("quarantine", sa.String, nullable=False, server_default=""),  # the cause; empty: none
    sa.Column("evidence", sa.String, nullable=False, server_default=""),
    sa.Column("changed", sa.Float),
    sa.Column("checked", sa.Float),  # when a health check passed
    sa.Column("misses", sa.JSON, nullable=False, server_default="[]"),  # builds of the bench misses since the last good
    sa.Column("verdict", sa.String, nullable=False, server_default=""),
    sa.Column("writer", sa.String, nullable=False, server_default=""),  # who types on its console
)
audit = sa.Table(
    "audit",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("lease", sa.Integer),
    sa.Column("board", sa.String, nullable=False),
    sa.Column("what", sa.String, nullable=False),
    sa.Column("detail", sa.String, nullable=False),
)
