"""Which addresses count as public: where a video may be fetched from, and who is one of ours."""

import pytest

from wechat.addresses import is_public


@pytest.mark.parametrize(
    "address",
    [
        "93.184.216.34",
        "2606:4700::1111",
        "::ffff:93.184.216.34",
        "64:ff9b::5db8:d822",
        "::ffff:0:93.184.216.34",
        "1.1.1.1",
    ],
)
def test_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "192.0.0.1",
        "192.0.0.9",
        "192.0.0.170",
        "192.0.2.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::93.184.216.34",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "::ffff:0:127.0.0.1",
        "3fff::1",
        "5f00::1",
        "fe80::1%eth0",
        "fec0::1",
        "fd00::1",
        "ff02::1",
        "2001:db8::1",
        "2002:a00:1::",
        "2001:0:0:1::",
    ],
)
def test_not_public(address):
    assert not is_public(address)


def test_what_is_no_address():
    with pytest.raises(ValueError, match="x"):
        is_public("x")
