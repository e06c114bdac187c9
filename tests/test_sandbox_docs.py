"""docs/sandbox.md says what there is, and its Chinese half says the same."""

import threading

from sandbox import THROWAWAY, control
from sandbox.faults import Fault, Rules
from sandbox.feed import Feed
from sandbox.server import create_app
from sandbox.state import State
from tests.conftest import ROOT
from tests.test_docs import code, first_column, shape, table, tables

ENGLISH, CHINESE = ROOT / "docs" / "sandbox.md", ROOT / "docs" / "sandbox.zh-CN.md"


def test_every_control_route_is_documented(tmp_path):
    state = State(THROWAWAY, tmp_path)
    app = create_app(state, Feed(state), threading.Event())
    routes = {
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/sandbox") and "static" not in rule.rule
    }
    assert first_column(ENGLISH, "route") == routes


def test_every_field_fault_and_rule_is_documented():
    assert first_column(ENGLISH, "field") == control.MESSAGE_FIELDS | {"file"}
    assert first_column(ENGLISH, "fault") == set(Fault.__dataclass_fields__)
    shown = {code(row[0]): row[1] for row in table(ENGLISH, "rule")}
    assert shown == {name: str(value).replace("False", "false") for name, value in vars(Rules()).items()}


def test_the_chinese_half_is_in_step():
    english, chinese = ([part for part in shape(path) if part[0] != "link"] for path in (ENGLISH, CHINESE))
    assert english == chinese
    rows = [[[row[0] for row in each[1:]] for each in tables(path)] for path in (ENGLISH, CHINESE)]
    assert list(map(len, rows[0])) == list(map(len, rows[1]))
    assert rows[0][1:] == rows[1][1:], "all tables but the first begin with names"
