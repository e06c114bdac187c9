"""The errors of the database, as types that a caller can act on.

Must not know a database or a driver. A message says what to do next, and never holds a URL, a value or a secret.
"""

from __future__ import annotations


class DatabaseUnavailableError(Exception):
    """The database could not be reached or written within the given time."""


class SchemaError(DatabaseUnavailableError):
    """The database's schema is not one that this program can use."""
