"""The check of what the bot refused in the last minutes. The commonest cause: the console's Token is not WECHAT_TOKEN.

Knows the reasons that `wechat` gives, and what each means for the settings. Must not know the requests themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from commands.doctor.findings import Outcome
from config import Settings
from storage.refusals import Refusals

LATELY_SECONDS = 600.0


def refused_lately(refusals: Refusals, settings: Settings, now: float) -> Iterator[Outcome]:
    """An outcome for each reason of refusals. Raises DatabaseUnavailableError."""
    last_message_at = refusals.last_message_at() or 0.0
    for refused in refusals.lately(now, LATELY_SECONDS):
        # A message was accepted afterwards: the settings are right, or have been corrected.
        if refused.reason not in _TEXTS or last_message_at > refused.last_at:
            continue
        ago = max(now - refused.last_at, 0)
        english, chinese = _TEXTS[refused.reason]
        name = "WECHAT_AES_KEY" if settings.wechat_aes_key else "no WECHAT_AES_KEY"
        yield Outcome(
            False,
            f"{refused.count} requests in the last {LATELY_SECONDS / 60:.0f} minutes {english.format(key=name)} "
            f"(the last one {ago:.0f} s ago)",
            f"最近 {LATELY_SECONDS / 60:.0f} 分钟有 {refused.count} 个请求{chinese}（最后一次在 {ago:.0f} 秒前）",
        )


_TEXTS = {
    "signature": (
        "had a wrong signature: the Token in the console is not WECHAT_TOKEN",
        "签名错误：公众平台的令牌(Token)与 WECHAT_TOKEN 不一致",
    ),
    "timestamp": (
        "had a timestamp outside WECHAT_TIMESTAMP_WINDOW: set this machine's clock (NTP)",
        "时间戳超出 WECHAT_TIMESTAMP_WINDOW：请校准本机时钟（NTP）",
    ),
    "envelope": (
        "were not encrypted as the settings say ({key}): compare the EncodingAESKey and the mode in the console",
        "的加密方式与设置不符（{key}）：请核对公众平台的消息加解密密钥和消息加解密方式",
    ),
    "appid": (
        "were for another account: WECHAT_APPID is not the AppID of this console",
        "属于其他账号：WECHAT_APPID 与公众平台的 AppID 不一致",
    ),
}
