"""Behind a proxy or a tunnel: PROXY_HOPS says how many X-Forwarded-* are believed, and 0 that none is."""

import pytest
import requests
from flask import jsonify, request

from app import create_app

FORWARDED = {
    "X-Forwarded-For": "198.51.100.9, 203.0.113.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "bot.example",
    "X-Forwarded-Port": "443",
    "X-Forwarded-Prefix": "/elsewhere",
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
