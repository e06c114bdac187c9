"""wechat.access_token against a real HTTP server that keeps the platform's token rules, on a clock of the test."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest

from config import token_reason
from tests.stub_platform import Leaks, StubPlatform, hang, raw, reply
from wechat import access_token, token_sources
from wechat.access_token import (
    EMPTY,
    FETCH_LEASE_SECONDS,
    AccessToken,
    MemoryTokenStore,
    TokenRow,
)
from wechat.client import ApiClient, Timeouts
from wechat.errors import ApiError, InvalidTokenError, TokenUnavailableError, TransportError
from wechat.token_sources import FETCH_TIMEOUT, CentralTokenSource, ClassicTokenSource, StableTokenSource

APPID = "wx0a1b2c3d4e5f6789"
SECRET = "0123456789abcdef0123456789abcdef"
KEY = "the-key-of-the-central-token-server"
STABLE, CLASSIC, CHECK = "/cgi-bin/stable_token", "/cgi-bin/token", "/cgi-bin/getcallbackip"
START = 1_760_000_000.0  # 16:53:20 in Beijing


class Clock:
    """Wall clock and pauses of a test; `while_waiting` runs in each pause."""

    def __init__(self):
        self.now = START
        self.pauses = []
        self.while_waiting = lambda: None

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds
        self.while_waiting()


class Platform(StubPlatform):
    """One token slot for both token calls, by the platform's rules, unless `on` says otherwise."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.number = 0
        self.value = ""
        self.until = 0.0
        self.dead = set()
        self.stuck = False
        self.on(STABLE, self.stable)
        self.on(CLASSIC, self.classic)
        self.on(CHECK, self._check)

    def kill(self, *, stuck=False):
        """The token in use is refused from now on; stuck: and given out again by the normal mode."""
        self.dead.add(self.value)
        if not stuck:
            self.until = 0.0

    @property
    def fetches(self):
        return len(self.calls(STABLE)) + len(self.calls(CLASSIC))

    def _new(self):
        self.number += 1
        self.value = f"57_token-number-{self.number}-" + "x" * 120
        self.until = self.clock() + 7200

    def stable(self, sock, request):
        if request.json["force_refresh"]:
            self.dead.add(self.value)
            if not self.stuck:
                self._new()
        elif self.until - self.clock() < 300:
            self._new()
        return self._granted(sock, request)

    def classic(self, sock, request):
        self._new()
        return self._granted(sock, request)

    def _granted(self, sock, request):
        answer = {"access_token": self.value, "expires_in": int(self.until - self.clock())}
        return reply(answer)(sock, request)

    def _check(self, sock, request):
        if request.query["access_token"] in self.dead:
            return reply({"errcode": 40001, "errmsg": "invalid credential"})(sock, request)
        return reply({"ip_list": ["127.0.0.1"]})(sock, request)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def platform(clock):
    with Platform(clock) as one:
        yield one


@pytest.fixture
def store():
    return MemoryTokenStore()


@pytest.fixture
def make(platform, clock, store):
    """Makes what one process has: an AccessToken of its own over the shared store."""

    def one(kind=StableTokenSource, *, store=store, random=lambda: 0.0, sleep=clock.sleep, **kwargs):
        client = ApiClient([platform.url], sleep=clock.sleep)
        source = kind(client, APPID, SECRET)
        return AccessToken(
            store, source, clock=clock, random=random, sleep=sleep, explained=token_reason, **kwargs
        )

    return one


@pytest.fixture
def make_in_real_time(make):
    """The same with real pauses, for processes that fetch at once: on the tests' clock the 20 s that one waits for
    another's fetch are over before it has ended."""
    return partial(make, sleep=time.sleep)


def refresh(token):
    """What an operator asks for."""
    return token.replace(token.row().value, at_once=True)


def at_once(*calls):
    """Their results, all started together."""
    gate = threading.Barrier(len(calls))

    def work(call):
        gate.wait()
        try:
            return call()
        except TokenUnavailableError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(work, calls))


# -- get ----------------------------------------------------------------------------------------------------


def test_the_first_call_fetches_and_the_next_ones_do_not(platform, make, clock):
    token = make()
    assert token.get() == token.get() == platform.value
    assert platform.fetches == 1
    assert platform.requests[0].json == {
        "grant_type": "client_credential",
        "appid": APPID,
        "secret": SECRET,
        "force_refresh": False,
    }
    assert token.row() == TokenRow(value=platform.value, expires_at=START + 7200, fetched_at=START)


def test_the_classic_call(platform, make):
    assert make(ClassicTokenSource).get() == platform.value
    request = platform.requests[0]
    assert (request.method, request.path) == ("GET", CLASSIC)
    assert request.query == {"grant_type": "client_credential", "appid": APPID, "secret": SECRET}


def test_eight_cold_threads_cost_one_fetch(platform, make):
    token = make()
    assert at_once(*[token.get] * 8) == [platform.value] * 8
    assert platform.fetches == 1


def test_cold_processes_with_several_threads_cost_one_fetch(platform, make_in_real_time, clock):
    processes = [make_in_real_time() for _ in range(4)]
    assert at_once(*[process.get for process in processes] * 4) == [platform.value] * 16
    assert platform.fetches == 1


def test_what_is_left_of_a_life_must_be_worth_something(platform, make, clock):
    token = make()
    token.get()
    clock.now += 7200 - 11
    token.get()
    assert platform.fetches == 1
    clock.now += 2
    token.get()
    assert platform.fetches == 2


@pytest.mark.parametrize(
    ("expires_in", "life"),
    [
        (7200, 7200),
        ("7200", 7200),
        (345.5, 345.5),
        (8000, 7200),
        (10**30, 7200),
        (1e300, 7200),
        (float("inf"), 7200),
    ]
    + [
        (odd, 70)
        for odd in (69, 1, 0, -1, -(10**30), "soon", "", None, True, [], {}, float("nan"), "9" * 5000 + "x")
    ],
)
def test_how_long_a_token_lives(platform, make, expires_in, life):
    platform.on(STABLE, {"access_token": "t", "expires_in": expires_in})
    token = make()
    assert token.get() == "t"
    assert token.row().expires_at == START + life


@pytest.mark.parametrize(
    "answer",
    [
        {"access_token": "", "expires_in": 7200},
        {"access_token": 5, "expires_in": 7200},
        *({"access_token": odd, "expires_in": 7200} for odd in ("a\0", "é", "x" * 100_000)),
        {"expires_in": 7200},
    ],
)
def test_an_answer_without_a_usable_token_is_a_failure(platform, make, answer):
    platform.on(STABLE, answer)
    token = make()
    with pytest.raises(TokenUnavailableError) as caught:
        token.get()
    assert "access_token" in caught.value.reason
    assert token.row().failures == 1


# -- the lease ----------------------------------------------------------------------------------------------


def test_a_lease_outlives_a_step_of_a_renewal():
    assert FETCH_TIMEOUT.host <= 5
    assert FETCH_TIMEOUT.call <= 10
    assert FETCH_TIMEOUT.call + FETCH_TIMEOUT.connect < FETCH_LEASE_SECONDS < 20


def test_a_caller_waits_for_the_process_that_fetches(platform, make, store, clock):
    assert store.lease("other", clock(), FETCH_LEASE_SECONDS)

    def other_process():
        if len(clock.pauses) == 3:
            assert store.save("other", TokenRow(value="theirs", expires_at=START + 7200), clock())

    clock.while_waiting = other_process
    assert make().get() == "theirs"
    assert platform.fetches == 0


def test_a_lease_of_a_process_that_died_is_taken_over(platform, make, store, clock):
    assert store.lease("dead", clock(), FETCH_LEASE_SECONDS)
    assert make().get() == platform.value
    assert clock.now == pytest.approx(START + FETCH_LEASE_SECONDS, abs=1)
    assert not store.save("dead", EMPTY, clock())


def test_waiting_for_another_process_is_bounded(platform, make, store, clock):
    clock.while_waiting = lambda: store.lease("other", clock(), FETCH_LEASE_SECONDS)
    clock.while_waiting()
    with pytest.raises(TokenUnavailableError, match="another thread or process"):
        make().get()
    assert clock.now - START == pytest.approx(20, abs=1)
    assert platform.fetches == 0


def test_waiting_for_another_thread_is_bounded(platform, make, monkeypatch):
    monkeypatch.setattr(access_token, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(token_sources, "FETCH_TIMEOUT", Timeouts(read=1, host=1, call=1))
    platform.on(STABLE, hang())
    token = make()
    results = at_once(token.get, token.get)
    assert sorted("another thread or process" in error.reason for error in results) == [False, True]


def test_the_row_is_read_again_under_the_lease(platform, make, clock):
    class Store(MemoryTokenStore):
        """Another process is quicker, between our look and our lease."""

        def lease(self, holder, now, seconds):
            if super().load() == EMPTY:
                super().lease("quicker", now, seconds)
                self.save("quicker", TokenRow(value="theirs", expires_at=now + 7200, fetched_at=now), now)
                self.release("quicker")
            return super().lease(holder, now, seconds)

    assert make(store=Store()).get() == "theirs"
    assert platform.fetches == 0


def test_a_failure_of_a_quicker_process_counts_for_us(platform, make):
    class Store(MemoryTokenStore):
        def lease(self, holder, now, seconds):
            if super().load() == EMPTY:
                super().lease("quicker", now, seconds)
                self.save("quicker", TokenRow(retry_at=now + 5, failures=1, reason="theirs", code=40125), now)
                self.release("quicker")
            return super().lease(holder, now, seconds)

    with pytest.raises(TokenUnavailableError, match="theirs"):
        make(store=Store()).get()
    assert platform.fetches == 0


def test_a_fetch_that_outlasted_its_lease_changes_nothing(platform, make, store, clock):
    """We were stopped for a minute in the middle: somebody else has fetched since."""

    def slow(sock, request):
        clock.now += 60
        assert store.lease("other", clock(), FETCH_LEASE_SECONDS)
        assert store.save("other", TokenRow(value="theirs", expires_at=clock() + 7200), clock())
        store.release("other")
        return reply({"access_token": "ours", "expires_in": 7200})(sock, request)

    platform.on(STABLE, slow)
    assert make().get() == "theirs"
    assert store.load().value == "theirs"


def test_a_lease_that_was_lost_ends_a_renewal_before_its_next_step(platform, make, store, clock):
    token = make()
    stale = token.get()
    platform.kill(stuck=True)

    def slow(sock, request):
        clock.now += 60
        assert store.lease("other", clock(), 5)
        return platform.stable(sock, request)

    platform.on(STABLE, slow, platform.stable)
    clock.while_waiting = lambda: None
    assert token.replace(stale) != stale
    # The interrupted renewal asked nothing more; the one after the other's lease did it all.
    assert [request.path for request in platform.requests[1:]] == [STABLE, STABLE, CHECK, STABLE]


def test_a_failure_after_the_lease_was_lost_is_not_recorded(platform, make, store, clock):
    def slow(sock, request):
        clock.now += 60
        assert store.lease("other", clock(), FETCH_LEASE_SECONDS)
        assert store.save("other", TokenRow(value="theirs", expires_at=clock() + 7200), clock())
        return reply({"errcode": 40125, "errmsg": "invalid appsecret"})(sock, request)

    platform.on(STABLE, slow)
    assert make().get() == "theirs"
    assert store.load().failures == 0


def test_the_memory_store_gives_and_takes_back_a_lease(store):
    assert store.lease("a", 0, 10)
    assert store.lease("a", 5, 10)
    assert not store.lease("b", 14, 10)
    store.release("b")
    assert not store.save("b", EMPTY, 14)
    assert not store.save("a", EMPTY, 15)
    assert store.lease("b", 15, 10)
    store.release("b")
    assert store.lease("a", 15, 10)


# -- keeping it fresh ---------------------------------------------------------------------------------------


def test_a_token_that_nobody_asked_for_is_not_fetched(platform, make):
    assert make().keep_fresh() == 30
    assert platform.fetches == 0


@pytest.mark.parametrize(("jitter", "left"), [(0.0, 240), (0.5, 270), (0.999, 300)])
def test_renewal_begins_300_to_240_s_before_the_end(platform, make, clock, jitter, left):
    token = make(random=lambda: jitter)
    first = token.get()
    assert token.keep_fresh() == 30
    clock.now = START + 7200 - left - 10
    assert token.keep_fresh() == pytest.approx(10, abs=0.1)
    assert platform.fetches == 1
    clock.now += 10.1
    assert token.keep_fresh() == 30
    assert token.get() == platform.value != first
    assert platform.fetches == 2


def test_the_moment_is_chosen_once_per_token(make, clock):
    draws = iter([0.9, 0.1])
    token = make(random=lambda: next(draws))
    token.get()
    clock.now = START + 7200 - 300
    assert token.keep_fresh() == token.keep_fresh() == pytest.approx(6)
    clock.now += 6
    assert token.keep_fresh() == 30
    clock.now = token.row().expires_at - 300
    assert token.keep_fresh() == 30  # 240 + 6 s before its end


def test_the_early_renewal_of_several_processes_costs_one_fetch(platform, make_in_real_time, clock):
    processes = [make_in_real_time() for _ in range(4)]
    processes[0].get()
    clock.now += 7200 - 240
    at_once(*[process.keep_fresh for process in processes] * 2)
    assert platform.fetches == 2


@pytest.mark.parametrize("jitter", [0.0, 0.99])
@pytest.mark.parametrize("left", [301, 345, 599, 601])
def test_a_token_that_others_fetched_long_ago_is_renewed_300_to_240_s_before_its_end(
    platform, make, clock, left, jitter
):
    platform.on(STABLE, {"access_token": "t", "expires_in": left})
    token = make(random=lambda: jitter)
    token.get()
    end = token.row().expires_at
    while platform.fetches == 1:
        asked_at = clock.now
        clock.now += token.keep_fresh()
    assert 240 <= end - asked_at <= 300


def test_a_short_life_is_renewed_at_half_of_it(platform, make, clock):
    platform.on(STABLE, {"access_token": "t", "expires_in": 140})
    token = make()
    token.get()
    clock.now += 69
    assert token.keep_fresh() == 1
    assert platform.fetches == 1
    clock.now += 1
    assert token.keep_fresh() == 30
    assert platform.fetches == 2


@pytest.mark.parametrize("expires_in", [1, 0, -5, None, "soon", 30])
def test_no_life_is_so_short_that_it_costs_more_than_a_fetch_a_minute(platform, make, clock, expires_in):
    platform.on(STABLE, {"access_token": "t", "expires_in": expires_in})
    token = make()
    for _ in range(600):  # ten minutes, in which everybody looks each second
        assert token.get() == "t"
        token.keep_fresh()
        clock.now += 1
    assert 9 <= platform.fetches <= 11


def test_the_same_token_again_is_true_to_its_remaining_life(platform, make, clock):
    token = make()
    token.get()
    clock.now += 6000
    other = make(store=MemoryTokenStore())
    assert other.get() == token.get()
    assert other.row().expires_at == token.row().expires_at


def test_callers_go_on_with_the_old_token_while_renewals_fail(platform, make, clock):
    token = make()
    first = token.get()
    platform.on(STABLE, reply(status=502))
    clock.now = START + 7200 - 240
    while clock.now < START + 7200 - 11:
        look = token.keep_fresh()
        assert token.get() == first
        clock.now += look
    row = token.row()
    assert row.value == first
    assert 6 <= row.failures <= 10
    assert "502" in row.reason
    platform.on(STABLE, platform.stable)
    clock.now = row.retry_at
    assert token.keep_fresh() == 30
    assert token.get() == platform.value != first
    assert token.row() == TokenRow(value=platform.value, expires_at=clock() + 7200, fetched_at=clock())


def test_pauses_after_failures_double_up_to_a_minute(platform, make, clock):
    token = make()
    platform.on(STABLE, {"errcode": 40243, "errmsg": "AppSecret frozen"})
    pauses = []
    for _ in range(8):
        with pytest.raises(TokenUnavailableError):
            token.get()
        pauses.append(token.row().retry_at - clock())
        clock.now = token.row().retry_at
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert platform.fetches == 8


def test_during_a_pause_a_caller_without_a_token_hears_why_at_once(platform, make, clock):
    platform.on(STABLE, {"errcode": 40125, "errmsg": "invalid appsecret"})
    token, other_process = make(), make()
    with pytest.raises(TokenUnavailableError):
        token.get()
    for process in (token, other_process):
        with pytest.raises(TokenUnavailableError, match=r"40125.*AppSecret.*WECHAT_APPSECRET") as caught:
            process.get()
        assert (caught.value.code, caught.value.retry_at) == (40125, START + 1)
    assert platform.fetches == 1
    assert clock.pauses == []


def test_waiting_threads_do_not_repeat_a_failed_fetch(platform, make):
    platform.on(STABLE, {"errcode": 40125, "errmsg": "invalid appsecret"})
    token = make()
    errors = at_once(*[token.get] * 8)
    assert [error.code for error in errors] == [40125] * 8
    assert platform.fetches == 1


def test_the_watcher_tries_again_by_itself(platform, make, clock):
    token = make()
    first = token.get()
    platform.on(STABLE, reply(status=502))
    clock.now += 7100
    assert token.keep_fresh() == pytest.approx(1, abs=0.01)
    clock.now += 200  # it is over now
    platform.on(STABLE, platform.stable)
    token.keep_fresh()
    assert token.row().value == platform.value != first


def test_the_watcher_does_not_wait_for_others(platform, make, store, clock):
    token = make()
    token.get()
    clock.now += 7000
    store.lease("other", clock(), FETCH_LEASE_SECONDS)
    assert token.keep_fresh() == 1
    assert platform.fetches == 1
    store.release("other")

    looks = []

    def meanwhile(sock, request):
        looks.append(token.keep_fresh())
        return platform.stable(sock, request)

    platform.on(STABLE, meanwhile)
    refresh(token)
    assert looks == [1]
    assert platform.fetches == 2


def test_the_watcher_looks_again_under_the_lease(platform, make, clock):
    class Store(MemoryTokenStore):
        quicker = False

        def lease(self, holder, now, seconds):
            if self.quicker:
                super().lease("quicker", now, seconds)
                self.save("quicker", TokenRow(value="theirs", expires_at=now + 7200, fetched_at=now), now)
                self.release("quicker")
            return super().lease(holder, now, seconds)

    store = Store()
    token = make(store=store)
    token.get()
    clock.now += 7000
    store.quicker = True
    assert token.keep_fresh() == 30
    assert platform.fetches == 1


def test_a_clock_that_was_set_back_does_not_make_a_token_live_for_ever(platform, make, clock):
    token = make()
    token.get()
    clock.now -= 30
    assert token.keep_fresh() == 30
    assert platform.fetches == 1
    clock.now = START - 86400
    platform.until = clock.now + 100
    assert token.keep_fresh() == 30
    assert platform.fetches == 2
    assert token.row().expires_at == clock.now + 7200


def test_a_clock_that_was_set_back_does_not_stretch_a_pause(platform, make, clock):
    token = make()
    platform.on(STABLE, reply(status=502))
    with pytest.raises(TokenUnavailableError):
        token.get()
    platform.on(STABLE, platform.stable)
    clock.now -= 86400
    assert token.get() == platform.value


# -- replace ------------------------------------------------------------------------------------------------


def test_a_report_of_an_old_token_costs_nothing(platform, make, clock):
    token = make()
    newer = token.get()
    assert token.replace("an older one") == newer
    assert platform.fetches == 1


@pytest.mark.parametrize("kind", [StableTokenSource, ClassicTokenSource])
def test_one_revocation_costs_one_fetch(platform, make_in_real_time, kind):
    processes = [make_in_real_time(kind) for _ in range(4)]
    stale = processes[0].get()
    platform.kill()
    renewals = [lambda process=process: process.replace(stale) for process in processes] * 5
    assert at_once(*renewals) == [platform.value] * 20
    assert platform.value != stale
    assert platform.fetches == 2
    assert not platform.calls(CHECK)


def test_a_stuck_one_costs_two(platform, make):
    token = make()
    stale = token.get()
    platform.kill(stuck=True)
    assert at_once(*[lambda: token.replace(stale)] * 20) == [platform.value] * 20
    assert platform.value != stale
    assert [request.path for request in platform.requests[1:]] == [STABLE, CHECK, STABLE]
    assert [request.json["force_refresh"] for request in platform.calls(STABLE)] == [False, False, True]
    row = token.row()
    assert (row.forced_at, row.forced_count) == (START, 1)


def test_a_token_that_the_platform_vouches_for_is_never_forced(platform, make):
    token = make()
    value = token.get()
    assert token.replace(value) == value
    assert [request.path for request in platform.requests[1:]] == [STABLE, CHECK]


@pytest.mark.parametrize("answer", [reply(status=502), raw(b""), {"errcode": 45009, "errmsg": "quota"}])
def test_without_a_proof_nothing_is_forced(platform, make, answer):
    token = make()
    value = token.get()
    platform.on(CHECK, answer)
    with pytest.raises(TokenUnavailableError):
        token.replace(value)
    assert [request.json["force_refresh"] for request in platform.calls(STABLE)] == [False, False]
    assert token.get() == value


def test_forced_renewals_are_30_s_apart(platform, make, clock):
    token = make()
    platform.kill(stuck=True)
    stale = token.get()
    platform.kill(stuck=True)
    stale = token.replace(stale)
    platform.kill(stuck=True)
    with pytest.raises(TokenUnavailableError, match="30 s"):
        token.replace(stale)
    assert len(platform.calls(CHECK)) == 2
    # The dead token is not given out again, and the platform is not flooded with calls.
    before = len(platform.requests)
    for error in at_once(*[token.get, lambda: token.replace(stale)] * 8):
        assert "30 s" in error.reason
    assert len(platform.requests) == before
    clock.now += 30
    assert token.get() == platform.value != stale


def test_a_dead_token_heals_when_the_platform_gives_another(platform, make, clock):
    token = make()
    stale = token.get()
    platform.kill(stuck=True)
    platform.stuck = True
    with pytest.raises(TokenUnavailableError, match="force_refresh"):
        token.replace(stale)
    assert [request.path for request in platform.requests[1:]] == [STABLE, CHECK, STABLE]
    platform.until = 0
    clock.now += 1
    token.keep_fresh()
    assert token.get() == platform.value != stale
    assert len(platform.calls(CHECK)) == 1


def test_forced_renewals_are_20_a_day_by_beijings_clock(platform, make, store, clock):
    token = make()
    stale = token.get()
    day = int((START + 8 * 3600) // 86400)
    store.lease("test", clock(), 5)
    store.save("test", replace(token.row(), forced_at=START - 100, forced_day=day, forced_count=20), clock())
    store.release("test")
    platform.kill(stuck=True)
    with pytest.raises(TokenUnavailableError, match="20 times today"):
        token.replace(stale)
    clock.now = (day + 1) * 86400 - 8 * 3600 - 1  # one second before midnight in Beijing
    platform.until = clock.now + 5000
    with pytest.raises(TokenUnavailableError, match="20 times today"):
        token.get()
    clock.now += 2.01
    assert token.get() == platform.value != stale
    assert (token.row().forced_day, token.row().forced_count) == (day + 1, 1)


def test_a_forced_renewal_that_was_cut_off_counts(platform, make, clock):
    token = make()
    stale = token.get()
    platform.kill(stuck=True)
    platform.on(STABLE, platform.stable, raw(b""))
    with pytest.raises(TokenUnavailableError):
        token.replace(stale)
    assert token.row().forced_count == 1
    assert len(platform.calls(STABLE)) == 3


def test_a_classic_token_that_comes_back_dead_is_an_error(platform, make):
    platform.on(CLASSIC, {"access_token": "same", "expires_in": 7200})
    token = make(ClassicTokenSource)
    token.get()
    platform.dead.add("same")
    with pytest.raises(TokenUnavailableError):
        token.replace("same")
    assert len(platform.calls(CLASSIC)) == 3


def test_a_refused_renewal_keeps_the_old_token(platform, make):
    token = make()
    value = token.get()
    platform.on(STABLE, reply(status=502))
    with pytest.raises(TokenUnavailableError):
        token.replace(value)
    assert token.get() == value


def test_an_api_that_always_refuses_costs_one_renewal(platform, make):
    platform.on("/x", {"errcode": 40001, "errmsg": "invalid credential"})
    client = ApiClient([platform.url], make())
    with pytest.raises(InvalidTokenError):
        client.call("GET", "/x", repeatable=True)
    assert len(platform.calls("/x")) == 2
    assert platform.fetches == 2


def test_twenty_calls_after_a_revocation_succeed_with_one_fetch(platform, make):
    def api(sock, request):
        good = request.query["access_token"] not in platform.dead
        return reply({"errcode": 0} if good else {"errcode": 42001, "errmsg": "expired"})(sock, request)

    platform.on("/x", api)
    client = ApiClient([platform.url], make())
    client.call("GET", "/x", repeatable=True)
    platform.kill()
    assert at_once(*[lambda: client.call("GET", "/x", repeatable=True)] * 20) == [{"errcode": 0}] * 20
    assert platform.fetches == 2


# -- what others report -------------------------------------------------------------------------------------


def test_a_reported_token_that_is_dead_is_replaced(platform, make):
    token = make()
    dead = token.get()
    platform.kill()
    assert token.replace(dead, reported=True) == platform.value != dead
    assert token.replace(dead, reported=True) == token.get() == platform.value
    assert (platform.fetches, len(platform.calls(CHECK))) == (2, 1)


class LateStore:
    """A store whose first look comes late; the events say when it is asked for, when it may come, and what follows."""

    def __init__(self, store):
        self._store = store
        self.asked, self.may_look, self.goes_on = threading.Event(), threading.Event(), threading.Event()

    def load(self):
        self.asked.set()
        assert self.may_look.wait(20)
        return self._store.load()

    def lease(self, *arguments):
        self.goes_on.set()
        return self._store.lease(*arguments)

    def __getattr__(self, name):
        return getattr(self._store, name)


def test_a_report_that_comes_during_a_check_waits_for_its_end(
    platform, make, make_in_real_time, store, clock
):
    """A check that is under way was begun after the report came in, but says nothing yet."""
    late = LateStore(store)
    token, other_process = make(), make_in_real_time(store=late)
    dead = token.get()
    platform.kill()
    answers = []

    def report():
        answers.append(other_process.replace(dead, reported=True))
        late.goes_on.set()

    def check(sock, request):
        late.may_look.set()
        assert late.goes_on.wait(20)
        return reply({"errcode": 40001, "errmsg": "invalid credential"})(sock, request)

    platform.on(CHECK, check)
    thread = threading.Thread(target=report)
    thread.start()
    assert late.asked.wait(20)
    clock.now += 1
    assert token.replace(dead, reported=True) == platform.value != dead
    thread.join(20)
    assert answers == [platform.value]
    assert (platform.fetches, len(platform.calls(CHECK))) == (2, 1)


def test_a_stuck_token_that_is_reported_is_forced(platform, make):
    token = make()
    dead = token.get()
    platform.kill(stuck=True)
    assert token.replace(dead, reported=True) == platform.value != dead
    assert [call.json["force_refresh"] for call in platform.calls(STABLE)] == [False, False, True]


@pytest.mark.parametrize("kind", [StableTokenSource, ClassicTokenSource])
def test_wrong_repeated_and_made_up_reports_cost_no_fetch(platform, make, clock, kind):
    token, other_process = make(kind), make(kind)
    alive = token.get()
    for number in range(200):
        process = (token, other_process)[number % 2]
        assert (
            process.replace(alive, reported=True)
            == process.replace(f"made up {number}", reported=True)
            == alive
        )
        assert process.get_checked() == alive
    assert platform.fetches == 1
    assert len(platform.calls(CHECK)) == 5
    for _ in range(600):
        clock.now += 1
        token.replace(alive, reported=True)
    assert len(platform.calls(CHECK)) == 5 + 600 / 20
    assert platform.fetches == 1


def test_a_new_token_may_be_checked_at_once(platform, make):
    token = make()
    for _ in range(10):
        token.get_checked()
    platform.kill()
    platform.until = 0
    assert token.replace(token.get()) == platform.value
    platform.kill()
    assert token.get_checked() == platform.value


def test_a_token_that_was_just_fetched_is_not_checked(platform, make):
    assert make().get_checked() == platform.value
    assert platform.calls(CHECK) == []


@pytest.mark.parametrize(
    "answer", [reply(status=502), {"errcode": 45009, "errmsg": "reach max api daily quota limit"}]
)
def test_a_check_that_fails_says_nothing_about_the_token(platform, make, answer):
    token = make()
    alive = token.get()
    platform.on(CHECK, answer)
    assert token.replace(alive, reported=True) == alive
    assert (platform.fetches, token.row().failures) == (1, 0)


def test_a_token_known_to_be_dead_is_not_handed_out_again(platform, make, clock):
    token = make()
    dead = token.get()
    platform.kill()
    platform.on(STABLE, {"errcode": 40164, "errmsg": "invalid ip 203.0.113.7, not in whitelist"})
    for ask in (lambda: token.replace(dead, reported=True), token.get, token.get_checked):
        with pytest.raises(TokenUnavailableError, match=r"203\.0\.113\.7"):
            ask()
    assert platform.fetches == 2


def test_while_no_new_token_can_be_fetched_the_old_one_is_not_checked(platform, make, clock):
    token = make()
    alive = token.get()
    platform.on(STABLE, reply(status=502))
    clock.now = START + 7200 - 240
    token.keep_fresh()
    assert token.replace(alive, reported=True) == alive
    assert platform.calls(CHECK) == []


# -- refresh ------------------------------------------------------------------------------------------------


def test_an_operator_need_not_wait_for_the_pause(platform, make, clock):
    token = make()
    platform.on(STABLE, {"errcode": 40164, "errmsg": "invalid ip 203.0.113.7, not in whitelist"})
    for _ in range(3):
        with pytest.raises(TokenUnavailableError):
            refresh(token)
    assert platform.fetches == 3
    platform.on(STABLE, platform.stable)
    assert refresh(token) == platform.value
    assert token.get() == platform.value


# -- reasons ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "errmsg", "words"),
    [
        (
            40164,
            "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist rid: 64f4444a-5f19e663-62c00404",
            ["Add 203.0.113.7 to", "请将 203.0.113.7 加入", "64f4444a-5f19e663-62c00404"],
        ),
        (40164, "not in whitelist", ["whitelist", "白名单"]),
        (40125, "invalid appsecret", ["WECHAT_APPSECRET", "已被重置"]),
        (40001, "invalid credential", ["AppSecret wrong", "WECHAT_APPSECRET"]),
        (40013, "invalid appid", ["WECHAT_APPID"]),
        (40243, "frozen", ["Thaw", "解冻"]),
        (89503, "needs consent", ["Administrator", "管理员"]),
        (99999, "new", ["rid"]),
    ],
)
def test_a_failure_says_what_to_do(platform, make, code, errmsg, words):
    platform.on(STABLE, {"errcode": code, "errmsg": errmsg})
    token = make()
    with pytest.raises(TokenUnavailableError) as caught:
        token.get()
    for word in (str(code), *words):
        assert word in str(caught.value)
    assert caught.value.code == code
    assert (token.row().reason, token.row().code) == (caught.value.reason, code)
    assert len(platform.requests) == 1


def test_each_fetch_is_counted_by_its_result(platform, make, clock):
    results = []
    token = make(on_fetch=results.append)
    platform.on(STABLE, {"errcode": 40125, "errmsg": "x"}, raw(b""), platform.stable)
    for _ in range(2):
        with pytest.raises(TokenUnavailableError):
            token.get()
        clock.now += 60
    token.get()
    assert results == ["40125", "failed", "ok"]


# -- a central token server ---------------------------------------------------------------------------------


@pytest.fixture
def central(platform, clock, store):
    """A process that takes its token from a central server, and that server's present answer."""
    platform.on("/hub/token", {"access_token": "one", "expires_in": 7200})
    source = CentralTokenSource(platform.url + "/hub/", "wx1", KEY, sleep=clock.sleep)
    return AccessToken(
        store, source, clock=clock, random=lambda: 0.0, sleep=clock.sleep, explained=token_reason
    )


def test_the_token_comes_from_the_central_server(platform, central, clock):
    assert central.get() == central.get() == "one"
    assert [(request.method, request.path) for request in platform.requests] == [("GET", "/hub/token")]
    assert platform.requests[0].headers["authorization"] == f"Bearer {KEY}"
    clock.now += 7200 - 240
    platform.on("/hub/token", {"access_token": "two", "expires_in": 7190})
    assert central.keep_fresh() == 30
    assert central.get() == "two"


@pytest.mark.parametrize("key", ["line1\nline2-of-the-key", "密钥密钥-of-the-key"])
def test_a_key_that_no_header_can_carry_is_in_no_error(platform, clock, key):
    source = CentralTokenSource(platform.url, "wx1", key, sleep=clock.sleep)
    with pytest.raises(TokenUnavailableError) as caught:
        source.fetch()
    error = caught.value
    while error is not None:
        assert "of-the-key" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__
    assert platform.requests == []


def test_a_stale_token_is_reported_to_the_central_server(platform, central):
    platform.on("/hub/token/refresh", {"access_token": "two", "expires_in": 7200})
    central.get()
    assert at_once(*[lambda: central.replace("one")] * 8) == ["two"] * 8
    report = platform.calls("/hub/token/refresh")
    assert [(request.method, request.json) for request in report] == [("POST", {"access_token": "one"})]
    assert report[0].headers["authorization"] == f"Bearer {KEY}"
    assert not platform.calls(CHECK)
    assert not platform.fetches


def test_reports_to_a_central_server_are_not_counted(platform, central):
    central.get()
    for number in range(25):
        before = central.get()
        platform.on("/hub/token", {"access_token": before, "expires_in": 7200})
        platform.on("/hub/token/refresh", {"access_token": f"token {number}", "expires_in": 7200})
        assert central.replace(before) == f"token {number}"


def test_a_newer_token_of_the_central_server_needs_no_report(platform, central):
    central.get()
    platform.on("/hub/token", {"access_token": "two", "expires_in": 7000})
    assert central.replace("one") == "two"
    assert not platform.calls("/hub/token/refresh")


def test_the_central_server_may_vouch_for_a_token(platform, central):
    platform.on("/hub/token/refresh", {"access_token": "one", "expires_in": 7100})
    central.get()
    assert central.replace("one") == "one"


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (401, "WECHAT_TOKEN_SOURCE_KEY"),
        (404, "TOKEN_SERVER_KEY"),
        (503, "readyz"),
        (500, "WECHAT_TOKEN_SOURCE"),
    ],
)
def test_what_a_central_server_refuses_names_the_setting(platform, central, status, word):
    platform.on("/hub/token", reply('{"error":"x"}', status=status))
    with pytest.raises(TokenUnavailableError, match=word):
        central.get()


def test_an_unreachable_central_server_does_not_matter_while_the_token_lives(platform, central, clock):
    central.get()
    platform.stop()
    clock.now += 7200 - 200
    for _ in range(5):
        clock.now += central.keep_fresh()
        assert central.get() == "one"
    with pytest.raises(TokenUnavailableError):
        central.replace("one")
    assert central.get() == "one"
    clock.now += 200
    with pytest.raises(TokenUnavailableError, match="WECHAT_TOKEN_SOURCE"):
        central.get()


def test_a_central_server_that_speaks_the_platforms_errors(platform, central):
    platform.on("/hub/token", {"errcode": 40125, "errmsg": "invalid appsecret"})
    with pytest.raises(TokenUnavailableError, match="40125"):
        central.get()


# -- secrets ------------------------------------------------------------------------------------------------


def test_no_secret_in_any_record_or_error(platform, make, central, clock):
    faults = [
        {"errcode": 40125, "errmsg": f"invalid appsecret secret={SECRET}"},
        reply(status=502),
        raw(b""),
        raw(b"noise"),
        reply(f"<html>{SECRET}</html>"),
        {"access_token": "", "expires_in": 7200},
    ]
    with Leaks(SECRET, KEY, "token-number-1", "token-number-2") as leaks:
        tokens = [
            make(store=MemoryTokenStore()),
            make(ClassicTokenSource, store=MemoryTokenStore()),
            central,
        ]
        for source in (StableTokenSource, ClassicTokenSource):
            leaks.show(source(ApiClient([platform.url]), APPID, SECRET))
        for token in tokens:
            leaks.show(token)
            for fault in [*faults, None]:
                for path in (STABLE, CLASSIC, "/hub/token"):
                    good = {STABLE: platform.stable, CLASSIC: platform.classic}.get(path, platform.classic)
                    platform.on(path, fault or good)
                platform.on("/hub/token/refresh", fault or platform.classic)
                for ask in (
                    token.get,
                    lambda token=token: refresh(token),
                    lambda token=token: token.replace(platform.value),
                ):
                    clock.now += 100
                    try:
                        ask()
                    except (TokenUnavailableError, ApiError, TransportError) as error:
                        caught = error
                        leaks.show(caught)
                token.keep_fresh()
                leaks.show(token.row())
    assert platform.number > 2
    assert any("not renewed" in record.getMessage() for record in leaks.records)
    leaks.check()
