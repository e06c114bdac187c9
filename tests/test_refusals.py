"""Refused requests, counted for the doctor: over processes, by minute, without a write for each."""

from storage.database import Database
from storage.refusals import Refusals, Refused

NOW = 1_700_000_000.0


def test_processes_count_together_and_old_counts_go(database_url):
    ours = Refusals(Database(database_url), "wx1")
    theirs = Refusals(Database(database_url), "wx1")
    others = Refusals(Database(database_url), "wx2")
    ours.count("signature", NOW - 3700)
    ours.count("signature", NOW - 500)
    theirs.count("signature", NOW - 20)
    theirs.count("timestamp", NOW - 10)
    others.count("appid", NOW)
    assert ours.lately(NOW, 600) == [Refused("signature", 2, NOW - 20), Refused("timestamp", 1, NOW - 10)]
    assert ours.lately(NOW, 5000) == ours.lately(NOW, 600), "what is over an hour old is deleted"
    assert ours.last_message_at() is None


def test_a_thousand_within_a_second_are_written_with_the_next(database_url):
    database = Database(database_url)
    refusals = Refusals(database, "wx1")
    refusals.count("signature", NOW)
    for _ in range(999):
        refusals.count("signature", NOW + 0.5)
    assert refusals.lately(NOW, 600) == [Refused("signature", 1, NOW)]
    refusals.count("signature", NOW + 1)
    assert refusals.lately(NOW, 600) == [Refused("signature", 1001, NOW + 1)]


def test_a_database_that_is_away_is_no_fault_of_the_request(tmp_path):
    (tmp_path / "bot.db").write_text("this is no database, " * 100)
    Refusals(Database(f"sqlite:///{tmp_path}/bot.db"), "wx1").count("signature", NOW)
