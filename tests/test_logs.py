"""Log lines: one a record, with the fields of `extra`, as text and as JSON."""

import json
import logging
import subprocess
import sys

import pytest

import logs
from tests.conftest import ROOT


@pytest.fixture
def record():
    try:
        raise ValueError("broken")
    except ValueError:
        trouble = sys.exc_info()
    made = logging.makeLogRecord(
        {
            "name": "web",
            "levelname": "WARNING",
            "msg": "refused: %s\n2",
            "args": ("why",),
            "created": 0.25,
            "msecs": 250,
        }
    )
    made.reason, made.exc_info = "signature", trouble
    return made


def test_text_keeps_a_message_on_one_line(record):
    first, *traceback = logs.Formatter(as_json=False).format(record).split("\n")
    assert first == "1970-01-01T00:00:00.250Z WARNING web: refused: why\\n2 reason='signature'"
    assert traceback[-1] == "ValueError: broken"


def test_json_is_one_object_a_line(record):
    line = logs.Formatter(as_json=True).format(record)
    assert "\n" not in line
    shown = json.loads(line)
    assert shown["reason"] == "signature"
    assert shown["message"] == "refused: why\n2"
    assert shown["time"] == "1970-01-01T00:00:00.250Z"
    assert "ValueError: broken" in shown["traceback"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_process_logs_once_however_often_it_is_configured(log_format):
    code = f"""
import logging, logs
logs.configure({log_format!r}); logs.configure("text")
logging.getLogger("web").warning("hello", extra={{"reason": "xml"}})
logging.getLogger("gunicorn.access").info("GET /wechat?signature=secret")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert "hello" in line
    assert line.startswith("{") == (log_format == "json")
