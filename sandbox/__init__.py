"""A stand-in for the WeChat platform: its API, its pushes, and a strict judge of what the bot answers.

Runs as `python -m sandbox --port P --callback URL`, or inside a test with `running_sandbox()`. It is
written without `wechat/` and `storage/`, so that it and the bot judge each other.
"""

from .account import THROWAWAY, Account
from .server import Sandbox, running_sandbox

__all__ = ["THROWAWAY", "Account", "Sandbox", "running_sandbox"]
