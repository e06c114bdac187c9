"""The AES envelope of safe and compat mode: 16 random bytes, length, message and AppID under AES-256-CBC.

It knows the cipher, the padding and the AppID check; bytes and Base64 text in and out, randomness is passed
in. It must not know XML, HTTP or signatures: verify the signature before anything is opened.

https://developers.weixin.qq.com/doc/subscription/guide/dev/push/encryption.html
"""

from __future__ import annotations

import binascii
import re

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7

from wechat.errors import AppIdError, Cause, EnvelopeError

RANDOM_BYTES = 16
_LENGTH_BYTES = 4
_START = RANDOM_BYTES + _LENGTH_BYTES
_PADDING = PKCS7(256)
_AES_KEY = re.compile("[A-Za-z0-9]{43}")


def decode_aes_key(encoding_aes_key: str) -> bytes:
    """The 32 bytes of an EncodingAESKey. Raises ValueError, without the key in it, for a wrong one.

    43 characters are 258 bits: the last one carries two spare bits, which may have any value.
    """
    if not _AES_KEY.fullmatch(encoding_aes_key):
        raise ValueError("an EncodingAESKey has 43 characters, each a letter or a digit")
    return binascii.a2b_base64(encoding_aes_key + "=")


class Envelope:
    """Opens and seals envelopes with one account's key and AppID."""

    def __init__(self, encoding_aes_key: str, appid: str) -> None:
        """Raises ValueError for a malformed key."""
        key = decode_aes_key(encoding_aes_key)
        self._cipher = Cipher(AES256(key), CBC(key[:16]))
        self._appid = appid.encode()

    def open(self, encrypt: str) -> bytes:
        """The message inside the Base64 text of an Encrypt element.

        Raises EnvelopeError, one and the same for every fault of the envelope; AppIdError if it was sealed for
        another account.
        """
        content = self._decrypt(encrypt)
        end = _START + int.from_bytes(content[RANDOM_BYTES:_START], "big")
        # Also true of a content too short for its own length field.
        if len(content) < end:
            raise EnvelopeError("the envelope cannot be opened", Cause.AES_KEY)
        if content[end:] != self._appid:
            raise AppIdError("the envelope is for another AppID", Cause.APPID)
        return content[_START:end]

    def seal(self, message: bytes, random: bytes) -> str:
        """The Base64 text for an Encrypt element. `random` is 16 bytes, fresh for every call."""
        content = b"".join((random, len(message).to_bytes(_LENGTH_BYTES, "big"), message, self._appid))
        padder = _PADDING.padder()
        encryptor = self._cipher.encryptor()
        sealed = encryptor.update(padder.update(content) + padder.finalize()) + encryptor.finalize()
        return binascii.b2a_base64(sealed, newline=False).decode()

    def _decrypt(self, encrypt: str) -> bytes:
        """The content without its padding; empty if it cannot be decrypted, for any reason."""
        try:
            sealed = binascii.a2b_base64(encrypt, strict_mode=True)
            decryptor = self._cipher.decryptor()
            padded = decryptor.update(sealed) + decryptor.finalize()
            unpadder = _PADDING.unpadder()
            return unpadder.update(padded) + unpadder.finalize()
        except ValueError:  # not Base64, not whole blocks, or bad padding
            return b""
