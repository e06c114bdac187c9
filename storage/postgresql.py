"""A connection to PostgreSQL on which no statement waits for ever.

The system notices a server that is gone. It does not notice one that is there and says nothing, as a hung process
behind a pooler does: such a connection ends here, and the operation is tried again on a new one. Knows the driver. Must
not know statements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def rows(self, sql: str, values: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The row that the statement returns for each, or None; all in one transaction, committed when this returns."""
        with self.cursor() as cursor:
            # Sent one behind the other, and waited for once.
            cursor.executemany(sql, values, returning=True)
            return [result.fetchone() for result in cursor.results()]
