"""Work of many threads, done for all of them by one: what is done together, who gets what, and what a failure does."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.batches import MOST, Batches
from tests.conftest import eventually

WAIT = 10.0


class Desk:
    """Doubles numbers, and notes which came together. It stays shut until `opened` is set."""

    def __init__(self):
        self.tries_again = False
        self.opened, self.gave_up, self.never = threading.Event(), threading.Event(), threading.Event()
        self.one = threading.Lock()
        self.batches = []
        self.waits = []
        self.batched = Batches(self.do, ConnectionError)

    def do(self, items, wait):
        self.batches.append(list(items()))
        self.waits.append(wait)
        assert self.opened.wait(WAIT)
        if "impatient" in self.batches[-1]:
            assert self.gave_up.wait(WAIT)
        if self.tries_again:
            self.batches[-1] = list(items())
        if "away" in self.batches[-1]:
            assert self.one.acquire(blocking=False), "two try at the same time"
            self.never.wait(wait)
            self.one.release()
            raise ConnectionError("away")
        if "bad" in self.batches[-1]:
            raise ValueError("bad")
        return [item * 2 for item in self.batches[-1]]


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(200) as pool:
        yield pool


def hold(desk, pool, first="first"):
    """One that leads, and has not ended."""
    leader = pool.submit(desk.batched, first, WAIT)
    eventually(lambda: desk.batches)
    return leader


def queue(desk, pool, items, wait=WAIT):
    """Those, in this order, behind one that leads."""
    futures = []
    for item in items:
        count = desk.batched.waiting
        futures.append(pool.submit(desk.batched, item, wait))
        eventually(lambda count=count: desk.batched.waiting > count)
    return futures


def test_one_alone_is_done_at_once(desk):
    desk.opened.set()
    assert [desk.batched(number, WAIT) for number in (1, 2, 3)] == [2, 4, 6]
    assert desk.batches == [[1], [2], [3]]
    assert all(WAIT - 1 < wait <= WAIT for wait in desk.waits)


def test_who_comes_meanwhile_is_done_together(desk, pool):
    leader = hold(desk, pool)
    others = queue(desk, pool, range(10))
    desk.opened.set()
    assert leader.result(WAIT) == "firstfirst"
    assert [other.result(WAIT) for other in others] == [number * 2 for number in range(10)]
    assert desk.batches == [["first"], list(range(10))]


def test_who_comes_before_a_new_try_is_done_with_it(desk, pool):
    desk.tries_again = True
    leader = hold(desk, pool)
    others = queue(desk, pool, range(10))
    desk.opened.set()
    assert leader.result(WAIT) == "firstfirst"
    assert [other.result(WAIT) for other in others] == [number * 2 for number in range(10)]
    assert desk.batches == [["first", *range(10)]]


def test_no_more_than_most_at_once(desk, pool):
    leader = hold(desk, pool)
    others = queue(desk, pool, range(MOST + 6))
    desk.opened.set()
    assert [each.result(WAIT) for each in [leader, *others]] == [
        "firstfirst",
        *(number * 2 for number in range(MOST + 6)),
    ]
    assert [len(batch) for batch in desk.batches] == [1, MOST, 6]


def test_a_failure_is_its_own_ones_alone(desk, pool):
    hold(desk, pool)
    good, bad, other = queue(desk, pool, ["good", "bad", "other"])
    desk.opened.set()
    assert good.result(WAIT) == "goodgood"
    assert other.result(WAIT) == "otherother"
    with pytest.raises(ValueError, match="bad"):
        bad.result(WAIT)
    assert desk.batched("later", WAIT) == "laterlater"


def test_when_nothing_can_be_done_they_try_one_after_the_other(desk, pool):
    leader = hold(desk, pool)
    (leads_next,) = queue(desk, pool, ["away"], wait=0.5)
    others = queue(desk, pool, ["away", "away"], wait=1.0)
    desk.opened.set()
    assert leader.result(WAIT) == "firstfirst"
    with pytest.raises(ConnectionError, match="away"):
        leads_next.result(WAIT)
    for future in others:
        with pytest.raises((ConnectionError, TimeoutError)):
            future.result(WAIT)
    assert desk.batches[1] == ["away"] * 3


def test_a_failure_of_one_alone_leaves_the_turn_to_the_next(desk):
    desk.opened.set()
    with pytest.raises(ValueError, match="bad"):
        desk.batched("bad", WAIT)
    assert desk.batched(1, WAIT) == 2


def test_who_has_waited_long_enough_gives_up_and_is_not_done(desk, pool):
    leader = hold(desk, pool)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        desk.batched("impatient", 0.1)
    assert 0.05 < time.monotonic() - started < 5
    (patient,) = queue(desk, pool, ["patient"])
    desk.opened.set()
    assert leader.result(WAIT)
    assert patient.result(WAIT) == "patientpatient"
    assert desk.batches == [["first"], ["patient"]]


def test_who_gives_up_is_not_in_the_next_try(desk, pool):
    leader = hold(desk, pool)
    (leads_next,) = queue(desk, pool, ["leads next"])
    (impatient,) = queue(desk, pool, ["impatient"], wait=1.0)
    desk.opened.set()
    assert leader.result(WAIT) == "firstfirst"
    with pytest.raises(TimeoutError):
        impatient.result(WAIT)
    desk.tries_again = True
    desk.gave_up.set()
    assert leads_next.result(WAIT) == "leads nextleads next"
    assert desk.batches == [["first"], ["leads next"]]


def test_hundreds_of_threads_each_get_their_own(desk, pool):
    desk.opened.set()
    futures = [pool.submit(desk.batched, number, WAIT) for number in range(5000)]
    assert [future.result(WAIT) for future in futures] == [number * 2 for number in range(5000)]
    assert sorted(item for batch in desk.batches for item in batch) == list(range(5000))
