"""Behind a proxy or a tunnel: PROXY_HOPS says how many X-Forwarded-* are believed, and 0 that none is."""

import contextlib
import socket

import psutil
import pytest
import requests
from flask import jsonify, request

from app import create_app
from tests.conftest import eventually

FORWARDED = {
    "X-Forwarded-For": "198.51.100.9, 203.0.113.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "bot.example",
    "X-Forwarded-Port": "443",
    "X-Forwarded-Ssl": "on",
    "X-Forwarded-Protocol": "ssl",
}


def seen_app():
    """The application, which also tells what it sees of a request."""
    app = create_app()

    @app.get("/seen")
    def seen():
        return jsonify(scheme=request.scheme, address=request.remote_addr, url=request.base_url)

    return app


@pytest.fixture
def seen(sandbox, make_bot):
    """seen(hops, headers) -> what the application sees behind real gunicorn."""

    def look(hops, headers):
        bot = make_bot(sandbox, PROXY_HOPS=str(hops))
        bot.app = "tests.test_proxy:seen_app()"
        bot.web()
        answer = requests.get(f"{bot.url}/seen", headers=headers, timeout=5)
        assert answer.status_code == 200
        return bot, answer.json()

    return look


def test_without_proxies_nothing_is_believed(seen):
    bot, shown = seen(0, FORWARDED)
    assert shown == {"scheme": "http", "address": "127.0.0.1", "url": f"{bot.url}/seen"}


def test_one_proxy_is_believed_and_nobody_before_it(seen):
    _, shown = seen(1, FORWARDED)
    assert shown == {"scheme": "https", "address": "203.0.113.7", "url": "https://bot.example/seen"}


def test_two_proxies(seen):
    two = {
        "X-Forwarded-For": "192.0.2.1, 198.51.100.9, 203.0.113.7",
        "X-Forwarded-Proto": "https,http",
        "X-Forwarded-Host": "bot.example, inner.example",
        "X-Forwarded-Port": "443,8000",
    }
    _, shown = seen(2, two)
    assert shown == {"scheme": "https", "address": "198.51.100.9", "url": "https://bot.example/seen"}


def test_a_proxy_that_says_nothing_changes_nothing(seen):
    bot, shown = seen(1, {})
    assert shown == {"scheme": "http", "address": "127.0.0.1", "url": f"{bot.url}/seen"}


def test_kept_connections_are_spread_evenly_over_the_processes(sandbox, make_bot):
    bot = make_bot(sandbox, WEB_CONCURRENCY="2")
    master = psutil.Process(bot.web().pid)
    eventually(lambda: min(spread(bot, master)), what="a connection for each of two processes")
    for _ in range(3):
        counts = spread(bot, master)
        assert sum(counts) == 40
        assert min(counts) >= 15


def spread(bot, master):
    """How many of 40 connections that are opened at once each process takes. None is left over from before."""
    address = ("127.0.0.1", bot.settings.port)

    def taken():
        return [
            len([one for one in process.net_connections("tcp") if one.raddr and one.laddr.port == address[1]])
            for process in master.children()
        ]

    eventually(lambda: not any(taken()), what="the end of the connections before")
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(40)]
        for connection in kept:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: bot\r\n\r\n")
        for connection in kept:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        return taken()
