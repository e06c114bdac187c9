"""The accounts that the sandbox plays: who they are and which secrets they share with the bot.

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
    """An Official Account as its console shows it. `aes_key` is None for a 接口测试号, which has none; `token` is empty
    without a callback, as for a mini program; `name` is empty if there is only one account."""

    appid: str
    appsecret: str = field(repr=False)
    token: str = field(repr=False)
    aes_key: str | None = field(repr=False)
    original_id: str
    name: str = ""

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
        environ = _trimmed(environ)
        if not environ.get("WECHAT_APPID"):
            return THROWAWAY
        return cls._of(environ, ("WECHAT_APPSECRET", "WECHAT_TOKEN"))

    @classmethod
    def all_from_env(cls, environ: Mapping[str, str]) -> list[Account]:
        """The accounts that `ACCOUNTS` names, or else the one of `from_env`. Raises ValueError as `from_env` does."""
        names = [name.strip() for name in environ.get("ACCOUNTS", "").split(",") if name.strip()]
        if not names:
            return [cls.from_env(environ)]
        environ, found = _trimmed(environ), []
        for name in names:
            prefix = name.upper().replace("-", "_") + "_"
            own = {key.removeprefix(prefix): text for key, text in environ.items() if key.startswith(prefix)}
            values = {**environ, **{key: text for key, text in own.items() if text}}
            try:
                found.append(cls._of(values, ("WECHAT_APPID", "WECHAT_APPSECRET"), name))
            except ValueError as error:
                raise ValueError(f"account {name}: {error}") from None
        return found

    @classmethod
    def _of(cls, environ: Mapping[str, str], needed: tuple[str, ...], name: str = "") -> Account:
        if missing := [each for each in needed if not environ.get(each)]:
            raise ValueError(f"set {' and '.join(missing)} too")
        appid = environ["WECHAT_APPID"]
        return cls(
            appid=appid,
            appsecret=environ["WECHAT_APPSECRET"],
            token=environ.get("WECHAT_TOKEN", ""),
            aes_key=environ.get("WECHAT_AES_KEY") or None,
            original_id="gh_" + hashlib.sha256(appid.encode()).hexdigest()[:12],
            name=name,
        )


def _trimmed(environ: Mapping[str, str]) -> dict[str, str]:
    """Without white space around the values, as bots read them: a .env with Windows line ends leaves a CR behind."""
    return {name: text.strip() for name, text in environ.items()}


THROWAWAY = Account(
    appid="wx5a4d8b0c5a4d8b0c",
    appsecret="0123456789abcdef0123456789abcdef",
    token="SandboxCallbackToken",  # noqa: S106
    aes_key="SandboxOnlyNeverUseThisKeyForARealAccount00",
    original_id="gh_5a4db0c5a4db",
)
