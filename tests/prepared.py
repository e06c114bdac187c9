"""Python processes that begin with most modules imported: a start costs a quarter of the time that it takes otherwise.

One process for each process of pytest imports the libraries and ours. For each start it forks: the child has its own
session, environment, arguments and files, and does what `python -m`, `python -c` or `python run.py` does in the
project's folder or in another one. There it looks for our own modules anew, as a copy of the project has its own: of
those prepared only the libraries stay.
With --full, and where the start itself is tried, processes start from nothing instead.
"""

import atexit
import ctypes
import faulthandler
import gc
import importlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from tempfile import TemporaryFile

import config
import parts

ROOT = Path(__file__).parent.parent

# These import nearly all. Not botocore: few want it, and it is large.
MODULES = """
    alembic.autogenerate alembic.command app concurrent.futures.thread gunicorn.app.wsgiapp psycopg web.server
"""
# With what environment these are imported decides where gunicorn's processes count.
COUNTING = {"app", "prometheus_client", "web.callback", "web.metrics", "web.ops", "web.token_server"}

_lock = threading.Lock()
_control: socket.socket | None = None


class Started:
    """One process, as subprocess.Popen shows it. `files` are its standard input, output and error."""

    def __init__(self, command, environ, files, folder=ROOT):
        self.args, self.returncode = command, None
        # Only the process that forked it can wait for it: it sends the exit status.
        self._status, theirs = Pipe(duplex=False)
        with theirs:
            self.pid = _ask((command, dict(environ), str(folder)), (theirs.fileno(), *files))

    def poll(self):
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            if not self._status.poll(timeout):
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = self._status.recv()
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Talking(Started):
    """One process that is talked with, line by line: `stdin` and `stdout` are text."""

    def __init__(self, command, environ):
        (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
        try:
            super().__init__(command, environ, (theirs_in, theirs_out, 2))
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self.stdin, self.stdout = open(ours_in, "w", encoding="utf-8"), open(ours_out, encoding="utf-8")  # noqa: SIM115

    def communicate(self):
        """What it still says, when its input has ended; and None, for its errors go where ours go."""
        with self.stdin, self.stdout:
            self.stdin.close()
            said = self.stdout.read()
        self.wait(60)
        return said, None


def run(command, environ, timeout=60, folder=ROOT):
    """A process run to its end, as subprocess.run does with capture_output and text."""
    with (
        open(os.devnull) as nothing,
        TemporaryFile("w+", encoding="utf-8") as said,
        TemporaryFile("w+", encoding="utf-8") as wrong,
    ):
        process = Started(command, environ, (nothing.fileno(), said.fileno(), wrong.fileno()), folder)
        try:
            process.wait(timeout)
        finally:
            process.kill()
            process.wait()
        texts = []
        for file in (said, wrong):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(command, process.returncode, *texts)


def _ask(request, files):
    global _control
    with _lock:
        if _control is None:
            _control = _prepare()
        socket.send_fds(_control, [b"?"], files)
        connection = Connection(os.dup(_control.fileno()))
        with connection:
            connection.send(request)
            return connection.recv()


def _prepare():
    """The socket to the process that forks. It ends when the socket is closed, and with it all that it has forked."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.prepared"],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,  # nothing that can seek: the output of what is forked may be a terminal
            start_new_session=True,
        )

    def end():
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _fork_when_asked():
    """Returns in each child, with its command."""
    control = socket.socket(fileno=os.dup(0))
    connection = Connection(os.dup(0))
    running = {}  # by pid: where the exit status goes

    def tell_who_has_ended(*_):
        # If another one ends meanwhile, this runs once more within itself: each call waits for different ones.
        with suppress(ChildProcessError):  # there are no others
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                with running.pop(ended[0]) as told, suppress(BrokenPipeError):
                    told.send(os.waitstatus_to_exitcode(ended[1]))

    signal.signal(signal.SIGCHLD, tell_who_has_ended)
    while True:
        asked, files, *_ = socket.recv_fds(control, 1, 4)
        if not asked:  # pytest has ended, perhaps by a signal, before its tests could end what they started
            for pid in list(running):
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            os._exit(0)
        status, *files = files
        command, environ, folder = connection.recv()
        ready, done = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # until the child is among those running
        pid = os.fork()
        if pid:
            running[pid] = Connection(status, readable=False)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            for file in (done, *files):
                os.close(file)
            os.read(ready, 1)  # its end: the child has its session
            os.close(ready)
            connection.send(pid)
            continue
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
        for file in (ready, done, status, *files):
            os.close(file)
        running.clear()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        control.close()
        connection.close()
        _begin(environ, folder)
        return command


def _begin(environ, folder):
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    sys.path[1:1] = filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))
    if folder != os.getcwd():
        os.chdir(folder)
        ours = {name.removesuffix(".py") for name in os.listdir(ROOT)}
        _forget(ours | COUNTING | {"gunicorn"})  # which notes the folder in which it is imported


def _forget(names):
    """From now on these modules, and what is in them, are imported anew."""
    for name in list(sys.modules):
        if name in names or name.partition(".")[0] in names:
            del sys.modules[name]
            package, _, own = name.rpartition(".")
            if package in sys.modules:
                delattr(sys.modules[package], own)


class _Forked(subprocess.Popen):
    """What a prepared `python run.py` starts as `python -m`. It is a child of that process, and has the modules that
    are imported there."""

    def __init__(self, command, *, cwd, env, **options):
        def act():
            subprocess.Popen = _Forked.__base__  # what the bot starts itself is no child of run.py
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # its parent waits for that too
            for number in signal.valid_signals():
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            _begin(env, str(cwd))
            global _status
            _status = _run(*command[1:])
            ctypes.pythonapi.Py_Exit(_status)  # sys.exit() would end up in run.py

        super().__init__(command, preexec_fn=act, restore_signals=False, **options)


def _run(how, *arguments):
    """Its exit status."""
    try:
        sys.path[0] = os.getcwd()
        if how == "-m":
            if arguments[0] == "gunicorn":
                _forget(COUNTING)
            sys.argv = list(arguments)
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        elif how == "-c":
            sys.path[0] = ""
            sys.argv = ["-c", *arguments[1:]]
            exec(arguments[0], {"__name__": "__main__"})
        else:
            sys.argv = [how, *arguments]
            subprocess.Popen = _Forked
            runpy.run_path(how, run_name="__main__")
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _leave():
    """The last of the functions that atexit runs, for it is the first one registered. To take all modules down after
    it, as Python does, costs as much as the start of a command."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status & 0xFF)


if __name__ == "__main__":
    _status = 1
    if "coverage" not in sys.modules:  # it writes what it has counted later
        atexit.register(_leave)
    for name in MODULES.split():
        importlib.import_module(name)
    account = {"WECHAT_APPID": "wx0000000000000001", "WECHAT_APPSECRET": "0" * 32, "WECHAT_TOKEN": "token"}
    parts.build(config.Settings.from_env(account))  # makes our statements ready, once for all children
    faulthandler.enable()
    gc.freeze()  # at its end each child would look at all of it once more
    _, *arguments = _fork_when_asked()
    _status = _run(*arguments)
    sys.exit(_status)
