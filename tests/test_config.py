"""Settings.from_env(): names, formats, defaults; all faults at once, by name, and without a value."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import (
    FOLDER,
    Settings,
    SettingsError,
    is_locked,
    settings_of_commands,
    settings_of_libraries,
    usable_cores,
)
from storage.database import Database
from tests import prepared
from tests.conftest import clean_environ
from wechat.client import ApiClient

ACCOUNT = {
    "WECHAT_APPID": "wx0a1b2c3d4e5f6789",
    "WECHAT_APPSECRET": "app-secret",
    "WECHAT_TOKEN": "callbacktoken",
}
CHINESE = re.compile("[\u4e00-\u9fff]")
AES_KEY = "Zt4mQ9sVb2LxK7eWc1RyU8nHj5PaDf3GoI6TqSkXwEM"


def read(tmp_path: Path, **environ: str) -> Settings:
    return Settings.from_env(ACCOUNT | environ, tmp_path)


def faults(tmp_path: Path, environ: dict[str, str]) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ, tmp_path)
    for fault in caught.value.faults:
        assert CHINESE.search(fault.chinese)
        assert not CHINESE.search(fault.english.replace("消息加解密密钥", ""))
    return {fault.name: fault.english for fault in caught.value.faults}


def test_three_settings_are_enough(tmp_path):
    settings = read(tmp_path)
    assert settings.wechat_api_base == ("https://api.weixin.qq.com", "https://api2.weixin.qq.com")
    assert settings.database_url.get_secret_value() == f"sqlite:///{FOLDER}/data/bot.db"
    assert settings.media_store == f"{FOLDER}/data/media"
    assert settings.wechat_aes_key is None
    assert settings.echo_via == "auto"
    assert 1 <= settings.web_concurrency <= 4


def test_all_faults_are_reported_together_by_name_and_without_the_values(tmp_path):
    given = {
        "WECHAT_AES_KEY": "too-short-to-be-a-key",
        "WECHAT_API_BASE": "https://good.example,no-scheme.example",
        "DATABASE_URL": "mysql://user:hunter2@host/db",
        "ECHO_VIA": "pigeon",
        "PORT": "http",
        "LEASE_SECONDS": "0",
        "MEDIA_STORE": "s3:///prefix",
    }
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(given, tmp_path)
    assert {name for name, _, _ in caught.value.faults} == {
        "WECHAT_APPID",
        "WECHAT_APPSECRET",
        "WECHAT_TOKEN",
        *given,
    }
    for value in ("too-short-to-be-a-key", "hunter2", "pigeon"):
        assert value not in str(caught.value)
    assert "WECHAT_TOKEN: is required" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WECHAT_APPID", "../wx"),
        ("WECHAT_AES_KEY", AES_KEY[:-1]),
        ("WECHAT_AES_KEY", AES_KEY[:-1] + "!"),
        ("WECHAT_AES_KEY_PREVIOUS", AES_KEY),
        ("WECHAT_ACCEPT_PLAINTEXT", "perhaps"),
        ("WECHAT_TIMESTAMP_WINDOW", "-1"),
        ("WECHAT_TOKEN_SOURCE", "fresh"),
        ("DATABASE_URL", "bot.db"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("LEDGER_SYNC", "off"),
        ("MEDIA_STORE", "oss://bucket/prefix"),
        ("MEDIA_STORE", "S3://bucket"),
        ("MAX_MEDIA_BYTES", "0"),
        ("REPLY_SECONDS", "5"),
        ("PUBLIC_URL", "bot.example"),
        ("WORKER", "none"),
        ("PUBLIC_URL", "https://bot.example/wechat"),
        ("PUBLIC_URL", "https://bot.example/wechat/"),
        ("PORT", "70000"),
        ("WECHAT_TOKEN", "ab"),
        ("WECHAT_TOKEN", "a" * 33),
        ("WECHAT_TOKEN", "with-a-dash"),
        ("WECHAT_TOKEN", "令牌令牌"),
        ("WECHAT_TOKEN_PREVIOUS", "with-a-dash"),
        ("ADMIN_PASSWORD", "seven77"),
        ("TOKEN_SERVER_KEY", "fifteen-letters"),
        ("LOG_LEVEL", "loud"),
        ("RETENTION_DAYS", "100001"),
        *(
            (name, url)
            for name in ("WECHAT_API_BASE", "PUBLIC_URL")
            for url in (
                "http://h:abc",
                "http://h:99999",
                "http://[bad",
                "http://{x}℀/",
                "http://a b",
            )
        ),
        ("DATABASE_URL", "postgresql://bot:pw@h:port/n"),
        ("DATABASE_URL", "postgresql://bot:pw@h:99999/n"),
        ("DATABASE_URL", "postgresql://h1:1,h2:x/n"),
        ("TOKEN_SERVER_KEY", "sixteen-letters-é"),
        ("METRICS_KEY", "two\nlines"),
        ("METRICS_KEY", "密钥"),
        ("WECHAT_APPSECRET", "of another encoding: \udcff"),
        ("ADMIN_PASSWORD", "of another encoding: \udcff"),
    ],
)
def test_each_fault_names_its_setting(tmp_path, name, value):
    assert list(faults(tmp_path, ACCOUNT | {name: value})) == [name]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WECHAT_ACCEPT_PLAINTEXT", "perhaps", "must be 0 or 1"),
        ("PORT", "http", "must be a whole number"),
        ("PORT", "9" * 5000, "must be a whole number"),
        ("PROXY_HOPS", "1.5", "must be a whole number"),
        ("REPLY_SECONDS", "soon", "must be a number"),
        ("REPLY_SECONDS", "0", "must be more than 0"),
        ("REPLY_SECONDS", "5", "must be less than 5"),
        ("LEASE_SECONDS", "0", "must be at least 1"),
        ("PORT", "70000", "must be at most 65535"),
        ("WORKER", "none", "must be embedded or external"),
        ("WECHAT_APPID", "", "is required"),
    ],
)
def test_a_fault_is_told_in_plain_words(tmp_path, name, value, words):
    assert faults(tmp_path, ACCOUNT | {name: value}) == {name: words}


SOURCE = {"WECHAT_TOKEN_SOURCE": "https://token.example", "WECHAT_TOKEN_SOURCE_KEY": "k"}


@pytest.mark.parametrize("key", ["line1\nline2", "密钥密钥-abc", "é", "\x7f", "tab\there"])
def test_a_key_that_no_header_can_carry_is_a_fault_without_its_value(tmp_path, key):
    given = ACCOUNT | SOURCE | {"WECHAT_TOKEN_SOURCE_KEY": key, "ACCOUNTS": "shop"}
    given |= {"SHOP_TOKEN_SERVER_KEY": key + "0123456789abcdef", "METRICS_KEY": key}
    with pytest.raises(SettingsError, match="HTTP header") as caught:
        Settings.from_env(given, tmp_path)
    names = [fault.name for fault in caught.value.faults]
    assert names == ["SHOP_TOKEN_SERVER_KEY", "WECHAT_TOKEN_SOURCE_KEY", "METRICS_KEY"]
    assert key not in str(caught.value)


@pytest.mark.parametrize("key", ["a=b&c", "the key of this test", "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~\\"])
def test_a_key_may_have_odd_characters(tmp_path, key):
    settings = read(tmp_path, **SOURCE | {"WECHAT_TOKEN_SOURCE_KEY": key, "METRICS_KEY": key})
    assert settings.wechat_token_source_key.get_secret_value() == key


@pytest.mark.parametrize(
    "rest",
    [
        "bot:p@S3cret@db.example/bot",
        "bot:p@S3/cret@db.example/bot",
        "bot:p/S3@cret@db.example/bot",
        "bot:p@S3?cret@db.example/bot",
        "bot:p@S3:cret@db.example:5432/bot",
        "bot:p@S3cret@one.example,two.example/bot",
    ],
)
def test_a_second_at_sign_would_show_a_part_of_the_password(tmp_path, rest):
    (fault,) = faults(tmp_path, ACCOUNT | {"DATABASE_URL": f"postgresql://{rest}"}).items()
    assert fault == ("DATABASE_URL", "has more than one @: in a user's name or a password write @ as %40")


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "host",
        "bot:p%40S3cret@host/name",
        "bot:S3/cr?et#1%zz@host/name",
        "bot@server:S3cret@host:5432/name",
        "bot@[::1]:5432/name",
        "bot:pw@h1:5432,h2:5433/name?target_session_attrs=any",
        "bot:pw@h1,[::1]:5432/name",
        "bot:pw@h1,h2/name?sslmod=require&nameless",
        "bot:S3,cr/e?t@host/name",
        "bot@server:S 3%zz@h1,h2/name",
        "host/name?port=none",
        "bot:pw@/name?host=/var/run/postgresql",
        "/name?host=@abstract",
    ],
)
def test_what_postgresql_takes_is_taken(tmp_path, rest):
    url = read(tmp_path, DATABASE_URL=f"postgresql://{rest}").database_url.get_secret_value()
    assert not Database(url).is_sqlite


WORDS = "http https postgresql sqlite :// // / : @ ? # % %40 [ ] ::1 { } {x} {0} , = & ℀ 。 é 密 host a.b 80 99999 - .."
PIECES = st.sampled_from([*WORDS.split(), "\n", " ", "\0", "\udcff"])
ODD_URLS = st.lists(PIECES, max_size=12).map("".join) | st.tuples(
    st.sampled_from(["http://", "https://", "postgresql://", "sqlite:///"]),
    st.lists(PIECES, max_size=8).map("".join),
).map("".join)


@pytest.mark.parametrize(
    "name", ["DATABASE_URL", "PUBLIC_URL", "WECHAT_API_BASE", "WECHAT_TOKEN_SOURCE", "MEDIA_STORE"]
)
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # options of SQLite's are left out
@given(url=ODD_URLS)
def test_an_odd_url_is_taken_or_a_fault_of_its_setting(tmp_path, name, url):
    try:
        taken = read(tmp_path, **SOURCE | {name: url})
    except SettingsError as error:
        named = {fault.name for fault in error.faults}
    else:
        named = {name}
        usable(taken)
    assert named == {name}


def usable(taken):
    Database(taken.database_url.get_secret_value())
    urls = (*taken.wechat_api_base, taken.wechat_token_source, taken.public_url)
    for parts in (urlsplit(url) for url in urls if url not in ("stable", None)):
        assert parts.hostname
        assert parts.port is None or parts.port < 65536
    assert "(," not in repr(ApiClient(taken.wechat_api_base)), "each is an address to the client"


def test_secrets_of_just_enough_characters(tmp_path):
    read(tmp_path, WECHAT_TOKEN="abc", ADMIN_PASSWORD="eight888", TOKEN_SERVER_KEY="sixteen-letters-")
    read(tmp_path, WECHAT_TOKEN="A1" * 16)


def test_the_log_level_in_small_letters(tmp_path):
    assert read(tmp_path, LOG_LEVEL="warning").log_level == "WARNING"


def test_an_empty_setting_counts_as_unset(tmp_path):
    assert list(faults(tmp_path, ACCOUNT | {"WECHAT_TOKEN": " "})) == ["WECHAT_TOKEN"]
    assert read(tmp_path, WECHAT_AES_KEY="", PORT="").port == 8000


def test_the_environment_wins_over_the_file(tmp_path):
    (tmp_path / ".env").write_text("PORT=9000\nECHO_VIA=upload\nWECHAT_AES_KEY=\n")
    settings = read(tmp_path, PORT="9001")
    assert (settings.port, settings.echo_via) == (9001, "upload")
    assert read(tmp_path, PORT="").port == 9000


GBK = "# 公众号\nPORT=http\n".encode("gbk")


@pytest.mark.parametrize(
    ("file", "named"),
    [
        (GBK, [".env", "PORT"]),
        ("PORT=9000\n".encode("utf-16"), [".env"]),
        (b"\xef\xbb\xbfPORT=http\n# \xe5\x85\xac\n", ["PORT"]),
    ],
)
def test_a_file_of_another_encoding_is_one_of_the_faults(tmp_path, file, named):
    (tmp_path / ".env").write_bytes(file)
    found = faults(tmp_path, ACCOUNT)
    assert list(found) == named
    assert found.get(".env", "") in ("", "is not UTF-8: save it as UTF-8")
    assert settings_of_libraries(tmp_path) == {}
    assert settings_of_commands(ACCOUNT, tmp_path) == ACCOUNT


@pytest.mark.parametrize(
    "line",
    [
        "METRICS_KEY: hidden",
        'METRICS_KEY="hidden',
        "METRICS_KEY='hidden",
        "=hidden",
        "METRICS_KEY:hidden",
        "METRICS_KEY＝hidden",
        "METRICS_KEY：hidden=",
    ],
)
def test_a_line_of_the_file_that_is_no_setting_is_a_fault(tmp_path, line, caplog):
    (tmp_path / ".env").write_text(f"# shop's\n\n{line}\nAWS_REGION=here\nPORT=http\n", encoding="utf-8")
    found = faults(tmp_path, ACCOUNT)
    assert list(found) == [".env", "PORT"]
    assert found[".env"] == "line 3 is not NAME=value, or a quotation mark in it is not closed"
    assert settings_of_libraries(tmp_path) == {"AWS_REGION": "here"}
    assert not caplog.records


def test_a_folder_in_the_place_of_the_file_is_no_fault(tmp_path):
    (tmp_path / ".env").mkdir()
    assert read(tmp_path).port == 8000


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"AWS_ENDPOINT_URL_S3": "minio:9000"}, ["AWS_ENDPOINT_URL_S3"]),
        ({"AWS_ENDPOINT_URL": "minio"}, ["AWS_ENDPOINT_URL"]),
        ({"AWS_ACCESS_KEY_ID": "one", "AWS_ENDPOINT_URL_S3": ""}, ["AWS_SECRET_ACCESS_KEY"]),
        ({"AWS_SECRET_ACCESS_KEY": "two"}, ["AWS_ACCESS_KEY_ID"]),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000"}, []),
    ],
)
@pytest.mark.parametrize("in_file", [True, False])
def test_what_boto3_can_make_no_request_with_is_a_fault_where_a_bucket_is_used(
    tmp_path, environ, named, in_file
):
    if in_file:
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in environ.items()))
        environ = {}
    Settings.from_env(ACCOUNT | environ, tmp_path)
    bucket = ACCOUNT | environ | {"MEDIA_STORE": "s3://bucket/prefix"}
    if named:
        assert list(faults(tmp_path, bucket)) == named
    else:
        Settings.from_env(bucket, tmp_path)


@pytest.mark.parametrize("last", "MNOP")
def test_an_aes_key_may_end_in_any_character(tmp_path, last):
    assert read(tmp_path, WECHAT_AES_KEY=AES_KEY[:-1] + last).wechat_aes_key is not None


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgres_urls_mean_the_pinned_driver(tmp_path, scheme):
    url = read(tmp_path, DATABASE_URL=f"{scheme}://user:password@host/name").database_url
    assert url.get_secret_value() == "postgresql+psycopg://user:password@host/name"


def test_absolute_paths_stay(tmp_path):
    settings = read(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/x.db", MEDIA_STORE=str(tmp_path))
    assert settings.database_url.get_secret_value() == f"sqlite:///{tmp_path}/x.db"
    assert settings.media_store == str(tmp_path)
    assert read(tmp_path, MEDIA_STORE="s3://bucket/prefix/").media_store == "s3://bucket/prefix"


def test_a_tilde_in_a_file_means_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = read(tmp_path, DATABASE_URL="sqlite:///~/x.db", MEDIA_STORE="~/media")
    assert settings.database_url.get_secret_value() == f"sqlite:///{tmp_path}/x.db"
    assert settings.media_store == f"{tmp_path}/media"


def test_a_central_server_needs_its_key_and_no_app_secret(tmp_path):
    account = {"WECHAT_APPID": "wx1", "WECHAT_TOKEN": "ttt", "WECHAT_TOKEN_SOURCE": "https://token.example/"}
    assert list(faults(tmp_path, account)) == ["WECHAT_TOKEN_SOURCE_KEY"]
    settings = Settings.from_env(account | {"WECHAT_TOKEN_SOURCE_KEY": "k"}, tmp_path)
    assert settings.wechat_token_source == "https://token.example"


def test_no_secret_is_shown(tmp_path):
    secrets = {
        "WECHAT_APPSECRET": "app-secret",
        "WECHAT_TOKEN": "callbacktoken",
        "WECHAT_TOKEN_PREVIOUS": "callbacktoken2",
        "WECHAT_AES_KEY": AES_KEY,
        "WECHAT_AES_KEY_PREVIOUS": AES_KEY[::-1],
        "WECHAT_TOKEN_SOURCE_KEY": "source-key",
        "TOKEN_SERVER_KEY": "a-key-of-this-server",
        "ADMIN_PASSWORD": "open sesame",
        "DATABASE_URL": "postgresql://user:hunter2@host/db",
    }
    shown = repr(read(tmp_path, **secrets)) + str(read(tmp_path, **secrets).model_dump())
    assert not [value for value in [*secrets.values(), "hunter2"] if value in shown]


ALL_CORES = usable_cores(Path("/nowhere"))


def machine(folder, files):
    """A folder with the files that the system shows of a process's cgroup."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, ALL_CORES),
        ({"proc/self/cgroup": "0::/\n"}, ALL_CORES),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, ALL_CORES),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "110000 100000\n"}, min(ALL_CORES, 2)),
        (
            {
                "proc/self/cgroup": "0::/system.slice/bot.service\n",
                "sys/fs/cgroup/system.slice/bot.service/cpu.max": "max 100000\n",
                "sys/fs/cgroup/system.slice/cpu.max": "50000 100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/4f\n3:cpu,cpuacct:/docker/4f\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            ALL_CORES,
        ),
    ],
)
def test_a_containers_quota_counts(tmp_path, files, cores):
    assert usable_cores(machine(tmp_path, files)) == cores


def gunicorn(folder, *options, **environ):
    """The exit code and what it said."""
    command = ["gunicorn", "-c", str(FOLDER / "gunicorn.conf.py"), *options, "app:create_app()"]
    done = prepared.run([sys.executable, "-m", *command], clean_environ() | environ, folder=folder)
    return done.returncode, done.stderr


def test_gunicorn_ends_at_faulty_settings_in_whatever_folder_it_is_started(tmp_path):
    status, said = gunicorn(tmp_path, WECHAT_APPID="wx1", PORT="http")
    assert status == 2
    for name in ("WECHAT_APPSECRET", "WECHAT_TOKEN", "PORT"):
        assert f"  {name}: " in said
    assert "Traceback" not in said


def test_gunicorn_finds_the_bot_from_another_folder(tmp_path):
    status, said = gunicorn(
        tmp_path, "--check-config", **ACCOUNT, DATABASE_URL=f"sqlite:///{tmp_path}/bot.db"
    )
    assert status == 0, said


@pytest.mark.parametrize("zone", ["Asia/Shangai", "../../etc/passwd", "nowhere"])
def test_a_zone_that_is_none_is_a_fault(tmp_path, zone):
    with pytest.raises(SettingsError, match="TZ: must be a time zone"):
        Settings.from_env(ACCOUNT | {"TZ": zone}, tmp_path)


@pytest.mark.parametrize(
    ("zone", "key"), [("Asia/Shanghai", "Asia/Shanghai"), ("CST-8", None), (":/etc/localtime", None)]
)
def test_a_zone_by_its_name_or_as_the_c_library_has_it(tmp_path, zone, key):
    found = Settings.from_env(ACCOUNT | {"TZ": zone}, tmp_path).zone
    assert (found and found.key) == key


def test_many_may_look_at_once_whether_make_run_holds_a_file(tmp_path):
    (tmp_path / "settings").touch()
    with ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(is_locked, [tmp_path / "settings"] * 1000))
