"""A fan's memory: message, reply and memory are one commit, so that no repeat and no crash advances it twice."""

import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

import handlers
import parts
from config import Settings
from handlers import Deferred, Remember
from storage.deferred import DeferredWork
from storage.memories import Change, Memories, MemoryChangedError, StoredMemory
from tests import pushing
from tests.conftest import ACCOUNT, FAN, eventually
from tests.databases import APPID
from wechat.messages import TextMessage, parse_message
from wechat.replies import TextReply

NOW = 1_800_000_000.0


def text(number, content="count", fan=FAN):
    return parse_message(pushing.text(number, content, fan=fan).encode())


def count(message, memory):
    number = memory.get("count", 0) + 1
    return Remember(TextReply(str(number)), {"count": number})


@pytest.fixture
def memories(database, ledger):
    return Memories(database, ledger, APPID)


def record(memories, message, seen, memory):
    return memories.record(message, b"<xml/>", NOW, Change(seen, json.dumps(memory)), send_back=False)


# -- in the ledger ----------------------------------------------------------------------------------------------


def test_message_reply_and_memory_are_one_commit(ledger, memories):
    assert memories.read(FAN) == StoredMemory("{}", 0)
    recorded = record(memories, text(1), StoredMemory(), {"step": 1})
    assert ledger.find(text(1)).id == recorded.id
    first = memories.read(FAN)
    assert (json.loads(first.json), first.version) == ({"step": 1}, 1)
    assert memories.read("oTest-ZyXwVuTsRqPoNmLkJiHg_2").version == 0


def test_a_repeat_changes_nothing(memories):
    first = record(memories, text(1), StoredMemory(), {"step": 1})
    again = record(memories, text(1), memories.read(FAN), {"step": 2})
    assert (again, again.repeated) == (first, True)
    assert json.loads(memories.read(FAN).json) == {"step": 1}


@pytest.mark.parametrize("version", [0, 1])
def test_a_message_that_saw_an_older_memory_writes_nothing(ledger, memories, version):
    if version:
        record(memories, text(1), StoredMemory(), {"step": 0})
    seen = memories.read(FAN)
    record(memories, text(2), seen, {"step": 1})
    with pytest.raises(MemoryChangedError):
        record(memories, text(3), seen, {"step": 1})
    assert ledger.find(text(3)) is None
    assert json.loads(memories.read(FAN).json) == {"step": 1}


def test_deferred_work_remembers_with_its_result(database, ledger, memories):
    works = DeferredWork(database, ledger, APPID)
    _, work = works.record(text(1), NOW, 15)
    record(memories, text(2), StoredMemory(), {"step": 1})
    assert works.finish(work, b"<xml/>", NOW, memory='{"step":2}')
    assert json.loads(memories.read(FAN).json) == {"step": 2}
    assert not works.finish(work, b"<xml/>", NOW, memory='{"step":3}')
    assert json.loads(memories.read(FAN).json) == {"step": 2}


def test_two_pieces_of_work_write_a_fans_first_memory_at_the_same_time(database, ledger, memories):
    works = DeferredWork(database, ledger, APPID)
    start = threading.Barrier(2)

    def finish(work):
        start.wait()
        return works.finish(work, b"<xml/>", NOW, memory='{"step":1}')

    with ThreadPoolExecutor(2) as pool:
        for number in range(20):
            fan = f"oTest-Remembered{number:012d}"
            pair = [works.record(text(number * 2 + each, fan=fan), NOW, 15)[1] for each in (0, 1)]
            assert list(pool.map(finish, pair)) == [True, True]
            assert memories.read(fan) == StoredMemory('{"step":1}', 2)


def test_purges_take_the_memory_along(purge_rows, memories):
    other = "oTest-ZyXwVuTsRqPoNmLkJiHg_2"
    record(memories, text(1), StoredMemory(), {"step": 1})
    record(memories, text(2, fan=other), StoredMemory(), {"step": 1})
    while purge_rows.purge(NOW + 1, before=NOW - 1):
        pass
    assert memories.read(FAN).version == 1, "changed since"
    while purge_rows.purge(NOW + 1, fan=FAN):
        pass
    assert memories.read(FAN) == StoredMemory()
    while purge_rows.purge(NOW + 1, before=NOW + 1):
        pass
    assert memories.read(other) == StoredMemory()


# -- through the answers ----------------------------------------------------------------------------------------


@pytest.fixture
def bot(tmp_path, monkeypatch):
    monkeypatch.setattr(handlers, "HANDLERS", {TextMessage: count})
    given = ACCOUNT | {"DATABASE_URL": f"sqlite:///{tmp_path}/bot.db", "MEDIA_STORE": f"{tmp_path}/media"}
    return parts.build(Settings.from_env(given, tmp_path)).of[""]


def answer(bot, message):
    return bot.answers.answer(message, NOW, 0.0).reply


def test_messages_of_one_fan_at_the_same_instant_see_each_other(bot):
    start = threading.Barrier(8)
    replies = []

    def send(number):
        start.wait()
        replies.extend(answer(bot, text(each)) for each in (number, number + 100, number))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(bot.memories.read(FAN).json) == {"count": 16}
    assert len(replies) == 24
    assert len(set(replies)) == 16, "each message its own number, also when repeated"


def test_a_handler_that_fails_remembers_nothing(bot, monkeypatch):
    answer(bot, text(1))
    monkeypatch.setattr(handlers, "HANDLERS", {TextMessage: lambda message, memory: memory["no such thing"]})
    assert answer(bot, text(2)) is None
    assert json.loads(bot.memories.read(FAN).json) == {"count": 1}


def test_deferred_work_gets_the_memory_of_when_it_began(bot, monkeypatch):
    def later(message, memory):
        return Deferred(lambda: Remember(TextReply("done"), {"count": memory["count"] + 10}))

    answer(bot, text(1))
    monkeypatch.setattr(handlers, "HANDLERS", {TextMessage: later})
    assert b"done" in bot.answers.answer(text(2), NOW, time.monotonic()).reply
    assert json.loads(bot.memories.read(FAN).json) == {"count": 11}


@pytest.mark.parametrize("content", ["exit", "cancel", "panic"])
def test_a_handler_that_ends_the_program_is_one_that_failed(sandbox, make_bot, content):
    bot = make_bot(sandbox, aes_key=False)
    bot.app = "tests.counting_app:create_app()"
    web = bot.web()
    sent = {"type": "text", "content": content, "mode": "plain"}
    url = f"{sandbox.url}/sandbox/fans/{FAN}/messages"
    push = requests.post(url, json=sent, timeout=30).json()
    assert [one["verdict"] for one in push["attempts"]] == ["silent"]
    assert "a handler failed; the fan was answered success" in web.text()
    assert "ledger_id=" in web.text()
    push = requests.post(url, json=sent | {"content": "count"}, timeout=30).json()
    assert "<![CDATA[1]]>" in push["attempts"][0]["opened"]


# -- real processes ---------------------------------------------------------------------------------------------


def test_every_counter_is_right_although_processes_are_killed(sandbox, make_bot, full):
    messages, fans, kills = (1000, 5, 10) if full else (60, 5, 2)
    bot = make_bot(sandbox, WEB_CONCURRENCY="2")
    bot.app = "tests.counting_app:create_app()"
    web = bot.web()
    numbers, lock, replies = itertools.count(50_000), threading.Lock(), {}
    kill_at = {messages * (number + 1) // (kills + 1) for number in range(kills)}

    def deliver(fan, number):
        path, body = pushing.safe(pushing.text(number, "count", fan=fan))

        def sent():
            try:
                return requests.post(f"{bot.url}{path}", data=body, timeout=10)
            except requests.RequestException:
                return None  # killed in the middle of it: the platform repeats

        got = eventually(lambda: (answer := sent()) is not None and answer.status_code == 200 and answer, 60)
        assert b"<Encrypt>" in got.content

    def talk(fan):
        for _ in range(messages // fans):
            with lock:
                number = next(numbers)
                if number - 50_000 in kill_at:
                    kill_and_start()
            deliver(fan, number)
            deliver(fan, number)
            replies[number] = fan

    def kill_and_start():
        nonlocal web
        web.kill()
        web = bot.start("gunicorn", "-c", "gunicorn.conf.py", bot.app)

    who = [f"oTest-Counting{number:014d}" for number in range(fans)]
    threads = [threading.Thread(target=talk, args=(fan,)) for fan in who]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(replies) == messages
    remembered = parts.build(bot.settings).of[""].memories
    assert {json.loads(remembered.read(fan).json)["count"] for fan in who} == {messages // fans}
