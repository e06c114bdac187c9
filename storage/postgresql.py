"""A connection to PostgreSQL on which no statement waits for ever.

The system notices a server that is gone. It does not notice one that is there and says nothing, as a hung process
behind a pooler does: such a connection ends here, and the operation is tried again on a new one. Knows the driver. Must
not know statements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

T = TypeVar("T")


class Connection(psycopg.Connection[Any]):
    """psycopg's own, with an end to each statement."""

    patience: float | None = 10.0
    """Seconds that a statement may take; then it raises psycopg.OperationalError. None: as long as it takes."""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        return super().wait(gen, interval, self.patience if timeout is None else timeout)

    def rows(self, sql: bytes, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """The rows that a statement with $1, $2 and so on returns."""
        # All go as text without a type, which the columns decide: one prepared statement fits, whatever is NULL.
        texts = [
            value if value is None else str(value) if not isinstance(value, bytes) else f"\\x{value.hex()}"
            for value in values
        ]
        return psycopg.RawCursor(self).execute(sql, texts, prepare=True).fetchall()
