"""The tests' own processes: none outlives the pytest that started it."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil

from tests import prepared
from tests.conftest import ROOT, eventually
from tests.project import copy

STARTS = """
import os, sys
from tests import prepared
print(prepared.Started([sys.executable, "-c", "import signal; signal.pause()"], os.environ, (0, 1, 2)).pid, flush=True)
input()
"""


def test_what_a_killed_pytest_has_started_is_killed_too():
    killed = subprocess.Popen(
        [sys.executable, "-c", STARTS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with killed:
        started = psutil.Process(int(killed.stdout.readline()))
        assert started.is_running()
        killed.kill()
    eventually(lambda: not started.is_running() or started.status() == psutil.STATUS_ZOMBIE)


def test_each_of_many_that_end_at_once_tells_its_status():
    codes = [number % 3 for number in range(120)]

    def status(code):
        return prepared.run([sys.executable, "-c", f"raise SystemExit({code})"], os.environ).returncode

    with ThreadPoolExecutor(16) as together:
        assert list(together.map(status, codes)) == codes


FILES = """
import importlib, json, sys
print(json.dumps([importlib.import_module(name).__file__ for name in sys.argv[1:]]))
"""


def test_a_copy_of_the_project_has_its_own_modules_there(tmp_path):
    folder, names = copy(tmp_path / "project"), ["commands", "config", "parts", "web.server", "worker.loop"]
    done = prepared.run([sys.executable, "-c", FILES, *names], os.environ, folder=folder)
    files = [name.replace(".", "/") for name in names]
    assert [path.removesuffix(".py").removesuffix("/__init__") for path in json.loads(done.stdout)] == [
        f"{folder}/{file}" for file in files
    ]
