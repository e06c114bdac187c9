"""Statements for several rows: each gets its own row back, on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, Float, LargeBinary, MetaData, Table, Text, select
from sqlalchemy.dialects import postgresql, sqlite

from storage.database import connect
from storage.statements import find_each, value

table = Table(
    "kept",
    MetaData(),
    Column("fan", Text, primary_key=True),
    Column("number", Text, primary_key=True),
    Column("at", Float(53)),
    Column("body", LargeBinary),
    Column("words", Text),
)
KEY = (table.c.fan, table.c.number)


def _find(count):
    return find_each(select(*table.c), KEY, count)


def _write(insert, count):
    rows = [{column.name: value(column.name, place) for column in table.c} for place in range(count)]
    return insert(table).values(rows).on_conflict_do_nothing().returning(*table.c)


def _write_sqlite(count):
    return _write(sqlite.insert, count)


def _write_postgresql(count):
    return _write(postgresql.insert, count)


@pytest.fixture
def database(database_url):
    database = connect(database_url)
    database.transact(lambda connection: table.create(connection))
    yield database
    database.transact(lambda connection: table.drop(connection))  # PostgreSQL's databases are used again
    database.close()


@pytest.fixture
def find(database):
    statement = database.row_statement(_find, KEY)
    return lambda *many: database.run(lambda connection: statement.rows(connection, many))


@pytest.fixture
def write(database):
    make = _write_sqlite if database.is_sqlite else _write_postgresql
    statement = database.row_statement(make, KEY)
    return lambda *many: database.write(lambda connection: statement.rows(connection, many))


def row(fan, number="1", at=None, body=None, words=None):
    return {"fan": fan, "number": number, "at": at, "body": body, "words": words}


def test_each_gets_its_own_row(write, find):
    assert write(row("b", at=1.5), row("a", "2", words="a2"), row("a", words="a1")) == [
        (1.5, None, None),
        (None, None, "a2"),
        (None, None, "a1"),
    ]
    assert find(row("a"), row("c"), row("b"), row("a", "2")) == [
        (None, None, "a1"),
        None,
        (1.5, None, None),
        (None, None, "a2"),
    ]


def test_what_is_there_stays_and_is_not_returned(write, find):
    write(row("a", words="first"))
    assert write(row("b"), row("a", words="second")) == [(None, None, None), None]
    assert find(row("a")) == [(None, None, "first")]


def test_of_several_with_one_key_the_first_is_written(write, find):
    assert write(row("a", words="first"), row("b"), row("a", words="second")) == [
        (None, None, "first"),
        (None, None, None),
        None,
    ]
    assert find(row("a"), row("a")) == [(None, None, "first")] * 2


def test_values_come_back_as_they_were(write, find):
    at, body = 1_700_000_000.123456, bytes(range(256))
    words = ["", "\\x41", "'; --", "$1", "%s", ":a", "?", "图尚往来 🙂", "a\nb\\"]
    rows = [row(text, text, at, body + text.encode(), text) for text in words]
    values = [(at, body + text.encode(), text) for text in words]
    assert write(*rows) == values
    assert find(*reversed(rows)) == values[::-1]
