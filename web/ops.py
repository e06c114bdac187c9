"""GET /, /healthz, /readyz and /metrics, for a browser, a load balancer, an operator and Prometheus.

Knows the figures: the web processes' counters, and what the database holds at the time of the request. Must not know
how they are counted. Shows no secret and no OpenID.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from flask import Blueprint, Response, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from werkzeug.exceptions import InternalServerError

from storage.database import Database
from storage.errors import DatabaseUnavailableError
from storage.files import FileStore
from storage.ledger import Ledger
from storage.queue import Queue
from storage.tokens import SqlTokenStore
from web import metrics
from web.keys import is_same, sent_key
from wechat.access_token import AccessToken
from wechat.addresses import is_public


@dataclass(frozen=True)
class Watched:
    """One account, as its figures are read. `callback` is its path, None without a callback."""

    callback: str | None
    ledger: Ledger
    queue: Queue
    tokens: SqlTokenStore
    token: AccessToken


def ops(
    accounts: Mapping[str, Watched], database: Database, files: FileStore, *, key: str | None
) -> Blueprint:
    """The four views. /readyz and /metrics ask for `key` (METRICS_KEY); without a key they answer near callers only."""
    blueprint = Blueprint("ops", __name__)

    @blueprint.before_request
    def only_ours() -> Response | None:
        if request.endpoint in ("ops.what_this_is", "ops.healthz"):
            return None
        if key is None:
            return None if _is_near() else Response(status=404)
        sent = sent_key()
        if sent is not None and is_same(sent, key):
            return None
        return Response("send METRICS_KEY as Authorization: Bearer KEY\n", 401, mimetype="text/plain")

    @blueprint.get("/")
    def what_this_is() -> Response:
        places = ", ".join(one.callback for one in accounts.values() if one.callback) or "nothing"
        return Response(
            f"图尚往来: a WeChat Official Account server is running here. What WeChat calls is {places}.\n"
            f"微信公众号服务器正在运行，微信平台访问的地址是 {places}。\n",
            content_type="text/plain; charset=utf-8",
        )

    @blueprint.get("/healthz")
    def healthz() -> Response:
        return Response("ok\n", mimetype="text/plain")

    @blueprint.get("/readyz")
    def readyz() -> tuple[Response, int]:
        checks: dict[str, object] = {"database": _database(database), "media": _media(files)}
        # The token is in the same database: do not wait for it twice.
        away = checks["database"] != "ok"
        checks["token"] = of_each(
            lambda one: "not known: it is in the database" if away else _token(one.token)
        )
        ready = checks["database"] == checks["media"] == "ok"
        seconds = of_each(lambda one: None if away else _last_claim_seconds(one.queue))
        return jsonify(ready=ready, checks=checks, last_claim_seconds=seconds), 200 if ready else 503

    def of_each(look: Callable[[Watched], object]) -> object:
        """What `look` gives, by account name; without names, the only account's alone."""
        found = {name: look(one) for name, one in accounts.items()}
        return found.get("", found)

    @blueprint.get("/metrics")
    def scrape() -> Response:
        registry = CollectorRegistry()
        registry.register(_DatabaseFigures(accounts))
        registry.register(metrics.Counted())
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    return blueprint


def fault(error: InternalServerError) -> Response:
    """Status 500, counted. The application has logged the traceback."""
    metrics.FAULTS.inc()
    return Response(status=500)


def _is_near() -> bool:
    """Whether the request comes from this machine or a private network, without a proxy."""
    try:
        near = not is_public(request.remote_addr or "")
    except ValueError:  # a Unix socket has no address
        near = False
    return near and "X-Forwarded-For" not in request.headers


def _database(database: Database) -> str:
    try:
        database.check()
    except DatabaseUnavailableError as error:
        return str(error)
    return "ok"


def _media(files: FileStore) -> str:
    try:
        files.check()
    except OSError as error:
        return f"MEDIA_STORE: {error}"
    return "ok"


def _token(token: AccessToken) -> str:
    try:
        row = token.row()
    except DatabaseUnavailableError as error:
        return str(error)
    if row.reason is not None:
        return str(row.unavailable())
    return "ok" if row.value is not None else "not fetched yet: nothing has needed it"


def _last_claim_seconds(queue: Queue) -> float | None:
    """Seconds since a worker last asked the database for work with success; None if never, or not known."""
    try:
        at = queue.last_claim_at()
    except DatabaseUnavailableError:
        return None
    return None if at is None else round(max(time.time() - at, 0.0), 1)


class _DatabaseFigures(Collector):
    def __init__(self, accounts: Mapping[str, Watched]) -> None:
        self._accounts = accounts

    def collect(self) -> Iterable[Metric]:
        """One metric for all accounts: Prometheus takes each name once."""
        families: dict[str, Metric] = {}
        for name, watched in self._accounts.items():
            try:
                found = list(_figures(watched))
            except DatabaseUnavailableError:
                return
            for metric in found:
                for sample in metric.samples:
                    sample.labels.update({"account": name} if name else {})
                if metric.name in families:
                    families[metric.name].samples += metric.samples
                else:
                    families[metric.name] = metric
        yield from families.values()


def _figures(watched: Watched) -> Iterator[Metric]:
    now = time.time()
    status, row, fetched = watched.ledger.status(now), watched.tokens.load(), watched.tokens.fetches()
    media = GaugeMetricFamily("wechat_media", "Pictures, voices and videos by state", labels=["state"])
    for state in ("pending", "stored", "failed"):
        media.add_metric([state], getattr(status, state))
    yield media
    yield GaugeMetricFamily(
        "wechat_queue_depth", "Downloads and sends not done yet", status.pending + status.replies_pending
    )
    yield GaugeMetricFamily(
        "wechat_queue_oldest_seconds", "Age of the oldest of them", status.oldest_pending_seconds
    )
    if (seconds := _last_claim_seconds(watched.queue)) is not None:
        yield GaugeMetricFamily(
            "wechat_last_claim_seconds",
            "Seconds since a worker last asked the database for work with success",
            seconds,
        )
    if row.value is not None:
        yield GaugeMetricFamily(
            "wechat_token_age_seconds", "Seconds since the access_token was fetched", now - row.fetched_at
        )
    fetches = CounterMetricFamily(
        "wechat_token_fetches", "Fetches of the access_token by any process", labels=["result"]
    )
    for result, count in fetched.items():
        fetches.add_metric([result], count)
    yield fetches
