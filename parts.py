"""Puts the parts together, once for the web, the worker and the commands.

Knows which part needs which other, and which settings. Building does no I/O: the database, the media store and the
platform are first used later, so that a process can start, and report the fault, while one of them is down.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cores
from answers.answer import Answers
from answers.copies import StoredCopies
from answers.late import ORPHANS_SECONDS, DeferredReplies
from answers.replies import ReplyLog
from answers.steps import rarer
from config import Settings, token_reason
from storage.database import Database
from storage.deferred import DeferredWork
from storage.files import FileStore, open_store
from storage.gallery import GalleryRows
from storage.ids import IdReserve
from storage.ledger import Ledger
from storage.memories import Memories
from storage.purge import Purge, PurgeRows
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
from worker.loop import AccountWork, Worker
from worker.sends import Sends
from worker.thumbnails import Decoder, ThumbnailMaker


@dataclass(frozen=True)
class Parts:
    """The parts of one process for one account.

    The database, the files and the thumbnails are shared by all accounts.
    """

    settings: Settings
    database: Database
    ledger: Ledger
    queue: Queue
    purge_rows: PurgeRows
    files: FileStore
    thumbnails: Thumbnails
    tokens: SqlTokenStore
    token: AccessToken
    client: ApiClient
    receiver: Receiver | None
    refusals: Refusals
    deferred: DeferredReplies
    answers: Answers
    memories: Memories


@dataclass(frozen=True)
class Accounts:
    """All parts of one process. `of` has the parts of each account by its name in ACCOUNTS (empty if that is not
    set)."""

    of: Mapping[str, Parts]
    database: Database
    files: FileStore
    thumbnails: Thumbnails
    rows: GalleryRows
    worker: Worker

    def start(self, threads: int) -> None:
        """Starts the background work: `threads` jobs of each account at once, and deferred work whose process is gone.
        With 0 threads, only access_tokens are kept fresh and leases renewed."""
        self.worker.start(threads)
        for parts in self.of.values():
            parts.deferred.start(orphans=threads > 0)

    def ask_to_stop(self) -> None:
        """Stops claiming work. Returns at once."""
        self.worker.ask_to_stop()
        for parts in self.of.values():
            parts.deferred.ask_to_stop()

    def stop(self) -> None:
        """Ends the background work: running work is finished or given back, and the ledger is closed."""
        self.ask_to_stop()
        for parts in self.of.values():
            parts.deferred.stop()
        self.worker.stop()
        # The last close of a SQLite file merges its log. The garbage collector would not do it.
        self.database.close()


def build(
    *accounts: Settings,
    clock: Callable[[], float] = time.time,
    jitter: Callable[[], float] = random.random,
) -> Accounts:
    """All parts of one process with these accounts. `clock` (unix seconds) and `jitter` ([0, 1)) are the worker's."""
    common = accounts[0]
    if not common.pin_cores:
        cores.never_pin()
    database = Database(common.database_url.get_secret_value(), sync=common.ledger_sync)
    files, thumbnails = open_store(common.media_store), Thumbnails(common.media_store)
    decoder, ids = Decoder(), IdReserve(database)
    of, works = {}, []
    for settings in accounts:
        parts, work = _of_account(
            settings, database, ids, files, thumbnails, decoder, clock, jitter, accounts=len(accounts)
        )
        of[settings.account] = parts
        works.append(work)
    worker = Worker(works, lease_seconds=common.lease_seconds, clock=clock, jitter=jitter)
    rows = GalleryRows(database, *(settings.wechat_appid for settings in accounts))
    return Accounts(of, database, files, thumbnails, rows, worker)


def _of_account(
    settings: Settings,
    database: Database,
    ids: IdReserve,
    files: FileStore,
    thumbnails: Thumbnails,
    decoder: Decoder,
    clock: Callable[[], float],
    jitter: Callable[[], float],
    *,
    accounts: int,
) -> tuple[Parts, AccountWork]:
    appid = settings.wechat_appid
    ledger = Ledger(database, appid, ids)
    queue = Queue(database, appid)
    purge_rows = PurgeRows(database, appid)
    plain = ApiClient(settings.wechat_api_base)
    tokens = SqlTokenStore(database, appid)
    token = AccessToken(
        tokens, token_source(settings, plain), on_fetch=tokens.count_fetch, explained=token_reason
    )
    client = plain.with_token(token)
    copies = StoredCopies(client, files)
    memories = Memories(database, ledger, appid)
    works = DeferredWork(database, ledger, appid)
    failures = Failures(queue, files, lease_seconds=settings.lease_seconds, clock=clock, jitter=jitter)
    reply_log = ReplyLog(ledger)
    chores = Chores(
        settings.account,
        Purge(purge_rows, files, thumbnails),
        token,
        ThumbnailMaker(queue, files, thumbnails, decoder),
        retention_days=settings.retention_days,
        purge_on_unsubscribe=settings.purge_on_unsubscribe,
        clock=clock,
    )
    downloads = Downloads(
        queue, ledger, client, files, failures, max_media_bytes=settings.max_media_bytes, clock=clock
    )
    sends = Sends(queue, client, works, copies, failures, clock=clock)
    deferred = DeferredReplies(
        works,
        copies,
        client,
        reply_log,
        echo_via=settings.echo_via,
        reply_seconds=settings.reply_seconds,
        late_reply=settings.late_reply,
        lease_seconds=settings.lease_seconds,
        account=settings.account,
        orphans_seconds=rarer(ORPHANS_SECONDS, accounts),
    )
    parts = Parts(
        settings,
        database,
        ledger,
        queue,
        purge_rows,
        files,
        thumbnails,
        tokens,
        token,
        client,
        _receiver(settings),
        Refusals(database, appid),
        deferred,
        Answers(ledger, memories, deferred, reply_log, echo_via=settings.echo_via),
        memories,
    )
    return parts, AccountWork(queue, downloads, sends, failures, chores)


def token_source(settings: Settings, client: ApiClient) -> TokenSource:
    """The source that WECHAT_TOKEN_SOURCE names."""
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
    return CentralTokenSource(source, settings.wechat_appid, key.get_secret_value())


def _receiver(settings: Settings) -> Receiver | None:
    """None for an account without WECHAT_TOKEN: it has no callback."""
    if settings.wechat_token is None:
        return None
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
