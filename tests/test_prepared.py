"""The tests' own processes: none outlives the pytest that started it."""

import subprocess
import sys

import psutil

from tests.conftest import ROOT, eventually

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
