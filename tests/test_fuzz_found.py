"""What fuzzing has found, as ordinary tests; and that the fuzzers would notice a broken promise.

An input is what `fuzz.targets` reads: see `fuzz/targets.py` for the form of each target.
"""

import random

import pytest

from fuzz import targets
from fuzz.loop import mutated
from wechat.receiver import Push, Receiver

FOUND = [
    # Raw bytes in the query that are no UTF-8: werkzeug's UnicodeDecodeError, a traceback for each such request.
    pytest.param("callback", b"\x00\x04signature=\xff\n"),
    pytest.param("callback", b"\x01\x00signature=\xaf&timestamp=1\n<xml/>"),
    pytest.param("callback", b"\x02\x04echostr=\xc3\n"),
    ("routes", b"\x00\x03\x00\x00fan=\xff\n"),
    ("routes", b"\x00\x03\x01\x00fan=\xff\n"),
    ("routes", b"\x00\x00\x00\x00secret=\xff\n"),
    # A line break behind two slashes: werkzeug's redirect to the path with one of them, a ValueError.
    ("routes", b"\x01\x07\x00\r\n\x00\r"),
    # A length in two versions: urllib3's InvalidHeader, which the client takes for no answer.
    ("media", b"image/jpeg\n\n\n9223372036,854775808\n\xff\xd8\xff"),
    # An envelope changed in its first block. That needs no key; only msg_signature refuses it.
    ("callback", b"\x01\x03\x00" + targets.seeds("envelope")[0]),
]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """target(name) -> the function to fuzz, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = targets.target(name, tmp_path_factory.mktemp("fuzz") / name)
        return made[name]

    return get


@pytest.mark.xdist_group("fuzz")
@pytest.mark.parametrize(("name", "data"), FOUND, ids=map(str, range(len(FOUND))))
def test_found(target, name, data):
    target(name)(data)


@pytest.mark.xdist_group("fuzz")
@pytest.mark.parametrize("name", targets.NAMES)
def test_all_seeds_and_some_mutations(target, name, full):
    run, corpus = target(name), targets.seeds(name)
    random.seed(3)  # the same ones each time
    for data in corpus:
        run(data)
    for _ in range(300 if full else 100):
        run(mutated(random.choice(corpus), corpus))


@pytest.mark.xdist_group("fuzz")
def test_a_push_that_is_let_in_unsigned_would_be_noticed(target, monkeypatch):
    monkeypatch.setattr(Receiver, "open", lambda self, query, body, now: Push(body))
    push = b"\x00\x00timestamp=1\n" + targets.seeds("xml")[0]
    with pytest.raises(targets.BrokenPromiseError):
        target("callback")(push)


@pytest.mark.xdist_group("fuzz")
def test_a_fault_of_ours_would_be_noticed(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(targets, "parse_message", broken)
    with pytest.raises(ZeroDivisionError):
        targets.xml(b"<xml/>")
