"""The shape: who may import whom, and what a test may name. An arrow that is not in ALLOWED fails here, and a private
name in a test, with the file and the line."""

import ast
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("layers")  # each file is read once
ROOT = Path(__file__).parent.parent
# The one list of our packages and modules: what each may import of the others.
ALLOWED = {
    "wechat": set(),
    "storage": {"wechat"},
    "handlers": {"wechat"},
    "sandbox": set(),
    "config": {"wechat"},
    "cores": set(),
    "logs": set(),
    "answers": {"config", "cores", "logs", "wechat", "storage", "handlers"},
    "worker": {"answers", "cores", "logs", "wechat", "storage"},
    "web": {"config", "cores", "logs", "wechat", "storage", "answers"},
    "parts": {"wechat", "storage", "worker", "answers", "config", "cores"},
    "commands": {
        "answers",
        "cores",
        "handlers",
        "wechat",
        "storage",
        "config",
        "logs",
        "parts",
        "web",
        "worker",
    },
    "app": {"commands", "config", "handlers", "logs", "parts", "storage", "web"},
    "run": {"config", "parts", "storage"},
    "gunicorn.conf": {"config", "cores", "logs", "storage", "web"},
}
OURS = set(ALLOWED)
FLASK_IN = {"app", "commands", "web", "sandbox"}
SQL_IN = {"storage"}
HTTP_CLIENT_IN = {"handlers", "wechat", "sandbox", "run", "commands"}
ENVIRON_IN = {"app", "commands", "gunicorn.conf", "run", "sandbox", "web"}


def modules():
    for path in sorted(ROOT.glob("*.py")) + sorted(p for name in OURS for p in (ROOT / name).rglob("*.py")):
        relative = path.relative_to(ROOT)
        yield relative, relative.parts[0].removesuffix(".py")


FILES = list(modules())


@cache
def parsed(path):
    """The module, and each node of it."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return tree, tuple(ast.walk(tree))


def imports(path):
    _, nodes = parsed(path)
    for node in nodes:
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0], node.lineno


def wrong(path, package):
    allowed = ALLOWED[package] | {package}
    for name, line in imports(path):
        if (
            (name in OURS and name not in allowed)
            or (name == "flask" and package not in FLASK_IN)
            or (name in {"sqlalchemy", "sqlite3", "psycopg", "alembic"} and package not in SQL_IN)
            or (name in {"requests", "urllib3"} and package not in HTTP_CLIENT_IN)
        ):
            yield f"{path}:{line} imports {name}"


def test_there_is_something_to_check():
    assert {package for _, package in FILES} >= set(ALLOWED)


def test_arrows_point_one_way():
    found = [line for path, package in FILES for line in wrong(path, package)]
    assert not found


def test_the_environment_is_read_at_entry_points_only():
    read = [
        f"{path}:{node.lineno}"
        for path, package in FILES
        if package not in ENVIRON_IN
        for node in parsed(path)[1]
        if isinstance(node, ast.Attribute) and node.attr == "environ"
    ]
    assert not read


def test_every_module_says_what_it_knows():
    silent = [path for path, _ in FILES if (tree := parsed(path)[0]).body and not ast.get_docstring(tree)]
    assert not silent


def test_the_platforms_host_is_named_once_as_a_default():
    named = [
        path
        for path, package in FILES
        if '"https://api.weixin.qq.com' in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert named == [Path("config.py")]


# -- a test speaks through public doors: private names belong to their own file --

TESTS = sorted(Path(__file__).parent.rglob("*.py"))
NAMEDTUPLE = {"_asdict", "_fields", "_make", "_replace"}
BY_STRING = {"getattr", "hasattr", "setattr", "delattr"}  # the built-in ones, and monkeypatch's


def is_private(name):
    return name.startswith("_") and not name.endswith("__") and name not in NAMEDTUPLE


@cache
def is_ours(module):
    package = module.partition(".")[0]
    return (ROOT / package).is_dir() or (ROOT / f"{package}.py").is_file()


def private_names(source):
    """Each (line, name) where the test in `source` uses a private name of another file of this project.

    Its own are those of self, of cls and of the classes in `source`. What it imports from elsewhere is not looked at.
    """
    nodes = list(ast.walk(ast.parse(source)))
    not_looked_at = {"self", "cls"}
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            not_looked_at.add(node.name)
        elif isinstance(node, ast.Import):
            not_looked_at |= {
                name.asname or name.name.partition(".")[0] for name in node.names if not is_ours(name.name)
            }
        elif isinstance(node, ast.ImportFrom) and not is_ours(node.module):
            not_looked_at |= {name.asname or name.name for name in node.names}
    for node in nodes:
        owner, names = None, []
        match node:
            case ast.Import():
                names = [part for name in node.names if is_ours(name.name) for part in name.name.split(".")]
            case ast.ImportFrom() if is_ours(node.module):
                names = [*node.module.split("."), *(name.name for name in node.names)]
            case ast.Attribute():
                owner, names = node.value, [node.attr]
            case ast.Call(func=ast.Name(called) | ast.Attribute(attr=called)) if called in BY_STRING:
                match node.args:
                    case [ast.Constant(str(path)), *_] if is_ours(path):
                        names = path.split(".")
                    case [owner, ast.Constant(str(name)), *_]:
                        names = [name]
        if not (isinstance(owner, ast.Name) and owner.id in not_looked_at):
            yield from ((node.lineno, name) for name in names if is_private(name))


@pytest.mark.parametrize("path", TESTS, ids=[str(path.relative_to(ROOT)) for path in TESTS])
def test_tests_use_public_names_only(path):
    found = list(private_names(path.read_text(encoding="utf-8")))
    assert not found, f"{path}: use a public name, or look at what it does"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("store._client.head()", ["_client"]),
        ("desk.batched._waiting[0]._item", ["_item", "_waiting"]),
        ("make()._engine", ["_engine"]),
        ("store._client = None", ["_client"]),
        ("self.store._client", ["_client"]),
        ("import storage\nstorage.queue._LANES", ["_LANES"]),
        ("from storage import queue\nqueue._LANES", ["_LANES"]),
        ("from storage.queue import _LANES as LANES", ["_LANES"]),
        ("from storage._queue import LANES", ["_queue"]),
        ("import storage._queue as queue", ["_queue"]),
        ("def test(monkeypatch):\n    monkeypatch.setattr(media, '_UPLOAD_TIMEOUT', 1)", ["_UPLOAD_TIMEOUT"]),
        ("monkeypatch.setattr(Receiver, '_verify', lambda *_: '_token')", ["_verify"]),
        ("monkeypatch.setattr('storage.database._SETUP', '_x')", ["_SETUP"]),
        ("monkeypatch.delattr('storage.database._Room.put')", ["_Room"]),
        ("monkeypatch.delattr(store, '_client')", ["_client"]),
        ("getattr(store, '_client', None)", ["_client"]),
        ("class Desk:\n    def do(self):\n        self._done = cls._made = Desk._all", []),
        ("row._replace(a=1)._asdict(), row._fields, Row._make([])", []),
        ("store.__class__.__name__, store.client_", []),
        ("import os, botocore.client\nos._exit(botocore._x)\nfrom gunicorn import _x\n_x.y", []),
        ("from gunicorn.workers import gthread\ngthread._DEFER", []),
        ("monkeypatch.setattr('gunicorn.workers._x', 1)", []),
        ("monkeypatch.setattr(media, 'UPLOAD_TIMEOUT', '_x')\nstore.put('_x', '_y')", []),
    ],
)
def test_a_private_name_is_found(source, found):
    assert sorted(name for _, name in private_names(source)) == found
