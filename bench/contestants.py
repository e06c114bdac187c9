"""The servers that are measured: how each is started, what it must answer, and where its rows are.

Ours runs as its gunicorn.conf.py says, in a copy of the tree, so that neither a `.env` nor an edit meanwhile changes what
is measured; with WORKER=external, so that downloads, which the others do not do at all, are not counted as the
callback's. The others run under the same gunicorn with as many processes, in each worker class; the better counts.
One is not Python's: it runs in as many processes of node's cluster, where node and its packages are.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from bench.account import AES_KEY, APPID, APPSECRET, TOKEN
from bench.pushes import Mode
from bench.servers import Server, free_port
from tests.postgresql import PostgreSQL

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = 2
THREADS = 16  # of gthread, ours and the others'
NO_API = "http://127.0.0.1:9"  # as the platform: no token is had, and none is needed to answer
NODE_MODULES = Path(sys.prefix) / "express" / "node_modules"  # where `make bench` has npm install them


@dataclass(frozen=True)
class Contestant:
    """A running server. `msg_ids` are those in its ledger, `database` the first process of a database server.

    `warm_up` is how much of a turn goes before the first that counts.
    """

    name: str
    server: Server
    mode: Mode = "plain"
    constant: bytes | None = None
    msg_ids: Callable[[], list[str]] | None = None
    database: psutil.Process | None = None
    warm_up: float = 0.1


@dataclass(frozen=True)
class Peer:
    """One that is not ours: its module in bench.apps, and what it answers if that is a constant."""

    name: str
    module: str
    mode: Mode = "plain"
    constant: bytes | None = None


WECHATPY = "wechatpy + Flask, keeps nothing"
WECHATPY_SAFE = "wechatpy + Flask, safe mode"
PEERS = (
    Peer("raw WSGI, constant", "raw", constant=b"success"),
    Peer("Flask, constant", "flask_constant", constant=b"success"),
    Peer(WECHATPY, "wechatpy_plain"),
    Peer(WECHATPY_SAFE, "wechatpy_safe", mode="safe"),
    Peer("WeRoBot + Flask, no session", "werobot"),
)


def copy_of(tree: Path, folder: Path) -> Path:
    """The programs of `tree`, and none of its settings or data."""
    folder.mkdir(parents=True)
    for path in sorted(tree.iterdir()):
        if path.name in ("tests", "bench"):
            continue
        if path.is_dir() and (path / "__init__.py").exists():
            shutil.copytree(path, folder / path.name)
        elif path.suffix == ".py":
            shutil.copy(path, folder)
    return folder


def settings(port: int, database_url: str, media: Path) -> dict[str, str]:
    """The environment of ours."""
    return {
        "WECHAT_APPID": APPID,
        "WECHAT_APPSECRET": APPSECRET,
        "WECHAT_TOKEN": TOKEN,
        "WECHAT_API_BASE": NO_API,
        "DATABASE_URL": database_url,
        "MEDIA_STORE": str(media),
        "WORKER": "external",
        "WEB_CONCURRENCY": str(PROCESSES),
        "PORT": str(port),
    }


@contextmanager
def ours(
    name: str, tree: Path, folder: Path, *, mode: Mode = "plain", sync: str = "full"
) -> Iterator[Contestant]:
    """Ours with SQLite. `tree` is a copy of the programs, `folder` takes the database and the log."""
    folder.mkdir(parents=True)
    file = folder / "bot.db"
    keys = {"WECHAT_AES_KEY": AES_KEY} if mode == "safe" else {}
    with gunicorn_of_ours(tree, folder, f"sqlite:///{file}", LEDGER_SYNC=sync, **keys) as server:
        yield Contestant(name, server, mode, msg_ids=lambda: _sqlite_msg_ids(file))


@contextmanager
def ours_on_postgresql(name: str, tree: Path, folder: Path) -> Iterator[Contestant]:
    """Ours with a PostgreSQL from a wheel, as durable as PostgreSQL is by itself."""
    folder.mkdir(parents=True)
    database = PostgreSQL()
    try:
        url, postmaster = database.new(), psutil.Process(database.pid)

        def msg_ids() -> list[str]:
            with psycopg.connect(url) as connection:
                return [row[0] for row in connection.execute("SELECT msg_id FROM messages")]

        with gunicorn_of_ours(tree, folder, url) as server:
            yield Contestant(name, server, msg_ids=msg_ids, database=postmaster)
    finally:
        database.close()


@contextmanager
def peer(name: str, of: Peer, worker_class: str, folder: Path) -> Iterator[Contestant]:
    folder.mkdir(parents=True)
    port = free_port()
    command = ["gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", str(PROCESSES)]
    command += [
        "--worker-class",
        worker_class,
        "--no-control-socket",
        "--pythonpath",
        str(ROOT),
        f"bench.apps.{of.module}:app",
    ]
    if worker_class == "gthread":
        command += ["--threads", str(THREADS), "--keep-alive", "75"]
    # Not in the tree: gunicorn would take its gunicorn.conf.py.
    with Server(command, folder=folder, environ={}, port=port, log=folder / "log") as server:
        yield Contestant(name, server, of.mode, of.constant)


def express_lacks() -> str:
    """What npm wechat on express cannot run for want of; empty when it can."""
    if shutil.which("node") is None:
        return "node is not installed"
    if (NODE_MODULES / ".package-lock.json").exists():  # npm writes it last
        return ""
    if shutil.which("npm") is None:
        return "npm is not installed"
    return f"its packages are not in {NODE_MODULES}: make bench has npm install them"


@contextmanager
def express(name: str, folder: Path) -> Iterator[Contestant]:
    folder.mkdir(parents=True)
    port = free_port()
    environ = {
        "NODE_PATH": str(NODE_MODULES),
        "NODE_ENV": "production",
        "PORT": str(port),
        "PROCESSES": str(PROCESSES),
        "WECHAT_TOKEN": TOKEN,
    }
    command = [str(ROOT / "bench" / "apps" / "express" / "app.js")]
    log = folder / "log"
    with Server(command, folder=folder, environ=environ, port=port, log=log, program=["node"]) as server:
        # Node compiles meanwhile: slow for the first 6,000 messages.
        yield Contestant(name, server, warm_up=4)


@contextmanager
def gunicorn_of_ours(tree: Path, folder: Path, database_url: str, **more: str) -> Iterator[Server]:
    """The web processes as they are installed; `more` are settings."""
    port = free_port()
    environ = settings(port, database_url, folder / "media") | more
    command = ["gunicorn", "-c", "gunicorn.conf.py", "app:create_app()"]
    with Server(command, folder=tree, environ=environ, port=port, log=folder / "log") as server:
        yield server


def _sqlite_msg_ids(file: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return [row[0] for row in connection.execute("SELECT msg_id FROM messages")]
