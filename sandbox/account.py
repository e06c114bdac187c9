"""The account that the sandbox plays: who it is and which secrets it shares with the bot.

Knows the settings' names and their formats. It must not know what the secrets are used for.
The throw-away account is public on purpose: its secrets work only with a sandbox on this machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Account:
    """An Official Account as its console shows it. `aes_key` is None for a 接口测试号, which has none."""

    appid: str
    appsecret: str = field(repr=False)
    token: str = field(repr=False)
    aes_key: str | None = field(repr=False)
    original_id: str

    def __post_init__(self) -> None:
        if self.aes_key is not None and not re.fullmatch(r"[0-9A-Za-z]{43}", self.aes_key):
            raise ValueError(
                "WECHAT_AES_KEY must be 43 letters and digits, or empty for an account without one"
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Account:
        """The account of `WECHAT_*`, or the throw-away one when `WECHAT_APPID` is unset or empty.

        Raises ValueError, naming the setting, when the account is incomplete.
        """
        appid = environ.get("WECHAT_APPID")
        if not appid:
            return THROWAWAY
        missing = [name for name in ("WECHAT_APPSECRET", "WECHAT_TOKEN") if not environ.get(name)]
        if missing:
            raise ValueError(f"WECHAT_APPID is set, so set {' and '.join(missing)} too")
        return cls(
            appid=appid,
            appsecret=environ["WECHAT_APPSECRET"],
            token=environ["WECHAT_TOKEN"],
            aes_key=environ.get("WECHAT_AES_KEY") or None,
            original_id="gh_" + hashlib.sha256(appid.encode()).hexdigest()[:12],
        )


THROWAWAY = Account(
    appid="wx5a4d8b0c5a4d8b0c",
    appsecret="0123456789abcdef0123456789abcdef",
    token="SandboxCallbackToken",  # noqa: S106
    aes_key="SandboxOnlyNeverUseThisKeyForARealAccount00",
    original_id="gh_5a4db0c5a4db",
)
