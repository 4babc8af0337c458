"""The tables of the ledger's SQLite file, see :mod:`lab.leases.ledger`.

Times are seconds since the epoch, unless the column says otherwise. Columns of type JSON hold lists of text.
"""

from __future__ import annotations

# waiter: process whose end withdraws a waiting request. job: process whose end ends the lease; empty: none.
# boot, until_boottime: the boot in which `until` was last set, and when it is by that boot's own clock: so a clock that
# is set ends no lease, and makes none last longer.
LEASES = """\
CREATE TABLE IF NOT EXISTS leases (
    id INTEGER NOT NULL PRIMARY KEY,
    kind VARCHAR NOT NULL,
    holder VARCHAR NOT NULL,
    names JSON NOT NULL,
    needs JSON NOT NULL,
    count INTEGER NOT NULL,
    seconds FLOAT NOT NULL,
    asked FLOAT NOT NULL,
    waiter VARCHAR NOT NULL,
    job VARCHAR NOT NULL,
    state VARCHAR NOT NULL,
    since FLOAT,
    until FLOAT,
    boot VARCHAR,
    until_boottime FLOAT,
    wanted_back VARCHAR DEFAULT '' NOT NULL,
    why_ended VARCHAR DEFAULT '' NOT NULL
)
"""
# As a question names them, so that a ledger with another column is found to be damaged, even if it has no row.
LEASES_WHERE = (
    "SELECT id, kind, holder, names, needs, count, seconds, asked, waiter, job, state, since, until, boot, "
    "until_boottime, wanted_back, why_ended FROM leases WHERE"
)
OF_BOARD = "board, last_holder, quarantine, evidence, changed, checked, misses, verdict, writer"
BY_STATE = "CREATE INDEX IF NOT EXISTS ix_leases_state ON leases (state)"

# mark: number of the first console record of the lease.
HOLDS = """\
CREATE TABLE IF NOT EXISTS holds (
    board VARCHAR NOT NULL PRIMARY KEY,
    lease INTEGER NOT NULL REFERENCES leases (id),
    mark INTEGER
)
"""

# In the coordinator's queue.
RESERVATIONS = """\
CREATE TABLE IF NOT EXISTS reservations (
    token VARCHAR NOT NULL PRIMARY KEY,
    lease INTEGER NOT NULL REFERENCES leases (id),
    board VARCHAR NOT NULL
)
"""

# last_holder: empty when it is clean. quarantine: the cause; empty: none. checked: when a health check passed.
# misses: builds of the bench misses since the last good result. writer: who types on its console.
BOARDS = """\
CREATE TABLE IF NOT EXISTS boards (
    board VARCHAR NOT NULL PRIMARY KEY,
    last_holder VARCHAR DEFAULT '' NOT NULL,
    quarantine VARCHAR DEFAULT '' NOT NULL,
    evidence VARCHAR DEFAULT '' NOT NULL,
    changed FLOAT,
    checked FLOAT,
    misses JSON DEFAULT '[]' NOT NULL,
    verdict VARCHAR DEFAULT '' NOT NULL,
    writer VARCHAR DEFAULT '' NOT NULL
)
"""

AUDIT = """\
CREATE TABLE IF NOT EXISTS audit (
    id INTEGER NOT NULL PRIMARY KEY,
    time FLOAT NOT NULL,
    lease INTEGER,
    board VARCHAR NOT NULL,
    what VARCHAR NOT NULL,
    detail VARCHAR NOT NULL
)
"""

ALL = (LEASES, BY_STATE, HOLDS, RESERVATIONS, BOARDS, AUDIT)
SINCE_1 = ("ALTER TABLE leases ADD COLUMN boot VARCHAR", "ALTER TABLE leases ADD COLUMN until_boottime FLOAT")
