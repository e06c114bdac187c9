"""The shape: who may import whom. An arrow that is not in ALLOWED fails here, with the file and the line."""

import ast
from pathlib import Path

import pytest

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
    "answers": {"config", "cores", "wechat", "storage", "handlers"},
    "worker": {"answers", "cores", "wechat", "storage"},
    "web": {"config", "cores", "wechat", "storage", "answers"},
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
    "app": {"commands", "config", "logs", "parts", "storage", "web"},
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


def imports(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0], node.lineno


def wrong(path, bad):
    return [f"{path}:{line} imports {name}" for name, line in imports(path) if bad(name)]


def test_there_is_something_to_check():
    assert {package for _, package in FILES} >= set(ALLOWED)


@pytest.mark.parametrize(("path", "package"), FILES, ids=[str(path) for path, _ in FILES])
def test_arrows_point_one_way(path, package):
    allowed = ALLOWED[package] | {package}
    assert not wrong(path, lambda name: name in OURS and name not in allowed)
    assert not wrong(path, lambda name: name == "flask" and package not in FLASK_IN)
    assert not wrong(
        path, lambda name: name in {"sqlalchemy", "sqlite3", "psycopg", "alembic"} and package not in SQL_IN
    )
    assert not wrong(path, lambda name: name in {"requests", "urllib3"} and package not in HTTP_CLIENT_IN)


@pytest.mark.parametrize(("path", "package"), FILES, ids=[str(path) for path, _ in FILES])
def test_the_environment_is_read_at_entry_points_only(path, package):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    read = [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "environ"
    ]
    assert not read or package in ENVIRON_IN


@pytest.mark.parametrize(("path", "package"), FILES, ids=[str(path) for path, _ in FILES])
def test_every_module_says_what_it_knows(path, package):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), f"{path} has no docstring"


def test_the_platforms_host_is_named_once_as_a_default():
    named = [
        path
        for path, package in FILES
        if '"https://api.weixin.qq.com' in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert named == [Path("config.py")]
