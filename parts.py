"""Puts the parts together: who needs whom, said once for the web, the worker and the commands.

Knows which setting goes to which part. Building costs no I/O: the database, the media store and the platform are met
when they are first used, so that a process can start, and say what is wrong, while one of them is away.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import cores
from answers.answer import Answers
from answers.copies import StoredCopies
from answers.late import DeferredReplies
from config import Settings, token_reason
from storage.database import Database
from storage.deferred import DeferredWork
from storage.files import FileStore, open_store
from storage.gallery import GalleryRows
from storage.ledger import Ledger
from storage.memories import Memories
from storage.purge import PurgeRows
from storage.queue import Queue
from storage.refusals import Refusals
from storage.thumbnails import Thumbnails
from storage.tokens import SqlTokenStore
from wechat.access_token import AccessToken
from wechat.client import ApiClient
from wechat.receiver import Receiver
from wechat.token_sources import CentralTokenSource, ClassicTokenSource, StableTokenSource, TokenSource
from worker.chores import Chores
from worker.downloads import Downloads
from worker.jobs import Failures
from worker.loop import Worker
from worker.sends import Sends
from worker.thumbnails import Decoder, ThumbnailMaker


@dataclass(frozen=True)
class Parts:
    """Everything one process works with."""

    settings: Settings
    database: Database
    ledger: Ledger
    queue: Queue
    purge_rows: PurgeRows
    files: FileStore
    rows: GalleryRows
    thumbnails: Thumbnails
    tokens: SqlTokenStore
    token: AccessToken
    client: ApiClient
    receiver: Receiver
    refusals: Refusals
    worker: Worker
    deferred: DeferredReplies
    answers: Answers
    memories: Memories

    def ask_to_stop(self) -> None:
        """From now on nothing more is claimed; returns at once."""
        self.worker.ask_to_stop()
        self.deferred.ask_to_stop()

    def stop(self) -> None:
        """Ends what runs beside the requests: work in hand is finished or given back, and the ledger closed."""
        self.ask_to_stop()
        self.deferred.stop()
        self.worker.stop()
        # The last one to close a SQLite file takes its log in. The collector would not.
        self.database.close()


def build(
    settings: Settings,
    *,
    clock: Callable[[], float] = time.time,
    jitter: Callable[[], float] = random.random,
) -> Parts:
    """All parts of one process. `clock` (unix seconds) and `jitter` ([0, 1)) are the worker's."""
    if not settings.pin_cores:
        cores.never_pin()
    database = Database(settings.database_url.get_secret_value(), sync=settings.ledger_sync)
    ledger = Ledger(database, settings.wechat_appid)
    queue = Queue(database, settings.wechat_appid)
    purge_rows = PurgeRows(database, settings.wechat_appid)
    files = open_store(settings.media_store)
    rows = GalleryRows(database, settings.wechat_appid)
    thumbnails = Thumbnails(settings.media_store)
    plain = ApiClient(settings.wechat_api_base)
    tokens = SqlTokenStore(database, settings.wechat_appid)
    token = AccessToken(
        tokens, token_source(settings, plain), on_fetch=tokens.count_fetch, explained=token_reason
    )
    client = plain.with_token(token)
    copies = StoredCopies(client, files)
    memories = Memories(database, ledger, settings.wechat_appid)
    works = DeferredWork(database, ledger, settings.wechat_appid)
    failures = Failures(queue, clock, jitter)
    chores = Chores(
        purge_rows,
        files,
        token,
        thumbnails,
        ThumbnailMaker(queue, files, thumbnails, Decoder()),
        retention_days=settings.retention_days,
        purge_on_unsubscribe=settings.purge_on_unsubscribe,
        clock=clock,
        jitter=jitter,
    )
    worker = Worker(
        queue,
        Downloads(
            queue, ledger, client, files, failures, max_media_bytes=settings.max_media_bytes, clock=clock
        ),
        Sends(queue, client, works, copies, failures, clock=clock),
        failures,
        chores,
        lease_seconds=settings.lease_seconds,
        clock=clock,
    )
    deferred = DeferredReplies(
        works,
        copies,
        client,
        echo_via=settings.echo_via,
        reply_seconds=settings.reply_seconds,
        late_reply=settings.late_reply,
        lease_seconds=settings.lease_seconds,
    )
    return Parts(
        settings,
        database,
        ledger,
        queue,
        purge_rows,
        files,
        rows,
        thumbnails,
        tokens,
        token,
        client,
        _receiver(settings),
        Refusals(database, settings.wechat_appid),
        worker,
        deferred,
        Answers(ledger, memories, deferred, echo_via=settings.echo_via),
        memories,
    )


def token_source(settings: Settings, client: ApiClient) -> TokenSource:
    """Where WECHAT_TOKEN_SOURCE says that tokens come from."""
    source, key, secret = (
        settings.wechat_token_source,
        settings.wechat_token_source_key,
        settings.wechat_appsecret,
    )
    if source == "stable" and secret is not None:
        return StableTokenSource(client, settings.wechat_appid, secret.get_secret_value())
    if source == "classic" and secret is not None:
        return ClassicTokenSource(client, settings.wechat_appid, secret.get_secret_value())
    assert key is not None, "Settings.from_env() sees to it"
    return CentralTokenSource(source, key.get_secret_value())


def _receiver(settings: Settings) -> Receiver:
    aes_key, token_previous, aes_key_previous = (
        secret.get_secret_value() if secret is not None else None
        for secret in (
            settings.wechat_aes_key,
            settings.wechat_token_previous,
            settings.wechat_aes_key_previous,
        )
    )
    return Receiver(
        appid=settings.wechat_appid,
        token=settings.wechat_token.get_secret_value(),
        aes_key=aes_key,
        previous_token=token_previous,
        previous_aes_key=aes_key_previous,
        accept_plaintext=settings.wechat_accept_plaintext,
        timestamp_window=settings.wechat_timestamp_window,
    )
