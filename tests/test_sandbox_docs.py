"""docs/sandbox.md says what there is. That its Chinese half says the same, tests/test_docs.py holds."""

import threading

from sandbox import THROWAWAY, control
from sandbox.faults import Fault, Rules
from sandbox.feed import Feed
from sandbox.server import create_app
from sandbox.state import State
from tests.conftest import ROOT
from tests.test_docs import code, first_column, table

DOCUMENT = ROOT / "docs" / "sandbox.md"


def test_every_control_route_is_documented(tmp_path):
    state = State(THROWAWAY, tmp_path)
    app = create_app(state, Feed(), threading.Event(), [state.account])
    routes = {
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/sandbox") and "static" not in rule.rule
    }
    assert first_column(DOCUMENT, "route") == routes


def test_every_field_fault_and_rule_is_documented():
    assert first_column(DOCUMENT, "field") == control.MESSAGE_FIELDS | {"file"}
    assert first_column(DOCUMENT, "fault") == set(Fault.__dataclass_fields__)
    shown = {code(row[0]): row[1] for row in table(DOCUMENT, "rule")}
    assert shown == {name: str(value).replace("False", "false") for name, value in vars(Rules()).items()}
