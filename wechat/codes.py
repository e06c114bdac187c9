"""The platform's return codes as data: what each means, and what to do about it, in English and Chinese.

It imports nothing of ours. It must not know which call answered a code or what becomes of it.

https://developers.weixin.qq.com/doc/service/en/Getting_Started/Global_Return_Code.html
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


class Kind(enum.Enum):
    """What to do about a code of the platform."""

    OK = "-"  # nothing: the call succeeded
    RETRY = "R"  # repeat with pauses, if the call may be repeated
    TOKEN = "T"  # noqa: S105 - fetch a new access_token, then repeat once
    MINUTE = "M"  # wait for the next minute
    DAY = "D"  # wait for tomorrow, or clear the quota
    OPERATOR = "A"  # a person must act
    GIVE_UP = "X"  # this call will never succeed
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Code:
    """One return code. `confirmed` is False where no official page was found that says so."""

    code: int
    meaning: str
    kind: Kind
    hint_en: str
    hint_zh: str
    confirmed: bool


def explain(code: int) -> Code:
    """What a return code means and what to do about it; an unknown code gets `Kind.UNKNOWN` and a hint."""
    known = CODES.get(code)
    if known is not None:
        return known
    return Code(
        code,
        "unknown code",
        Kind.UNKNOWN,
        "Unknown code; send rid to support",
        "未知错误，请附 rid 反馈",
        confirmed=False,
    )


# code, what to do, confirmed on an official page, meaning, hint in English and in Chinese.
_TABLE: tuple[tuple[int, str, bool, str, str, str], ...] = (
    (-1, "R", True, "system busy", "WeChat is busy; retrying automatically", "微信系统繁忙，正在自动重试"),
    (0, "-", True, "ok", "", ""),
    (
        40001,
        "T",
        True,
        "AppSecret wrong, or token invalid / not latest",
        "Token was replaced elsewhere, or AppSecret is wrong; check no other program fetches tokens",
        "token 已被别处刷新或 AppSecret 错误，请检查是否有其他程序在获取 token",
    ),
    (
        40002,
        "A",
        True,
        "grant_type invalid",
        "Internal error: grant_type must be client_credential",
        "程序错误：grant_type 应为 client_credential",
    ),
    (
        40003,
        "X",
        True,
        "OpenID invalid",
        "OpenID belongs to another account or fan never followed",
        "OpenID 不属于本账号，或粉丝未关注",
    ),
    (40004, "X", True, "media type invalid", "Unsupported media type", "不支持的素材类型"),
    (40005, "X", True, "file type/format invalid", "Convert the file first", "文件格式不支持，请先转换"),
    (40006, "X", True, "file size invalid", "File too large or empty", "文件过大或为空"),
    (
        40007,
        "X",
        True,
        "media_id invalid",
        "Media expired (3 days) or from another account; upload again",
        "素材已过期（3天）或不属于本账号，请重新上传",
    ),
    (40008, "A", True, "message type invalid", "Internal error: msgtype", "程序错误：消息类型不正确"),
    (40009, "X", True, "image too large", "Shrink the image (≤ 2 MB is safe)", "图片过大，请压缩到 2MB 以内"),
    (40010, "X", True, "voice too large", "Voice ≤ 2 MB and ≤ 60 s", "语音须 ≤2MB 且 ≤60 秒"),
    (40011, "X", True, "video too large", "Video ≤ 10 MB", "视频须 ≤10MB"),
    (40012, "X", True, "thumbnail too large", "Thumbnail ≤ 64 KB JPG", "缩略图须为 ≤64KB 的 JPG"),
    (
        40013,
        "A",
        True,
        "AppID invalid",
        "Check the AppID (case, stray characters)",
        "请检查 AppID（大小写、多余字符）",
    ),
    (
        40014,
        "T",
        True,
        "token invalid",
        "Token invalid; a new one is fetched",
        "access_token 无效，已重新获取",
    ),
    (
        40016,
        "X",
        True,
        "menu: number of buttons",
        "A menu has 1 to 3 buttons",
        "自定义菜单须有 1 到 3 个按钮",
    ),
    (40017, "X", True, "menu: button's type", "Correct the button's type", "请改正按钮的 type"),
    (40018, "X", True, "menu: length of a button's name", "Shorten the button's name", "请缩短按钮的名称"),
    (
        40019,
        "X",
        True,
        "menu: length of a button's key",
        "Key ≤ 128 bytes, not empty",
        "key 须 ≤128 字节且不为空",
    ),
    (
        40020,
        "X",
        True,
        "menu: length of a button's URL",
        "URL ≤ 1024 bytes, not empty",
        "url 须 ≤1024 字节且不为空",
    ),
    (40022, "X", True, "menu: too many levels", "A sub-menu has no sub-menus", "子菜单里不能再有子菜单"),
    (
        40023,
        "X",
        False,
        "sub-menu: number of buttons",
        "A sub-menu has 1 to 5 buttons",
        "子菜单须有 1 到 5 个按钮",
    ),
    (40024, "X", False, "sub-menu: button's type", "Correct the button's type", "请改正按钮的 type"),
    (
        40025,
        "X",
        False,
        "sub-menu: length of a button's name",
        "Shorten the button's name",
        "请缩短按钮的名称",
    ),
    (
        40026,
        "X",
        False,
        "sub-menu: length of a button's key",
        "Key ≤ 128 bytes, not empty",
        "key 须 ≤128 字节且不为空",
    ),
    (
        40027,
        "X",
        False,
        "sub-menu: length of a button's URL",
        "URL ≤ 1024 bytes, not empty",
        "url 须 ≤1024 字节且不为空",
    ),
    (
        40033,
        "A",
        False,
        "\\uXXXX characters refused",
        "Send UTF-8 text, not escapes",
        "请以 UTF-8 原文发送，勿使用 \\uXXXX",
    ),
    (40035, "A", False, "invalid parameter", "Internal error: parameter", "程序错误：参数不合法"),
    (40066, "A", True, "URL invalid", "Wrong API path", "接口路径错误"),
    (40125, "A", False, "AppSecret invalid", "AppSecret wrong or was reset", "AppSecret 错误或已被重置"),
    (40137, "X", False, "image format unsupported", "Use JPG/PNG", "请使用 JPG/PNG 图片"),
    (
        40164,
        "A",
        True,
        "caller IP not on whitelist",
        "Add the IP named in the message to the IP whitelist",
        "请将报错中的 IP 加入公众平台 IP 白名单",
    ),
    (
        40200,
        "A",
        True,
        "account type invalid",
        "This account type cannot use the function",
        "该账号类型不支持此功能",
    ),
    (
        40201,
        "A",
        True,
        "callback/check: no callback URL, or an invalid one",
        "No callback URL configured, or wrong argument",
        "未填写服务器地址(URL)，或参数错误",
    ),
    (
        40202,
        "A",
        True,
        "callback/check: action invalid",
        "No callback URL configured, or wrong argument",
        "未填写服务器地址(URL)，或参数错误",
    ),
    (
        40203,
        "A",
        True,
        "callback/check: operator invalid",
        "No callback URL configured, or wrong argument",
        "未填写服务器地址(URL)，或参数错误",
    ),
    (
        40243,
        "A",
        True,
        "AppSecret frozen",
        "Thaw the AppSecret in the console",
        "AppSecret 已冻结，请登录公众平台解冻",
    ),
    (41001, "T", True, "token missing", "Internal error: token not sent", "程序错误：未携带 access_token"),
    (41002, "A", True, "appid missing", "Fill in AppID and AppSecret", "请填写 AppID 和 AppSecret"),
    (41004, "A", False, "secret missing", "Fill in AppID and AppSecret", "请填写 AppID 和 AppSecret"),
    (
        41005,
        "A",
        False,
        "media file missing",
        "Internal error: multipart field must be media",
        "程序错误：上传字段须为 media",
    ),
    (41006, "A", False, "media_id missing", "Internal error: media_id", "程序错误：缺少 media_id"),
    (
        42001,
        "T",
        True,
        "token expired",
        "Token expired; a new one is fetched",
        "access_token 已过期，已重新获取",
    ),
    (43001, "A", False, "GET required", "Internal error: wrong method or scheme", "程序错误：请求方式不正确"),
    (43002, "A", True, "POST required", "Internal error: wrong method or scheme", "程序错误：请求方式不正确"),
    (
        43003,
        "A",
        True,
        "HTTPS required",
        "Internal error: wrong method or scheme",
        "程序错误：请求方式不正确",
    ),
    (43004, "X", False, "recipient must follow", "Fan has not followed the account", "粉丝未关注"),
    (
        43019,
        "X",
        False,
        "recipient is on the blacklist",
        "Remove the fan from the blacklist",
        "粉丝在黑名单中，请移出",
    ),
    (44001, "X", False, "media file empty", "Empty file", "文件为空"),
    (44002, "A", True, "POST body empty", "Internal error: empty body", "程序错误：请求体为空"),
    (44004, "X", False, "text content empty", "Empty text not sent", "文本内容为空，未发送"),
    (45001, "X", False, "media larger than allowed", "File too large", "文件超过大小限制"),
    (45002, "X", True, "content too long", "Text too long; split it", "内容过长，请拆分"),
    (45003, "X", False, "title too long", "Shorten the field", "标题/描述/链接过长"),
    (45004, "X", False, "description too long", "Shorten the field", "标题/描述/链接过长"),
    (45005, "X", False, "link too long", "Shorten the field", "标题/描述/链接过长"),
    (45006, "X", False, "picture link too long", "Shorten the field", "标题/描述/链接过长"),
    (45007, "X", False, "voice too long", "Voice ≤ 60 s", "语音超过 60 秒"),
    (45008, "X", False, "too many articles", "Only one article allowed", "图文只允许 1 条"),
    (
        45009,
        "D",
        True,
        "daily quota reached",
        "Daily API quota used up; wait until midnight or clear it (10 per month)",
        "今日接口额度已用尽，可等次日或清零（每月 10 次）",
    ),
    (45011, "M", True, "minute quota reached", "Too fast; slowing down", "调用过快，稍后重试"),
    (
        45015,
        "X",
        False,
        "reply window closed",
        "Fan silent > 48 h (or no valid action); wait for a message",
        "超过可回复时限，需等粉丝再次互动",
    ),
    (
        45035,
        "A",
        True,
        "caller IP not registered (shop)",
        "Add the IP in the console concerned",
        "请在对应平台配置 IP 白名单",
    ),
    (
        61004,
        "A",
        True,
        "caller IP not registered (platform)",
        "Add the IP in the console concerned",
        "请在对应平台配置 IP 白名单",
    ),
    (
        45047,
        "X",
        False,
        "customer messages used up",
        "Message allowance for this action used up (5/3)",
        "本次互动的客服消息条数已用完",
    ),
    (45072, "X", True, "typing: command invalid", "Ignored", "输入状态未下发，可忽略"),
    (45080, "X", True, "typing: no recent exchange", "Ignored", "输入状态未下发，可忽略"),
    (45081, "X", True, "typing: already shown", "Ignored", "输入状态未下发，可忽略"),
    (46001, "X", False, "media does not exist", "Media not found", "素材不存在"),
    (46004, "X", False, "user does not exist", "Unknown fan", "粉丝不存在"),
    (
        47001,
        "A",
        True,
        "body is not valid JSON/XML",
        "Internal error: malformed body",
        "程序错误：请求格式错误",
    ),
    (
        48001,
        "A",
        True,
        "API not authorised",
        "Account lacks this permission (verify the account)",
        "账号无此接口权限，请先认证或申请",
    ),
    (48002, "X", False, "fan refuses messages", "Fan switched messages off", "粉丝关闭了接收消息"),
    (
        48004,
        "A",
        True,
        "API blocked",
        "Interface blocked for violation; see mp.weixin.qq.com",
        "接口被封禁，请登录公众平台查看",
    ),
    (48006, "D", True, "quota clearing used up", "10 clearings this month used", "本月清零次数已用完"),
    (
        48008,
        "A",
        False,
        "message type not permitted",
        "No right to send this type",
        "没有该类型消息的发送权限",
    ),
    (
        48017,
        "A",
        True,
        "retired access IP",
        "Remove pinned IP / hosts entry",
        "请删除写死的 IP 或 hosts 配置",
    ),
    (50001, "A", True, "user/app not authorised", "Authorisation missing", "未授权该接口"),
    (50002, "A", True, "user restricted", "Account restricted or frozen", "账号受限"),
    (
        50004,
        "A",
        False,
        "token interface forbidden",
        "Contact WeChat support",
        "禁止使用 token 接口或账号已冻结",
    ),
    (50007, "A", False, "account frozen", "Contact WeChat support", "禁止使用 token 接口或账号已冻结"),
    (50005, "X", False, "not a follower", "Fan unfollowed", "粉丝未关注"),
    (
        61024,
        "A",
        False,
        "needs a third-party-platform token",
        "Account's token is managed by a platform",
        "需使用第三方平台 token",
    ),
    *(
        (code, "A", False, "customer-service account errors", "Check the agent account", "请检查客服账号")
        for code in range(61450, 61458)
    ),
    *(
        (
            code,
            "A",
            True,
            "session API: not enabled / account invalid / unbound / no session / other agent / offline",
            "Enable customer service and bind the agent",
            "请开通客服功能并绑定客服",
        )
        for code in range(65400, 65416)
    ),
    (76003, "A", False, "quota/get: path wrong", "Internal error: cgi_path", "程序错误：cgi_path 错误"),
    (
        89501,
        "A",
        True,
        "IP awaiting administrator's consent",
        "Administrator must confirm this IP in WeChat, then retry",
        "需管理员在微信中确认该 IP 后重试",
    ),
    (
        89503,
        "A",
        True,
        "IP needing administrator's consent",
        "Administrator must confirm this IP in WeChat, then retry",
        "需管理员在微信中确认该 IP 后重试",
    ),
    (
        89506,
        "D",
        True,
        "IP refused twice",
        "IP blocked 24 h; use the whitelist",
        "该 IP 24 小时内不可调用，请改用白名单",
    ),
    (89507, "A", True, "IP refused once", "IP blocked 1 h", "该 IP 1 小时内不可调用"),
)

#: Every known return code of the platform.
CODES: Mapping[int, Code] = MappingProxyType(
    {
        code: Code(code, meaning, Kind(kind), hint_en, hint_zh, confirmed)
        for code, kind, confirmed, meaning, hint_en, hint_zh in _TABLE
    }
)
