"""sign() and verify(): the platform's own examples, and what must never pass."""

import pytest

from wechat.errors import SignatureError
from wechat.signature import sign, verify

EXAMPLES = [
    ("AAAAA", "1714036504", "1514711492", "f464b24fc39322e44b38aa78f5edd27bd1441696"),
    ("AAAAA", "1714037059", "486452656", "899cf89e464efb63f54ddac96b0a0a235f53aa78"),
    ("AAAAA", "1714112445", "415670741", "6c5c811b55cc85e0e1b54100749188c20beb3f5d"),
    ("FactSheetToken7", "1760000000", "1234567890", "125a311142aa883c382d90628ad989da4ec2cbd1"),
]


@pytest.mark.parametrize(("token", "timestamp", "nonce", "signature"), EXAMPLES)
def test_examples(token, timestamp, nonce, signature):
    assert sign(token, timestamp, nonce) == signature
    assert sign(token, nonce, timestamp) == signature
    verify(signature, token, timestamp, nonce)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "x",
        "f464b24fc39322e44b38aa78f5edd27bd144169",
        "F464B24FC39322E44B38AA78F5EDD27BD1441696",
        "签名",
        "\ud800",
    ],
)
def test_a_wrong_signature_is_refused(wrong):
    with pytest.raises(SignatureError) as refused:
        verify(wrong, "AAAAA", "1714036504", "1514711492")
    assert (refused.value.status, refused.value.reason) == (403, "signature")
    assert "f464b24f" not in str(refused.value), "the right signature must not be told"


@pytest.mark.parametrize(
    "parts",
    [("1714036505", "1514711492"), ("1714036504", "1514711493"), ("1714036504", "1514711492", "more")],
)
def test_every_part_counts(parts):
    with pytest.raises(SignatureError):
        verify("f464b24fc39322e44b38aa78f5edd27bd1441696", "AAAAA", *parts)


def test_an_empty_token_signs_nothing():
    forged = "7110eda4d09e062aa5e4a390b0a572ac0d2c0220"  # SHA-1 of "1234"
    with pytest.raises(SignatureError, match="no callback token"):
        verify(forged, "", "12", "34")
    with pytest.raises(SignatureError, match="no callback token"):
        sign("", "12", "34")


def test_parts_sort_as_bytes():
    # Not as numbers, and not as UTF-16 does: U+FF5E comes before U+1F680.
    assert sign("Z", "10", "9") == sign("9", "Z", "10")
    assert sign("t", "～", "🚀") == sign("🚀", "～", "t")
    verify(sign("t", "～", "🚀"), "t", "～", "🚀")


def test_no_text_crashes_it():
    verify(sign("t", "\ud800", "é"), "t", "\ud800", "é")
