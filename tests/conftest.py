"""Fixtures for the whole suite: settings, a bot in real processes, and the databases and stores of tests/databases.py.

A bot here is what an operator runs: gunicorn with gunicorn.conf.py, and `flask worker` beside it, in processes of their
own, against the sandbox. Every process is ended by its pid.
"""

import gc
import importlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import weakref
from functools import cached_property
from pathlib import Path

import flask
import jinja2
import pytest
import requests
from hypothesis import HealthCheck, settings

import handlers
import logs
import parts
from bench.servers import until
from config import NAMES, Settings
from sandbox import THROWAWAY, running_sandbox
from storage.database import Database
from tests import prepared

ROOT = Path(__file__).parent.parent
pytest_plugins = ["tests.databases", "tests.browser"]

# Whatever is in handlers/own.py.
handlers.HANDLERS = handlers.STOCK_HANDLERS
handlers.ACCOUNT_HANDLERS = {}
handlers.OWN_FAULT = None

ACCOUNT = {
    "WECHAT_APPID": THROWAWAY.appid,
    "WECHAT_APPSECRET": THROWAWAY.appsecret,
    "WECHAT_TOKEN": THROWAWAY.token,
}
# Of the make that runs the suite, as in `make test PYTHON=... VENV=...`: no test's own make takes them over.
FROM_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "PYTHON", "VENV", "ARGS")
_full = False
FAN = "oTest-AbCdEfGhIjKlMnOpQrSt_1"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in (*NAMES, *FROM_MAKE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def _databases():
    """Every Database there is: a bot keeps its connections until its process ends, and here many live in one."""
    made, prepare = weakref.WeakSet(), Database.__init__

    def noted(database, *arguments, **options):
        prepare(database, *arguments, **options)
        made.add(database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "__init__", noted)
        yield made


@pytest.fixture(scope="session", autouse=True)
def _templates_are_compiled_once(tmp_path_factory):
    """And not for each application that a test makes."""
    cache = jinja2.FileSystemBytecodeCache(str(tmp_path_factory.mktemp("templates")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flask.Flask, "jinja_options", {"bytecode_cache": cache})
        yield


@pytest.fixture(autouse=True)
def _databases_are_closed(_databases):
    yield
    for database in list(_databases):
        database.close()


def eventually(look, seconds=20.0, what="it"):
    """The first true value of look(); fails when `seconds` are over."""
    found = until(look, seconds)
    assert found, f"{what} did not happen within {seconds} s"
    return found


NOT_TRIED = "not tried here: "  # begins the reason of a skip that the end of the run tells


def missing(what):
    """Skips for want of a program that is not Python's: and says so. Where CI=true is set, it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(f"{NOT_TRIED}{what}")


def needs_curl():
    if shutil.which("curl") is None:
        missing(
            "Commands of the documents and of the phone page need curl (on Debian or Ubuntu: apt-get install curl)"
        )


def free_port(neighbours=0):
    """A port that nobody has, and `neighbours` after it; below those that the system gives to outgoing connections."""
    while True:
        port = random.randrange(10_000, 30_000)
        if all(_is_free(each) for each in range(port, port + neighbours + 1)):
            return port


def _is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Process:
    """One process with its own group, ended by pid; what it prints goes to a file."""

    def __init__(self, command, environ, output, folder=ROOT):
        self._file = output.open("ab")
        self.output = output
        same_modules = environ.get("PYTHONPATH", "") == os.environ.get("PYTHONPATH", "")
        if same_modules and command[0] == sys.executable and command[1] in ("-m", "run.py") and not _full:
            with open(os.devnull) as nothing:
                files = nothing.fileno(), self._file.fileno(), self._file.fileno()
                self.popen = prepared.Started(command, environ, files, folder)
            return
        self.popen = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def pid(self):
        return self.popen.pid

    def text(self):
        return self.output.read_text(encoding="utf-8")

    def kill(self):
        """-9 for the process and its children, as a crash of the machine would."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self._file.close()

    def stop(self, seconds=30):
        self.popen.terminate()
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.send_signal(signal.SIGABRT)  # then Python says where each of its threads is
            self.popen.wait()
            pytest.fail(f"it did not end within {seconds} s\n{self.text()}")
        finally:
            self.kill()


class Bot:
    """The bot's processes and how to reach them."""

    def __init__(self, folder, environ):
        self.folder, self.environ = folder, environ
        self.url = f"http://127.0.0.1:{environ['PORT']}"
        self.settings = Settings.from_env(environ, folder)
        self.processes = []
        self.app = "tests.stock_app:create_app()"

    @cached_property
    def ledger(self):
        return parts.build(self.settings).of[""].ledger

    def start(self, *arguments):
        """`python -m arguments`."""
        return self.run([sys.executable, "-m", *arguments], arguments[0])

    def run(self, command, name):
        environ = {**clean_environ(), **self.environ}
        process = Process(command, environ, self.folder / f"{name}-{len(self.processes)}.log")
        self.processes.append(process)
        return process

    def web(self):
        process = self.start("gunicorn", "-c", "gunicorn.conf.py", self.app)
        self.answers(process)
        return process

    def answers(self, process):
        """Waits until the web process does."""

        def healthy():
            assert process.popen.poll() is None, process.text()
            try:
                return requests.get(f"{self.url}/healthz", timeout=1).ok
            except requests.RequestException:
                return False

        eventually(healthy, what="the web process")

    def worker(self):
        return self.start("flask", "--app", self.app, "worker")

    def flask(self, *arguments):
        """A command, run to its end."""
        return prepared.run([sys.executable, "-m", "flask", *arguments], clean_environ() | self.environ)

    def logs(self):
        return "".join(process.text() for process in self.processes)


def clean_environ():
    """For a process of a test: no settings from outside; and it need not compile our modules at each start."""
    settings = set(NAMES)
    return {
        name: value
        for name, value in os.environ.items()
        if name not in settings | {"PROMETHEUS_MULTIPROC_DIR", "PYTHONDONTWRITEBYTECODE"}
    }


@pytest.fixture
def make_bot(tmp_path, sqlite_file_url):
    """make_bot(sandbox, SETTING=value, ...) -> Bot, nothing started yet."""
    made = []

    def make(sandbox, *, aes_key=True, **environ):
        port = free_port()
        given = {
            **ACCOUNT,
            **({"WECHAT_AES_KEY": THROWAWAY.aes_key} if aes_key else {}),
            "WECHAT_API_BASE": sandbox.url,
            "DATABASE_URL": sqlite_file_url,
            "MEDIA_STORE": f"{tmp_path}/media",
            "PORT": str(port),
            "WEB_CONCURRENCY": "1",
            **environ,
        }
        bot = Bot(tmp_path, given)
        sandbox.callback = f"{bot.url}/wechat"
        made.append(bot)
        return bot

    yield make
    for bot in made:
        for process in bot.processes:
            process.kill()


@pytest.fixture
def sandbox():
    with running_sandbox() as running:
        yield running


@pytest.fixture
def full(request):
    return request.config.getoption("--full")


@pytest.fixture
def figures(request, capsys):
    """figures(name=value, ...): shown with --full, for the record."""

    def show(**values):
        if request.config.getoption("--full"):
            with capsys.disabled():
                print(
                    f"\n{request.node.name}: "
                    + ", ".join(f"{name} {value}" for name, value in values.items())
                )

    return show


@pytest.fixture
def sqlite_unless_full(request, full):
    """Before `database_url`, so that no PostgreSQL is started to be skipped."""
    if not full and request.node.callspec.params["database_url"] != "sqlite":
        pytest.skip("with --full: make faults; what the databases do themselves is tested beside storage")


COUNTED = pytest.StashKey[list]()


@pytest.fixture
def counted(request):
    """counted("the fault", "what was promised", name=figure, ...): one line of the table at the end of a --full run."""

    def add(fault, promised, **figures):
        line = fault, promised, ", ".join(f"{figure} {name}" for name, figure in figures.items())
        request.config.stash.setdefault(COUNTED, []).append(" | ".join(line).replace("_", " "))

    return add


def pytest_terminal_summary(terminalreporter, config):
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in skipped}
    for reason in sorted(reasons):
        if reason.startswith(NOT_TRIED):
            terminalreporter.write_line(reason)
    lines = config.stash.get(COUNTED, [])
    if lines and config.getoption("--full"):
        terminalreporter.section("what was counted")
        for line in ("fault | promised | counted", "--- | --- | ---", *lines):
            terminalreporter.write_line(f"| {line} |")


def pytest_configure(config):
    """The first application of a process sets its log up, and takes the handlers away that are there: caplog's."""
    global _full
    _full = config.getoption("--full")
    # Of every property. Neither a busy machine is a failure, nor a fixture that all examples share.
    allowed = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings.register_profile(
        "ours", max_examples=500 if _full else 30, deadline=None, suppress_health_check=allowed
    )
    settings.load_profile("ours")
    logs.configure("text")
    if not hasattr(config, "workerinput"):
        # As Ctrl-C: the fixtures end what they have started.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        # Under nohup: the tests go on, and what they start gets the signal as on a terminal.
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session):
    """Each worker imports the modules of the whole suite beginning at another one: so on a fresh clone each is compiled
    by one worker, and not by all of them at the same time."""
    worker = getattr(session.config, "workerinput", None)
    if worker and session.config.args == session.config.getini("testpaths"):
        modules = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))
        first = len(modules) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
        for module in modules[first:] + modules[:first]:
            importlib.import_module(f"tests.{module}")


def pytest_collection_finish():
    """Garbage is looked for less often than after each 700 objects: a tenth of the time of a test process."""
    gc.set_threshold(20_000, 20, 100)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
    """The last look for garbage: pytest and Python take three more, each a third of a second for each worker."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="the long runs at the counts that the promises name")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """More than there are cores: much time is spent waiting, for processes, leases and time-outs. The modules that wait
    most are three groups, waits-1 to waits-3: each is one worker's, and the other workers have the cores meanwhile."""
    return (os.cpu_count() or 1) + 3


def pytest_make_parametrize_id(config, val, argname):
    """A long sample is named by its length: each process is sent all names, and tells of each test by its name."""
    return f"{argname} of {len(val)}" if isinstance(val, bytes | str) and len(val) > 80 else None
