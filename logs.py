"""How log lines look: text for people, JSON for machines, both with the fields given in `extra`.

Knows formatting only. What may be logged is decided where it is logged: ids and reasons in `extra`, never a token,
a key, a signature or what a fan wrote.
"""

from __future__ import annotations

import json
import logging
import logging.config
import time
from typing import Any

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class Formatter(logging.Formatter):
    """One line a record (a traceback follows on its own lines in text, inside the object in JSON)."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in _OWN}
        trouble = self.formatException(record.exc_info) if record.exc_info else ""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        if self._as_json:
            line = {
                "time": moment,
                "level": record.levelname,
                "logger": record.name,
                "message": record.getMessage(),
            }
            return json.dumps(
                line | fields | ({"traceback": trouble} if trouble else {}), ensure_ascii=False, default=str
            )
        text = " ".join(
            [moment, record.levelname, f"{record.name}:", record.getMessage().replace("\n", "\\n")]
        )
        text += "".join(f" {name}={value!r}" for name, value in fields.items())
        return f"{text}\n{trouble}" if trouble else text


def config(log_format: str, log_level: str = "INFO") -> dict[str, Any]:
    """The `logging.config.dictConfig` for `log_format` ("text" or "json"): all from `log_level` on goes to stderr."""
    here = {"handlers": ["stderr"], "level": log_level}
    elsewhere = {"handlers": [], "propagate": True}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": "logs.Formatter", "as_json": log_format == "json"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": here,
        "loggers": {
            "gunicorn.error": elsewhere,
            # Query strings hold signatures: what gunicorn would say of a request is not said.
            "gunicorn.access": elsewhere | {"level": "CRITICAL"},
            "alembic": elsewhere | {"level": "WARNING"},
            # Each thread's client would say where its key is from.
            "botocore": elsewhere | {"level": "WARNING"},
        },
    }


def configure(log_format: str, log_level: str = "INFO") -> None:
    """Applies `config()`, unless this process already has it: gunicorn applies it before the application is made."""
    if not any(isinstance(handler.formatter, Formatter) for handler in logging.getLogger().handlers):
        logging.config.dictConfig(config(log_format, log_level))
