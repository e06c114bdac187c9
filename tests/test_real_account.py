"""docs/real-account.md, step by step: a test account that the sandbox plays, a tunnel, and the first picture."""

import dataclasses
import json
import re
import sys

import pytest
import requests

from config import NAMES
from sandbox import THROWAWAY, running_sandbox
from tests.conftest import ACCOUNT, ROOT, Bot, Process, clean_environ, eventually, free_port
from tests.serving import serving
from tests.test_doctor import passing_on
from tests.test_flow import SHA256, chat, send, stored

PAGES = [ROOT / "docs" / name for name in ("real-account.md", "real-account.zh-CN.md")]


@pytest.fixture
def sandbox():
    """A 接口测试号: without an AES key, and with nothing entered in its console yet."""
    with running_sandbox(account=dataclasses.replace(THROWAWAY, aes_key=None)) as running:
        yield running


def test_from_the_test_account_to_the_first_picture(sandbox, tmp_path):
    port = free_port()
    with serving(passing_on(f"http://127.0.0.1:{port}")) as tunnel:
        environ = {
            **ACCOUNT,
            "WECHAT_API_BASE": sandbox.url,
            "PUBLIC_URL": tunnel,
            "PROXY_HOPS": "1",
            "PORT": str(port),
            "WEB_CONCURRENCY": "1",
            "DATABASE_URL": f"sqlite:///{tmp_path}/bot.db",
            "MEDIA_STORE": f"{tmp_path}/media",
        }
        run = Process([sys.executable, "run.py"], clean_environ() | environ, tmp_path / "run.log")
        try:
            eventually(lambda: f"(URL, 服务器地址): {tunnel}/wechat\n" in run.text(), 60, "the URL to enter")
            bot = Bot(tmp_path, environ)

            done = bot.flask("doctor", "--json")
            findings = {each["check"]: each for each in json.loads(done.stdout.splitlines()[-1])}
            assert [check for check, each in findings.items() if not each["ok"]] == ["platform"]
            assert (
                f"40201: the console holds no callback URL, or an invalid one: enter {tunnel}/wechat"
                in (findings["platform"]["hint"])
            )

            sandbox.callback = f"{tunnel}/wechat"  # entered in the console; then 提交
            assert requests.post(f"{sandbox.url}/sandbox/verify", json={}, timeout=10).json()["ok"]

            push = send(sandbox)
            assert [attempt["verdict"] for attempt in push["attempts"]] == ["reply"]
            assert chat(sandbox)[-1]["sha256"] == SHA256
            assert stored(bot, push).media_sha256 == SHA256
            assert bot.flask("doctor").returncode == 0
            assert bot.flask("replay", "1").stdout.startswith("<xml>")
            assert run.stop() == 0
        finally:
            run.kill()


def blocks(page):
    """The page's code, without what is meant to be replaced by words of the page's language."""
    found = re.findall(r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [(kind, re.sub(r"=.*[一-鿿].*|=the .*", "=", code)) for kind, code in found]


def test_both_languages_are_in_step():
    english, chinese = (page.read_text(encoding="utf-8") for page in PAGES)
    assert blocks(PAGES[0]) == blocks(PAGES[1])
    for mark in (r"^#+ ", r"^\| ", r"^\d\. ", r"^ {0,3}```"):
        assert len(re.findall(mark, english, re.MULTILINE)) == len(re.findall(mark, chinese, re.MULTILINE)), (
            mark
        )


@pytest.mark.parametrize("page", PAGES, ids=["en", "zh"])
def test_what_the_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    settings = set(NAMES)
    named = set(re.findall(r"\b(?:WECHAT|ECHO|PUBLIC|PROXY)_[A-Z_]+\b|\bWORKER\b", text))
    assert named
    assert named <= settings
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (page.parent / link).exists(), link


def test_what_the_page_quotes_is_what_the_doctor_says():
    """Every quoted line of the tables is made of words that stand in commands/doctor/."""
    modules = (ROOT / "commands" / "doctor").glob("*.py")
    source = re.sub(r'"\s*f?"', "", "".join(module.read_text(encoding="utf-8") for module in modules))
    rows = re.findall(r"^\| `([^`]+)`", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE)
    quoted = [
        part.strip(" :") for row in rows for part in re.split(r"\.\.\.|\(TITLE\)|ERR_NGROK_\d+|: |\d+", row)
    ]
    known = {
        "token",
        "callback",
        "clock",
        "worker",
        "refused",
        "proxy",
        "secrets",
        "settings",
        "HTTP",
        "(invalid ip",
    }
    missing = [part for part in quoted if len(part) > 3 and part not in known and part not in source]
    assert missing == []
