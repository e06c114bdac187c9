"""All settings, read once into one frozen object.

Knows every setting's name, format and default, and reports all faults together, by name. Must not know what a
setting is used for. Only app.py, run.py, web/server.py (for gunicorn) and commands pass the environment in.
Secrets are `SecretStr`, so that neither a log line nor a `repr` can show one.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_core import ErrorDetails

from wechat.codes import explain
from wechat.errors import Cause, WeChatError
from wechat.transport import place, web_address

FOLDER = Path(__file__).resolve().parent
SANDBOX_SETTINGS = Path("data/sandbox/settings.env")
"""The settings of a `make run` without an account, relative to the project's folder. Locked (shared) while it runs."""
OF_LIBRARIES = re.compile(r"AWS_\w+|(?:HTTPS?|ALL|NO)_PROXY|REQUESTS_CA_BUNDLE", re.IGNORECASE)
"""Names in .env that are settings of libraries (boto3, requests), not of the bot."""


# What to check when an error of the protocol has this cause: in English and in Chinese.
HINTS: Mapping[Cause, tuple[str, str]] = {
    Cause.TOKEN: (
        "is WECHAT_TOKEN the console's token?",
        "请检查 WECHAT_TOKEN 是否与公众平台的令牌(Token)一致",
    ),
    Cause.NO_AES_KEY: (
        "set WECHAT_AES_KEY to the console's EncodingAESKey",
        "请将 WECHAT_AES_KEY 设为公众平台的消息加解密密钥(EncodingAESKey)",
    ),
    Cause.NOT_ENCRYPTED: (
        "WECHAT_AES_KEY is set: choose safe mode (安全模式) in the console, "
        "or set WECHAT_ACCEPT_PLAINTEXT=1 for the change-over",
        "已设置 WECHAT_AES_KEY：请在公众平台选择安全模式，过渡期可设 WECHAT_ACCEPT_PLAINTEXT=1",
    ),
    Cause.AES_KEY: (
        "is WECHAT_AES_KEY the console's EncodingAESKey?",
        "请检查 WECHAT_AES_KEY 是否与公众平台的消息加解密密钥(EncodingAESKey)一致",
    ),
    Cause.APPID: ("is WECHAT_APPID that of this account?", "请检查 WECHAT_APPID 是否为本账号"),
    Cause.APPSECRET: ("is WECHAT_APPSECRET that of this account?", "请检查 WECHAT_APPSECRET"),
    Cause.WINDOW: (
        "set this machine's clock (NTP), or WECHAT_TIMESTAMP_WINDOW (seconds; 0 = no check)",
        "请校准本机时间（NTP），或调整 WECHAT_TIMESTAMP_WINDOW",
    ),
    Cause.MEDIA_SIZE: ("the cap is MAX_MEDIA_BYTES", "上限为 MAX_MEDIA_BYTES"),
    Cause.API_BASE: ("check WECHAT_API_BASE", "请检查 WECHAT_API_BASE"),
    Cause.CENTRAL_SERVER: (
        "check WECHAT_TOKEN_SOURCE, and that TOKEN_SERVER_KEY is set over there",
        "请检查 WECHAT_TOKEN_SOURCE，以及对方是否设置了 TOKEN_SERVER_KEY",
    ),
    Cause.CENTRAL_KEY: (
        "WECHAT_TOKEN_SOURCE_KEY must equal TOKEN_SERVER_KEY over there",
        "WECHAT_TOKEN_SOURCE_KEY 须与对方的 TOKEN_SERVER_KEY 一致",
    ),
}


def explained(error: WeChatError) -> str:
    """What happened and what to do about it, in one line, with the names of our settings."""
    text = error.what + (f" ({error.what_zh})" if error.what_zh else "")
    if error.hint_en:
        text += f". {error.hint_en} ({error.hint_zh})"
    if error.cause is not None:
        text += f": {HINTS[error.cause][0]}"
    return text


def token_reason(error: WeChatError) -> tuple[str, str]:
    """Why there is no access_token, and what to do, in English and in Chinese: kept in the shared token row."""
    english, chinese, cause = error.hint_en, error.hint_zh, error.cause
    if error.code in _OF_TOKEN_CALLS:
        # While a token is fetched, 40001 means the AppSecret: no access_token was sent.
        cause = _OF_TOKEN_CALLS[error.code]
        known = explain(40125 if error.code == 40001 else error.code)
        english, chinese = known.hint_en, known.hint_zh
    ip = _CALLER_IP.search(error.what)
    if error.code == 40164 and ip:
        english, chinese = (
            f"Add {ip[1]} to the account's IP whitelist",
            f"请将 {ip[1]} 加入公众平台 IP 白名单",
        )
    in_english = (error.what, english, HINTS[cause][0] if cause else "")
    in_chinese = (error.what_zh, chinese, HINTS[cause][1] if cause else "")
    return ". ".join(filter(None, in_english)), "；".join(filter(None, in_chinese))


_OF_TOKEN_CALLS = {
    40001: Cause.APPSECRET,
    40013: Cause.APPID,
    40125: Cause.APPSECRET,
    41002: Cause.APPID,
    41004: Cause.APPSECRET,
}
_CALLER_IP = re.compile(r"invalid ip ([0-9A-Fa-f.:]+)")


class Fault(NamedTuple):
    """What is wrong with one setting, and what to do about it. Neither text holds the value."""

    name: str
    english: str
    chinese: str


class SettingsError(Exception):
    """The settings do not allow a start. `faults` has one entry for each fault."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        lines = "\n".join(f"  {name}: {english} ({chinese})" for name, english, chinese in faults)
        super().__init__(
            "Some settings are missing or wrong; correct them in the environment or in .env "
            f"(设置缺失或有误，请修改环境变量或 .env):\n{lines}"
        )


class _WrongValue(ValueError):
    def __init__(self, english: str, chinese: str) -> None:
        super().__init__(english)
        self.english, self.chinese = english, chinese


def usable_cores(root: Path = Path("/")) -> int:
    """How many cores this process may use: its CPU affinity, limited by its container's quota.

    A quota of 1.5 cores counts as 2. `root` is the folder that holds proc/ and sys/.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *_quotas(root)])


def _quotas(root: Path) -> Iterator[int]:
    """The CPU quotas (`docker run --cpus`, systemd's CPUQuota) of this process's cgroup and of its parents, in cores.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), cgroup-v1: cpu.cfs_quota_us, cpu.cfs_period_us
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers  # version 2 has one tree and names no controllers
        # In a container the path may be the host's; the container's own cgroup is then at the top.
        for folder in (top / path.lstrip("/"), *(top / path.lstrip("/")).parents):
            if not folder.is_relative_to(top):
                break
            version_1 = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
            quota, _, period = (_read(folder / "cpu.max") or version_1).strip().partition(" ")
            if quota.isdecimal() and period.strip().isdecimal() and int(quota) and int(period):
                yield math.ceil(int(quota) / int(period))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _url(value: str) -> str:
    if web_address(value) is None or place(value) is None:  # as it is sent, and as it is written here
        raise _WrongValue(
            "must be a URL that starts with http:// or https://, with a usable host name and port",
            "必须是以 http:// 或 https:// 开头的 URL，主机名和端口须有效",
        )
    return value.rstrip("/")


def _urls(value: Any) -> Any:
    return tuple(_url(part.strip()) for part in value.split(",")) if isinstance(value, str) else value


def _public_url(value: str) -> str:
    url = _url(value)
    if urlsplit(url).path.endswith("/wechat"):
        raise _WrongValue(
            "must not end in /wechat: that is added to it", "不要以 /wechat 结尾：程序会自动加上"
        )
    return url


def _appid(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise _WrongValue(
            "must be the AppID as the console shows it: letters and digits only",
            "必须与公众平台显示的 AppID 一致，只含字母和数字",
        )
    return value


def _callback_token(value: SecretStr) -> SecretStr:
    token = value.get_secret_value()
    if not re.fullmatch(r"[A-Za-z0-9]{3,32}", token):
        raise _WrongValue(
            f"must be 3 to 32 letters and digits, as the console takes it; this one has {len(token)} characters",
            f"必须是 3 到 32 位字母或数字（公众平台只接受这样的令牌(Token)），现有 {len(token)} 个字符",
        )
    return value


def _aes_key(value: SecretStr) -> SecretStr:
    key = value.get_secret_value()
    if not re.fullmatch(r"[A-Za-z0-9]{43}", key):
        raise _WrongValue(
            "must be the EncodingAESKey (消息加解密密钥) of 43 letters and digits; "
            f"this one has {len(key)} characters",
            f"必须是 43 位字母或数字的消息加解密密钥(EncodingAESKey)，现有 {len(key)} 个字符",
        )
    return value


def _utf8(value: SecretStr) -> SecretStr:
    """Refuses bytes of another encoding in the environment: Python's error for them would hold the secret."""
    if re.search("[\ud800-\udfff]", value.get_secret_value()):
        raise _WrongValue(*_WORDS["string_unicode"])
    return value


def _at_least(characters: int) -> AfterValidator:
    """Checks the length of a secret that strangers can guess at over the network."""

    def check(value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < characters:
            raise _WrongValue(
                f"must have at least {characters} characters, since strangers may guess at it",
                f"至少 {characters} 个字符，以防被猜出",
            )
        return value

    return AfterValidator(check)


def _header_key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[ -~]+", value.get_secret_value()):
        raise _WrongValue(
            "travels in an HTTP header: it must be one line of ASCII letters, digits, signs and spaces",
            "要放在 HTTP 头中传送，只能是一行 ASCII 字母、数字、符号和空格",
        )
    return value


def _token_source(value: str) -> str:
    if value in ("stable", "classic"):
        return value
    try:
        return _url(value)
    except _WrongValue:
        raise _WrongValue(
            "must be stable, classic, or the URL of a central server",
            "必须是 stable、classic 或中控服务器的 URL",
        ) from None


def _database(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    scheme, separator, address = url.partition("://")
    if not separator:
        raise _WrongValue(
            "must be a database URL such as sqlite:///data/bot.db or postgresql://user:password@host/name",
            "必须是数据库 URL，例如 sqlite:///data/bot.db 或 postgresql://user:password@host/name",
        )
    if scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        _check_postgresql(address)
        return SecretStr(f"postgresql+psycopg://{address}")
    if scheme != "sqlite" or not address.startswith("/") or address in ("/", "/:memory:"):
        raise _WrongValue(
            "must be sqlite:///FILE or postgresql://...; other databases are not supported",
            "只支持 sqlite:///文件 或 postgresql://...",
        )
    return SecretStr(f"sqlite:///{_path(address[1:])}")


def _path(value: str) -> str:
    """A relative path begins in this folder, wherever the program is started. No shell has replaced a `~` of .env;
    without a home folder it stays, where Path.expanduser would raise."""
    return str(FOLDER / os.path.expanduser(value))


# As SQLAlchemy reads it: a password may hold anything but @.
_POSTGRESQL = re.compile(
    r"(?:[^:/]*(?::[^@]*)?@)?(?P<servers>[^/?]*)(?:/(?P<database>[^?]*))?(?:\?(?P<options>.*))?",
    re.DOTALL,
)
_SERVER = re.compile(r"(?:\[[^\[\]]+\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")


def _check_postgresql(address: str) -> None:
    """`address` comes after the scheme. The host, the port and the database's name are shown later: none of them may be
    the end of a password."""
    found = _POSTGRESQL.fullmatch(address)
    assert found is not None, "every part of it may be empty"
    servers, database, options = (found[name] or "" for name in ("servers", "database", "options"))
    nameless = [option for option in options.split("&") if "=" not in option]
    if "@" in servers + database + "".join(nameless):
        raise _WrongValue(
            "has more than one @: in a user's name or a password write @ as %40",
            "含有多个 @：用户名和密码中的 @ 须写成 %40",
        )
    each = [_SERVER.fullmatch(server) for server in servers.split(",")]
    if not all(one and int(one["port"] or 5432) in range(1, 65536) for one in each):
        raise _WrongValue(
            "must be like postgresql://user:password@host:5432/name, with / ? % in a password as %2F %3F %25",
            "必须形如 postgresql://user:password@host:5432/name，密码中的 / ? % 须写成 %2F %3F %25",
        )


def _zone(value: str) -> str:
    """TZ as the C library takes it: a zone's name, its rules (which contain digits), or a path after a colon."""
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        if not re.search(r"[0-9]|^:", value):
            raise _WrongValue(
                "must be a time zone that this machine knows, such as Asia/Shanghai or UTC",
                "必须是本机认识的时区，如 Asia/Shanghai 或 UTC",
            ) from None
    return value


def _media_store(value: str) -> str:
    if value.startswith("s3://"):
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9_-]+)*/?", value):
            raise _WrongValue(
                "must name a bucket, s3://bucket or s3://bucket/prefix: small letters, digits, - and . in the "
                "bucket's name, letters, digits, - and _ in the prefix",
                "必须写成 s3://bucket 或 s3://bucket/prefix："
                "桶名只含小写字母、数字、- 和 .，前缀只含字母、数字、- 和 _",
            )
        return value.rstrip("/")
    if "://" in value:  # as a folder it would be on this machine's disk, which on a PaaS does not last
        raise _WrongValue(
            "must be a folder, or s3://bucket/prefix for any S3-compatible store (its address: AWS_ENDPOINT_URL_S3)",
            "必须是目录，或 s3://bucket/prefix（任何兼容 S3 的存储都这样写，地址用 AWS_ENDPOINT_URL_S3 设置）",
        )
    return _path(value)


CallbackToken = Annotated[SecretStr, AfterValidator(_callback_token)]
AesKey = Annotated[SecretStr, AfterValidator(_aes_key)]
Secret = Annotated[SecretStr, AfterValidator(_utf8)]
HeaderKey = Annotated[SecretStr, AfterValidator(_header_key)]


class Settings(BaseModel):
    """The settings of one account: one field per setting, with the setting's name in lower case. docs/reference.md says
    what each one does. Settings that belong to no account are the same in all of them.
    """

    model_config = ConfigDict(
        frozen=True, alias_generator=str.upper, hide_input_in_errors=True, validate_default=True
    )

    account: str = ""
    """The name in ACCOUNTS; empty where that is not set."""
    own_token_server_key: Annotated[HeaderKey, _at_least(16)] | None = None
    """TOKEN_SERVER_KEY with the account's name in front. `token_server_key` is the one for all accounts."""

    accounts: str | None = None
    wechat_appid: Annotated[str, AfterValidator(_appid)]
    wechat_appsecret: Secret | None = None
    wechat_token: CallbackToken | None = None
    wechat_aes_key: AesKey | None = None
    wechat_accept_plaintext: bool = False
    wechat_token_previous: CallbackToken | None = None
    wechat_aes_key_previous: AesKey | None = None
    wechat_timestamp_window: int = Field(600, ge=0)
    wechat_api_base: Annotated[tuple[str, ...], BeforeValidator(_urls)] = Field(
        ("https://api.weixin.qq.com", "https://api2.weixin.qq.com")
    )
    wechat_token_source: Annotated[str, AfterValidator(_token_source)] = "stable"  # noqa: S105  (a mode's name)
    wechat_token_source_key: HeaderKey | None = None
    token_server_key: Annotated[HeaderKey, _at_least(16)] | None = None
    echo_via: Literal["auto", "passive", "upload"] = "auto"
    reply_seconds: float = Field(4.5, gt=0, lt=5)
    late_reply: Literal["customer_service", "redelivery"] = "customer_service"
    database_url: Annotated[Secret, AfterValidator(_database)] = SecretStr("sqlite:///data/bot.db")
    ledger_sync: Literal["full", "normal"] = "full"
    media_store: Annotated[str, AfterValidator(_media_store)] = "data/media"
    max_push_bytes: int = Field(256 * 1024, gt=0)
    max_media_bytes: int = Field(30 * 1024 * 1024, gt=0)
    metrics_key: HeaderKey | None = None
    admin_password: Annotated[Secret, _at_least(8)] | None = None
    worker: Literal["embedded", "external"] = "embedded"
    lease_seconds: float = Field(15.0, ge=1, le=1800)
    retention_days: int = Field(0, ge=0, le=100_000)
    purge_on_unsubscribe: bool = False
    public_url: Annotated[str, AfterValidator(_public_url)] | None = None
    proxy_hops: int = Field(0, ge=0)
    port: int = Field(8000, ge=1, le=65535)
    pin_cores: bool = True
    web_concurrency: int = Field(default_factory=lambda: min(usable_cores(), 4), ge=1)
    log_format: Literal["text", "json"] = "text"
    tz: Annotated[str, AfterValidator(_zone)] | None = None
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)] = "INFO"

    @property
    def callback_path(self) -> str | None:
        """Where the platform calls; None for an account without WECHAT_TOKEN, which has no callback."""
        if self.wechat_token is None:
            return None
        return f"/wechat/{self.account}" if self.account else "/wechat"

    @property
    def zone(self) -> ZoneInfo | None:
        """The zone that TZ names. None for the machine's own zone, and for a TZ that gives rules instead of a name."""
        try:
            return ZoneInfo(self.tz) if self.tz else None
        except (KeyError, ValueError, OSError):
            return None

    @classmethod
    def unchecked(cls, environ: Mapping[str, str], folder: Path = FOLDER) -> dict[str, str]:
        """The texts of the settings in `environ` and `folder`/.env. `environ` wins; empty counts as unset."""
        found = _filled(file_texts(folder / ".env")) | _filled(environ)
        return {name: found[name] for name in known_names(found) if name in found}

    @classmethod
    def from_env(cls, environ: Mapping[str, str], folder: Path = FOLDER) -> Settings:
        """The checked settings of the account, the first one where ACCOUNTS names several. Raises `SettingsError`."""
        return cls.of_accounts(environ, folder)[0]

    @classmethod
    def of_accounts(cls, environ: Mapping[str, str], folder: Path = FOLDER) -> tuple[Settings, ...]:
        """The checked settings of each account, in the order of ACCOUNTS; without ACCOUNTS there is one.

        Raises `SettingsError`, which lists all faults of all accounts by setting name, without values.
        """
        values = cls.unchecked(environ, folder)
        names = accounts(values)
        faults = [*_wrong_file(folder / ".env"), *_wrong_names(names)]
        faults += _wrong_for_s3(values, settings_of_libraries(folder) | dict(environ))
        found, appids = [], set[str]()
        for account in names or [""]:
            own, common = texts_of(values, account)
            wrong = [*_missing(common | own, account)]
            try:
                settings = cls.model_validate(common | own | {"ACCOUNT": account})
            except ValidationError as error:
                wrong += [_fault(detail) for detail in error.errors(include_url=False, include_input=False)]
            else:
                found.append(settings)
                if settings.wechat_appid in appids:
                    wrong.append(Fault("WECHAT_APPID", "is that of another account too", "与另一个账号重复"))
                appids.add(settings.wechat_appid)
            faults += [
                fault._replace(name=name_of(fault.name, account, given_for_all=fault.name in common))
                for fault in wrong
            ]
        if faults:
            raise SettingsError(list(dict.fromkeys(faults)))  # a fault that all accounts share is listed once
        return tuple(found)


NAMES = tuple(
    name.upper() for name in Settings.model_fields if name not in ("account", "own_token_server_key")
)
OF_AN_ACCOUNT = frozenset(
    name
    for name in NAMES
    if name.startswith("WECHAT_")
    or name
    in (
        "ECHO_VIA",
        "REPLY_SECONDS",
        "LATE_REPLY",
        "RETENTION_DAYS",
        "PURGE_ON_UNSUBSCRIBE",
        "TOKEN_SERVER_KEY",
    )
)
"""Those that may have an account's name in front (SHOP_WECHAT_APPID). Without a name they hold for all accounts."""


def known_names(values: Mapping[str, str]) -> list[str]:
    """The names of all settings, with those of the accounts that `values` names."""
    prefixes = [_prefix(account) for account in accounts(values)]
    return [*NAMES, *(prefix + name for prefix in prefixes for name in sorted(OF_AN_ACCOUNT))]


def accounts(values: Mapping[str, str]) -> list[str]:
    """The names in ACCOUNTS; empty where that is not set."""
    return [name.strip() for name in values.get("ACCOUNTS", "").split(",") if name.strip()]


def texts_of(values: Mapping[str, str], account: str) -> tuple[dict[str, str], dict[str, str]]:
    """The account's own texts, and the texts for all accounts, both by setting name without the account's."""
    common = {name: text for name, text in values.items() if name in NAMES}
    if not account:
        return {}, common
    prefix = _prefix(account)
    own = {name: values[prefix + name] for name in OF_AN_ACCOUNT if prefix + name in values}
    if key := own.pop("TOKEN_SERVER_KEY", None):
        own["OWN_TOKEN_SERVER_KEY"] = key
    return own, {name: text for name, text in common.items() if name not in own}


def name_of(setting: str, account: str, *, given_for_all: bool) -> str:
    """The name under which a setting of that account is to be corrected."""
    name = setting.removeprefix("OWN_")
    return _prefix(account) + name if account and name in OF_AN_ACCOUNT and not given_for_all else name


def _prefix(account: str) -> str:
    return account.upper().replace("-", "_") + "_"


def _wrong_names(names: Sequence[str]) -> Iterator[Fault]:
    if wrong := [name for name in names if not re.fullmatch(r"[a-z][a-z0-9-]*", name)]:
        yield Fault(
            "ACCOUNTS",
            f"names have lower-case letters, digits and hyphens, and begin with a letter: not {wrong[0]!r:.40}",
            f"名称只含小写字母、数字和连字符，以字母开头，{wrong[0]!r:.40} 不行",
        )
    if len(set(names)) < len(names):
        yield Fault("ACCOUNTS", "names an account twice", "有重复的名称")


def _wrong_for_s3(values: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[Fault]:
    """AWS_* with which no request could be made. The rest is boto3's to judge, at the first use of the store."""
    if not values.get("MEDIA_STORE", "").startswith("s3://"):
        return
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        try:
            _url(environ.get(name) or "http://unset")
        except _WrongValue as wrong:
            yield Fault(name, wrong.english, wrong.chinese)
    pair = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    present = [name for name in pair if environ.get(name)]
    if len(present) == 1:
        (missing,) = set(pair) - set(present)
        yield Fault(missing, f"is required with {present[0]}", f"设置了 {present[0]} 时必填")


of_this_server: tuple[Settings, ...] | None = None
"""The settings of each account that gunicorn's master checked. Later processes use them too, even if .env is edited."""


def settings_of_commands(environ: Mapping[str, str], folder: Path = FOLDER) -> Mapping[str, str]:
    """The environment for a command: `environ`, and the settings of a `make run` that runs without an account."""
    path = folder / SANDBOX_SETTINGS
    if names_an_account(Settings.unchecked(environ, folder)) or not is_locked(path):
        return environ
    return _filled(file_texts(path)) | _filled(environ)


def names_an_account(values: Mapping[str, str]) -> bool:
    """Whether an account is set, so that `make run` need not make one up."""
    return "WECHAT_APPID" in values or "ACCOUNTS" in values


def is_locked(path: Path) -> bool:
    """Whether a running `make run` holds this file of settings."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared with others that look at this moment
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def settings_of_libraries(folder: Path = FOLDER) -> dict[str, str]:
    """The libraries' settings in `folder`/.env (AWS_*, proxies): libraries read the environment, not .env."""
    found = _filled(file_texts(folder / ".env"))
    return {name: value for name, value in found.items() if OF_LIBRARIES.fullmatch(name)}


def file_texts(path: Path) -> dict[str, str | None]:
    """The texts in a file such as .env, by name; none if there is no such file, or it cannot be read. What is not UTF-8
    in them is replaced, and what is no setting is left out: `of_accounts` reports such a .env, and its other faults
    with it."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return {}
    readable = "".join(part.original.string for part in parse_stream(StringIO(text)) if _can_be_read(part))
    return dotenv_values(stream=StringIO(readable))


def _can_be_read(part: Binding) -> bool:
    """Where = is a colon or full-width, the library takes a secret for a part of the name."""
    return not part.error and (part.key is None or re.fullmatch(r"[\w.-]+", part.key) is not None)


def _wrong_file(path: Path) -> Iterator[Fault]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        yield Fault(path.name, "is not UTF-8: save it as UTF-8", "不是 UTF-8 编码，请另存为 UTF-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        pass  # there is none; Docker makes a folder of a missing file that is to be mounted
    except OSError as error:
        yield Fault(path.name, f"cannot be read: {error.strerror}", f"无法读取：{error.strerror}")
    else:
        for part in parse_stream(StringIO(text)):
            if not _can_be_read(part):
                before = re.match(r"\s*", part.original.string)
                line = part.original.line + (before[0].count("\n") if before else 0)
                yield Fault(
                    path.name,
                    f"line {line} is not NAME=value, or a quotation mark in it is not closed",
                    f"第 {line} 行不是 NAME=value 的形式，或引号没有成对",
                )


def _missing(values: Mapping[str, str], account: str) -> Iterator[Fault]:
    """The missing settings: WECHAT_TOKEN if there is only one account, and each setting that another one requires."""
    if not account and "WECHAT_TOKEN" not in values:
        yield Fault("WECHAT_TOKEN", *_WORDS["missing"])
    source = values.get("WECHAT_TOKEN_SOURCE", "stable")
    if source in ("stable", "classic") and "WECHAT_APPSECRET" not in values:
        yield Fault(
            "WECHAT_APPSECRET",
            "is required, unless WECHAT_TOKEN_SOURCE is a central server's URL",
            "必填，除非 WECHAT_TOKEN_SOURCE 是中控服务器的 URL",
        )
    if "://" in source and "WECHAT_TOKEN_SOURCE_KEY" not in values:
        yield Fault(
            "WECHAT_TOKEN_SOURCE_KEY",
            "is required when WECHAT_TOKEN_SOURCE is a URL",
            "WECHAT_TOKEN_SOURCE 为 URL 时必填",
        )
    if "WECHAT_AES_KEY_PREVIOUS" in values and "WECHAT_AES_KEY" not in values:
        yield Fault(
            "WECHAT_AES_KEY_PREVIOUS",
            "needs WECHAT_AES_KEY, the key in force",
            "需要同时设置现用的 WECHAT_AES_KEY",
        )


def _filled(environ: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value.strip() for name, value in environ.items() if value and value.strip()}


# pydantic's errors in our words; {gt} and so on are filled in with its bound.
_WORDS = {
    "missing": ("is required", "必填"),
    "string_unicode": ("must be text in UTF-8", "必须是 UTF-8 编码的文本"),
    "bool_parsing": ("must be 0 or 1", "必须为 0 或 1"),
    "int_parsing": ("must be a whole number", "必须为整数"),
    "int_parsing_size": ("must be a whole number", "必须为整数"),
    "int_from_float": ("must be a whole number", "必须为整数"),
    "float_parsing": ("must be a number", "必须为数字"),
    "greater_than": ("must be more than {gt:g}", "必须大于 {gt:g}"),
    "greater_than_equal": ("must be at least {ge:g}", "不得小于 {ge:g}"),
    "less_than": ("must be less than {lt:g}", "必须小于 {lt:g}"),
    "less_than_equal": ("must be at most {le:g}", "不得大于 {le:g}"),
}


def _fault(detail: ErrorDetails) -> Fault:
    name, context = str(detail["loc"][0]), detail.get("ctx", {})
    wrong = context.get("error")
    if isinstance(wrong, _WrongValue):
        return Fault(name, wrong.english, wrong.chinese)
    if detail["type"] == "literal_error":
        words = re.findall(r"'([^']*)'", context["expected"])
        return Fault(name, f"must be {' or '.join(words)}", f"必须为 {' 或 '.join(words)}")
    # Not pydantic's own text, which may hold a part of the value.
    english, chinese = _WORDS.get(detail["type"], ("cannot be used", "值无效"))
    return Fault(name, english.format(**context), chinese.format(**context))
