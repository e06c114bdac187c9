"""How log lines look: text for people, JSON for machines, both with the fields given in `extra`.

Knows formatting only. Callers put ids and reasons into `extra`, and never a token, a key, a signature or what a fan
wrote. Whatever a record contains, it stays one line and cannot control a terminal: control characters, line separators
and marks of the writing direction are written as escapes.
"""

from __future__ import annotations

import json
import logging
import logging.config
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

# Our lines do not show these, and collecting them costs time for each push:
# https://docs.python.org/3/howto/logging.html#optimization
logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False

ACCOUNT: ContextVar[str] = ContextVar("account", default="")
"""The account that this thread works for, by its name in ACCOUNTS. Where there are several, each line shows it."""

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class Formatter(logging.Formatter):
    """One line for each record. A traceback follows on its own lines in text, and is a field in JSON."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json
        self._second = 0, "1970-01-01T00:00:00"

    def _moment(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        known, text = self._second
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second, text
        return f"{text}.{int(record.msecs):03d}Z"

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in _OWN}
        if account := ACCOUNT.get():
            fields = {"account": account} | fields
        trouble = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            line = {
                "time": self._moment(record),
                "level": record.levelname,
                "logger": record.name,
                "message": record.getMessage(),
            }
            line |= fields | ({"traceback": trouble} if trouble else {})
            return json_line(line)
        text = f"{self._moment(record)} {record.levelname} {record.name}: {escaped(record.getMessage())}"
        for name, value in fields.items():
            text += f" {name}={value!r}"
        # An exception's text may look like a log line: the space in front marks it.
        return "\n ".join([text, *map(escaped, trouble.splitlines())]) if trouble else text


def json_line(value: dict[str, Any]) -> str:
    """The value as one line of JSON: Chinese stays readable, and what could control a terminal is escaped."""
    line = json.dumps(value, ensure_ascii=False, default=str)
    return escaped(line, lambda one: json.dumps(one)[1:-1])


def escaped(text: str, escape: Callable[[str], str] = lambda one: repr(one)[1:-1]) -> str:
    """The text with each character that is not printable replaced by `escape`, by default as in Python: \\x1b."""
    return text if text.isprintable() else "".join(one if one.isprintable() else escape(one) for one in text)


def escaped_lines(text: str) -> str:
    """The same for a text of several lines; the line ends stay."""
    return "\n".join(map(escaped, text.split("\n")))


class WithoutRequests(logging.Filter):
    """Cuts the request out of gunicorn's own warnings: queries contain signatures and keys, headers contain keys."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith("Invalid request from ip="):
            start, cause, *_ = message.split(": ", 2)
            record.msg, record.args = f"{start}: {cause}", ()
        elif message.startswith("Error handling request"):
            record.msg, record.args = message.partition("?")[0], ()
        return True


def config(log_format: str, log_level: str) -> dict[str, Any]:
    """The `logging.config.dictConfig` for `log_format` ("text" or "json"): `log_level` and above goes to stderr."""
    here = {"handlers": ["stderr"], "level": log_level}
    elsewhere = {"handlers": [], "propagate": True}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": "logs.Formatter", "as_json": log_format == "json"}},
        "filters": {"without requests": {"()": "logs.WithoutRequests"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": here,
        "loggers": {
            "gunicorn.error": elsewhere | {"filters": ["without requests"]},
            "gunicorn.access": elsewhere | {"level": "CRITICAL"},
            "alembic": elsewhere | {"level": "WARNING"},
            # At INFO each thread's client logs where its credentials come from.
            "botocore": elsewhere | {"level": "WARNING"},
        },
    }


def configure(log_format: str, log_level: str = "INFO") -> None:
    """Applies `config()` unless it is applied already: gunicorn does so before it makes the application."""
    if not any(isinstance(handler.formatter, Formatter) for handler in logging.getLogger().handlers):
        logging.config.dictConfig(config(log_format, log_level))
