"""What to enter in the console, as `flask doctor` prints it on a terminal.

It contains the callback Token. No other text of the doctor does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from config import FOLDER, Settings, SettingsError


def console_entry(environ: Mapping[str, str], folder: Path = FOLDER, *, account: str = "") -> str:
    """The text, with the callback Token: print it only on a terminal. Empty if the settings are faulty, and for an
    account without a callback."""
    try:
        of_each = {one.account: one for one in Settings.of_accounts(environ, folder)}
    except SettingsError:
        return ""
    settings = of_each[account]
    if settings.wechat_token is None:
        return ""
    unset = "" if settings.public_url else "   (PUBLIC_URL is not set / 未设置 PUBLIC_URL)"
    lines = [
        "Enter in the console, then press 提交 "
        "(在「消息与事件推送」(原「服务器配置」)或接口测试号「接口配置信息」中填写):",
        f"   URL    {settings.public_url or 'https://YOUR-HOST'}{settings.callback_path}{unset}",
        f"   Token  {settings.wechat_token.get_secret_value()}",
    ]
    if settings.wechat_aes_key:
        lines.append("   EncodingAESKey  as in WECHAT_AES_KEY; mode: 安全模式 (与 WECHAT_AES_KEY 一致)")
    return "\n".join(lines)
