"""Ledgers of many rows, made quickly: rows as the server would have left them, all answered, their pictures stored.

Knows the table and SQLite's ways of writing much at once. What is put in is small (some 700 bytes a row with all
its index entries), so that ten million rows fit on a disk; the depth of the trees is what matters, not their leaves.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from bench.account import APPID
from storage.database import connect

ROWS_PER_SECOND = 50  # of the made-up past: ten million are two days and a bit
_BATCH = 500_000

_FILL = """
WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)
INSERT INTO messages (message_key, sender, appid, msg_type, msg_id, create_time, received_at, xml, reply,
  media_state, media_due, media_attempts, media_claim, media_done_at, media_id, media_kind, media_key, media_size,
  media_sha256, thumbnail_state)
SELECT 'm:' || (1000000000000000000 + n), printf('oFan%024d', n * 7919 % 1000003), :appid, 'image',
  1000000000000000000 + n, CAST(:begin + n / :pace AS INTEGER), :begin + n / :pace, zeroblob(60), zeroblob(60),
  'stored', :begin + n / :pace, 1, n, :begin + n / :pace + 1, printf('MEDIA-%020d', n), 'image',
  :appid || '/2026/01/01/' || n || '.jpg', 200000, lower(hex(randomblob(8))), 'made'
FROM numbers
"""


def make(file: Path, rows: int) -> None:
    """A ledger at `file` with so many rows; the newest came in just now."""
    connect(f"sqlite:///{file}").close()
    if not rows:
        return
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        # Not safe against a crash: an interrupted ledger is made again.
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -400000"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'messages' AND sql NOT NULL"
        ).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")
        begin = time.time() - 2 - rows / ROWS_PER_SECOND
        for first in range(1, rows + 1, _BATCH):
            values = {"first": first, "last": min(first + _BATCH - 1, rows), "appid": APPID}
            connection.execute(_FILL, values | {"begin": begin, "pace": float(ROWS_PER_SECOND)})
        for _, statement in indexes:
            connection.execute(statement)
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
