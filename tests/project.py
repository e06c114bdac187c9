"""A copy of the project in a folder of its own, to run commands in as a user does."""

import shutil
import sys

from dotenv import dotenv_values

from tests import prepared
from tests.conftest import ROOT, clean_environ

_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "data", "*.pyc.*", ".*_cache", ".hypothesis", ".coverage*", "tests", "bench", ".env"
)


def copy(folder):
    shutil.copytree(ROOT, folder, ignore=_LEFT_OUT)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def flask(folder, *arguments, **environ):
    """A command, run to its end."""
    return prepared.run([sys.executable, "-m", "flask", *arguments], clean_environ() | environ, folder=folder)


def sandbox_settings(folder):
    """What `make run` without an account runs with there."""
    return dotenv_values(folder / "data" / "sandbox" / "settings.env")
