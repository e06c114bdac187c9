"""Statements that are turned into SQL once: to have SQLAlchemy do it for each run costs several times the run.

Knows how the two drivers run a statement, and how several rows are found or written by one. Must not know tables, nor
when an operation is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import BindParameter, Column, Connection, Dialect, Executable, Select, bindparam, union_all
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler

Row = tuple[Any, ...]


def driver_of(connection: Connection) -> Any:
    """The driver's own connection, for what must cost little: sqlite3's and psycopg's both have `execute`."""
    return connection.connection.dbapi_connection


class Prepared:
    """A statement that was turned into SQL."""

    def __init__(self, statement: Executable, dialect: Dialect) -> None:
        compiled = _compiled(statement, dialect)
        self._sql, self._names = compiled.string, compiled.positiontup
        self._given = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}

    def __call__(self, connection: Connection, **values: Any) -> Any:
        """The driver's cursor: its rows are tuples, of the driver's own types."""
        all_values = {**self._given, **values} if self._given else values
        parameters = all_values if self._names is None else [all_values[name] for name in self._names]
        return driver_of(connection).execute(self._sql, parameters)


class RowStatement:
    """Finds or writes one row for each of several keys, by one statement: turned into SQL once for each count of them.

    `make(count)` is that statement. It has a `value()` for each column and place, and each row that it returns begins
    with the columns of `key`, by which the row's place is found.
    """

    def __init__(self, make: Callable[[int], Executable], key: Sequence[str], dialect: Dialect) -> None:
        """`dialect`: one whose parameters have positions."""
        self._make, self._key, self._dialect = make, key, dialect
        self._by_count: dict[int, tuple[str, list[tuple[int, str]]]] = {}

    def row(self, connection: Connection, values: Mapping[str, Any]) -> Row | None:
        """The row of these values, of the driver's own types and without the key; or None."""
        found = self._run(connection, [values])
        return found[0][len(self._key) :] if found else None

    def rows(self, connection: Connection, many: Sequence[Mapping[str, Any]]) -> list[Row | None]:
        """The same for each of them. Of several with one key that are written the first has the row."""
        keys = [tuple(values[name] for name in self._key) for values in many]
        # In the same order everywhere: otherwise two processes that write the same rows could deadlock.
        order = sorted(range(len(many)), key=keys.__getitem__)
        found: dict[Row, list[Row]] = {}
        for row in self._run(connection, [many[place] for place in order]):
            found.setdefault(row[: len(self._key)], []).append(row[len(self._key) :])
        rows: list[Row | None] = [None] * len(many)
        for place in order:
            if found.get(keys[place]):
                rows[place] = found[keys[place]].pop()
        return rows

    def _run(self, connection: Connection, many: Sequence[Mapping[str, Any]]) -> Sequence[Row]:
        sql, parameters = self._by_count.get(len(many)) or self._prepare(len(many))
        values = [many[place][name] for place, name in parameters]
        driver = driver_of(connection)
        rows: Sequence[Row] = (
            driver.execute(sql, values).fetchall()
            if self._dialect.name == "sqlite"
            else driver.rows(sql.encode(), values)
        )
        return rows

    def _prepare(self, count: int) -> tuple[str, list[tuple[int, str]]]:
        compiled = _compiled(self._make(count), self._dialect)
        assert compiled.positiontup is not None
        values = (each.partition("_") for each in compiled.positiontup)  # named by value()
        self._by_count[count] = compiled.string, [(int(place), name) for place, _, name in values]
        return self._by_count[count]


def find_each(found: Select[Any], key: Sequence[Column[Any]], count: int) -> Executable:
    """The SELECT for so many keys. Each is looked for by itself, so that the plan is that of one."""
    return union_all(
        *(found.where(*(column == value(column.name, place) for column in key)) for place in range(count))
    )


def value(name: str, place: int) -> BindParameter[Any]:
    """That value of the row at that place, in a RowStatement."""
    return bindparam(f"{place}_{name}")


def _compiled(statement: Executable, dialect: Dialect) -> SQLCompiler:
    compiled = cast(ClauseElement, statement).compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)
    return compiled
