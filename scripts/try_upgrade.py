"""`make try-deploy`, third part: an older version runs with its data, then this one on the same database and store.

Knows git, virtual environments and processes; both versions are run from copies in a temporary folder, on 127.0.0.1,
on SQLite and on PostgreSQL (the server of the tests). The older version is the newest tag that is not this commit; the
only argument names another. What it shows: messages that the older one answered repeat alike, its pictures are there
and known, what it left undone is done, and new messages are answered.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench import servers
from scripts import trying
from tests.postgresql import PostgreSQL

LIMIT_SECONDS = 300
BEFORE_THE_FIRST_TAG = "8114087"
PHOTOS = 3


def older() -> str:
    """The newest tag that is not this commit's, or the commit before this project's first one."""
    tags = trying.git("tag", "--no-contains", "HEAD", "--merged", "HEAD", "--sort=-creatordate").split()
    return tags[0] if tags else BEFORE_THE_FIRST_TAG


def upgraded(work: Path, old: Path, new: Path, name: str, database_url: str) -> str:
    port, platform_port = servers.free_port(), servers.free_port()
    bot, platform = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{platform_port}"
    log = work / f"{name}.log"
    settings = {
        "WECHAT_API_BASE": platform,
        "DATABASE_URL": database_url,
        "MEDIA_STORE": str(work / f"{name}-media"),
        "PORT": str(port),
        "WEB_CONCURRENCY": "2",
    }
    gunicorn = ["gunicorn", "-c", "gunicorn.conf.py", "app:create_app()"]
    photo = f"file=@{trying.PHOTO}"
    say = f"{platform}/sandbox/fans/{trying.FAN}/messages"
    as_json = ("-H", "Content-Type: application/json", "-d")
    python = [sys.executable, "-m", "sandbox", "--port", str(platform_port), "--callback", f"{bot}/wechat"]
    with trying.running(new, work / f"{name}-platform.log", f"{platform}/sandbox/calls", *python):
        with trying.running(old, log, f"{bot}/healthz", *gunicorn, **settings):
            pushes = [trying.pushed(say, "-F", "type=image", "-F", photo) for _ in range(PHOTOS)]
            pushes.append(trying.pushed(say, *as_json, '{"type": "text", "content": "before the upgrade"}'))
            before = [trying.replies(push) for push in pushes]
            trying.until_stored(bot, PHOTOS, log.read_text)
        # As after a stop with work left: nobody has fetched this one.
        with trying.running(old, log, f"{bot}/healthz", *gunicorn, **settings, WORKER="external"):
            pushes.append(trying.pushed(say, "-F", "type=image", "-F", photo))
            before.append(trying.replies(pushes[-1]))
        began = time.monotonic()
        with trying.running(new, log, f"{bot}/healthz", *gunicorn, **settings):
            took = time.monotonic() - began
            resend = f"{platform}/sandbox/pushes/{{}}/resend"
            again = [
                trying.replies(trying.pushed(resend.format(push["msg_id"]), *as_json, "{}"))
                for push in pushes
            ]
            if again != before:
                raise trying.Failed(f"{before} before, {again} after")
            trying.until_stored(bot, PHOTOS + 1, log.read_text)
            trying.replies(trying.pushed(say, "-F", "type=image", "-F", photo))
            trying.until_stored(bot, PHOTOS + 2, log.read_text)
            metrics = trying.fetched(f"{bot}/metrics")
            if f"wechat_duplicates_total {len(pushes)}.0" not in metrics:
                raise trying.Failed(metrics)
    sent = trying.PHOTO.read_bytes()
    kept = [file.read_bytes() == sent for file in (work / f"{name}-media").rglob("*.jpg")]
    if kept != [True] * (PHOTOS + 2):
        raise trying.Failed(f"{len(kept)} pictures, {sum(kept)} whole")
    return f"{len(pushes)} messages repeat alike, {len(kept)} pictures; migrated and answering after {took:.1f} s"


def main() -> int:
    trying.limit(LIMIT_SECONDS)
    commit = sys.argv[1] if len(sys.argv) > 1 else older()
    table = trying.Table()
    postgresql = PostgreSQL()
    try:
        with tempfile.TemporaryDirectory(prefix="try-upgrade-", dir="/var/tmp") as folder:
            work = Path(folder)
            old, new = trying.copied(commit, work / "old"), trying.copied("HEAD", work / "new")
            databases = {"SQLite": f"sqlite:///{work}/bot.db", "PostgreSQL": postgresql.new()}
            for name in databases:
                table.step(name, lambda name: upgraded(work, old, new, name, databases[name]), name)
    finally:
        postgresql.close()
    return table.end(f"from {commit} to this version")


if __name__ == "__main__":
    sys.exit(main())
