"""All settings, read once into one frozen object.

Knows every setting's name, format and default, and reports all faults together by name. Does not know who
uses a setting or how: only entry points (app, cli, gunicorn.conf, run) read the environment, and they do it here.
Secrets are `SecretStr`, so that neither a log line nor a `repr` can show one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
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

FOLDER = Path(__file__).resolve().parent


class SettingsError(Exception):
    """The settings do not allow a start. `faults` lists (setting, what to do), one entry per fault."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        self.faults = tuple(faults)
        lines = "\n".join(f"  {name}: {what}" for name, what in faults)
        super().__init__(
            "The settings are not complete; mend them in the environment or in .env "
            f"(配置有误，请修改环境变量或 .env):\n{lines}"
        )


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL that starts with http:// or https://")
    return value.rstrip("/")


def _urls(value: Any) -> Any:
    return tuple(_url(part.strip()) for part in value.split(",")) if isinstance(value, str) else value


def _appid(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise ValueError("must be the AppID as the console shows it: letters and digits only")
    return value


def _aes_key(value: SecretStr) -> SecretStr:
    key = value.get_secret_value()
    if not re.fullmatch(r"[A-Za-z0-9]{43}", key):
        raise ValueError(
            "must be the EncodingAESKey (消息加解密密钥) of 43 letters and digits; "
            f"this one has {len(key)} characters"
        )
    return value


def _token_source(value: str) -> str:
    return value if value in ("stable", "classic") else _url(value)


def _database(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ValueError(
            "must be a database URL such as sqlite:///data/bot.db or postgresql://user:password@host/name"
        )
    if scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        return SecretStr(f"postgresql+psycopg://{rest}")
    if scheme != "sqlite" or not rest.startswith("/") or rest in ("/", "/:memory:"):
        raise ValueError("must be sqlite:///FILE or postgresql://...; other databases are not supported")
    return SecretStr(f"sqlite:///{FOLDER / rest[1:]}")


def _media_store(value: str) -> str:
    if value.startswith("s3://"):
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9_-]+)*/?", value):
            raise ValueError(
                "must name a bucket, s3://bucket or s3://bucket/prefix: small letters, digits, - and . in the "
                "bucket's name, letters, digits, - and _ in the prefix"
            )
        return value.rstrip("/")
    return str(FOLDER / value)


Url = Annotated[str, AfterValidator(_url)]
AesKey = Annotated[SecretStr, AfterValidator(_aes_key)]


class Settings(BaseModel):
    """One field per setting, named like it in lower case; the description is the setting's documentation."""

    model_config = ConfigDict(
        frozen=True, alias_generator=str.upper, hide_input_in_errors=True, validate_default=True
    )

    wechat_appid: Annotated[str, AfterValidator(_appid)]
    wechat_appsecret: SecretStr | None = None
    wechat_token: SecretStr
    wechat_aes_key: AesKey | None = None
    wechat_accept_plaintext: bool = False
    wechat_token_previous: SecretStr | None = None
    wechat_aes_key_previous: AesKey | None = None
    wechat_timestamp_window: int = Field(600, ge=0)
    wechat_api_base: Annotated[tuple[str, ...], BeforeValidator(_urls)] = Field(
        ("https://api.weixin.qq.com", "https://api2.weixin.qq.com")
    )
    wechat_token_source: Annotated[str, AfterValidator(_token_source)] = "stable"  # noqa: S105  (a mode's name)
    wechat_token_source_key: SecretStr | None = None
    token_server_key: SecretStr | None = None
    echo_via: Literal["passive", "upload"] = "passive"
    reply_seconds: float = Field(4.5, gt=0, lt=5)
    late_reply: Literal["customer_service", "redelivery"] = "customer_service"
    database_url: Annotated[SecretStr, AfterValidator(_database)] = SecretStr("sqlite:///data/bot.db")
    ledger_sync: Literal["full", "normal"] = "full"
    media_store: Annotated[str, AfterValidator(_media_store)] = "data/media"
    max_push_bytes: int = Field(1024 * 1024, gt=0)
    max_media_bytes: int = Field(30 * 1024 * 1024, gt=0)
    admin_password: SecretStr | None = None
    worker: Literal["embedded", "external"] = "embedded"
    lease_seconds: float = Field(15.0, ge=1, le=1800)
    retention_days: int = Field(0, ge=0)
    purge_on_unsubscribe: bool = False
    public_url: Url | None = None
    proxy_hops: int = Field(0, ge=0)
    port: int = Field(8000, ge=1, le=65535)
    web_concurrency: int = Field(default_factory=lambda: min(usable_cores(), 4), ge=1)
    log_format: Literal["text", "json"] = "text"

    @classmethod
    def given(cls, environ: Mapping[str, str], folder: Path = FOLDER) -> dict[str, str]:
        """What `environ`, and `folder`/.env for what it leaves out, say; an empty value counts as unset."""
        given = {**_filled(dotenv_values(folder / ".env", encoding="utf-8-sig")), **_filled(environ)}
        return {name: given[name] for name in map(str.upper, cls.model_fields) if name in given}

    @classmethod
    def from_env(cls, environ: Mapping[str, str], folder: Path = FOLDER) -> Settings:
        """The settings that `given()` finds. Raises `SettingsError` that lists every fault by name, and no value."""
        values = cls.given(environ, folder)
        faults = []
        source = values.get("WECHAT_TOKEN_SOURCE", "stable")
        if source in ("stable", "classic") and "WECHAT_APPSECRET" not in values:
            faults.append(
                (
                    "WECHAT_APPSECRET",
                    "is required (必填), unless WECHAT_TOKEN_SOURCE is a central server's URL",
                )
            )
        if "://" in source and "WECHAT_TOKEN_SOURCE_KEY" not in values:
            faults.append(("WECHAT_TOKEN_SOURCE_KEY", "is required (必填) when WECHAT_TOKEN_SOURCE is a URL"))
        if "WECHAT_AES_KEY_PREVIOUS" in values and "WECHAT_AES_KEY" not in values:
            faults.append(("WECHAT_AES_KEY_PREVIOUS", "needs WECHAT_AES_KEY, the key in force"))
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            faults += [_fault(fault) for fault in error.errors(include_url=False, include_input=False)]
        if faults:
            raise SettingsError(faults)
        return settings


def _filled(environ: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value.strip() for name, value in environ.items() if value and value.strip()}


def _fault(fault: ErrorDetails) -> tuple[str, str]:
    required = fault["type"] == "missing"
    return str(fault["loc"][0]), "is required (必填)" if required else fault["msg"].removeprefix(
        "Value error, "
    )
