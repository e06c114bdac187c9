"""A stand-in for the WeChat platform: its API, its pushes, and a judge of what the bot answers.

Runs as `python -m sandbox --port P --callback URL`, or inside a test with `running_sandbox()`. It is
written without `wechat/` and `storage/`, so that each side finds the other's mistakes.
"""

from __future__ import annotations

from .account import THROWAWAY as THROWAWAY
from .account import Account as Account
from .server import Sandbox as Sandbox
from .server import running_sandbox as running_sandbox
