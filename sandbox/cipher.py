"""Signatures and the AES envelope, as the platform makes and checks them (消息加解密).

Knows SHA-1 over sorted parts, AES-256-CBC, the 32-byte padding and the AppID at the end. It must not
know XML, HTTP or what a message means. It shares no code with the bot, so that each checks the
other. https://developers.weixin.qq.com/doc/subscription/guide/dev/push/encryption.html
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_RANDOM_BYTES = 16
_PAD_BITS = 256  # blocks of 32 bytes, twice the size of an AES block


class CipherError(Exception):
    """A ciphertext that this account's key does not decrypt; the text says why."""


def sign(*parts: str) -> str:
    """SHA-1, lower-case hex, over the parts sorted as byte strings and joined without a separator."""
    return hashlib.sha1(b"".join(sorted(part.encode() for part in parts))).hexdigest()  # noqa: S324


class Envelope:
    """Encrypts and decrypts with one EncodingAESKey (43 characters) for one AppID."""

    def __init__(self, aes_key: str, appid: str) -> None:
        key = base64.b64decode(aes_key + "=")
        self._cipher = Cipher(algorithms.AES(key), modes.CBC(key[:16]))
        self._appid = appid.encode()

    def encrypt(self, message: bytes, random: bytes) -> str:
        """Base64 of the encrypted `message`; `random` is 16 bytes, fresh for every call."""
        padder = padding.PKCS7(_PAD_BITS).padder()
        plain = random + struct.pack(">I", len(message)) + message + self._appid
        encryptor = self._cipher.encryptor()
        padded = padder.update(plain) + padder.finalize()
        return base64.b64encode(encryptor.update(padded) + encryptor.finalize()).decode()

    def decrypt(self, encrypted: str) -> bytes:
        """The message inside. Raises CipherError for anything not sealed by this key for this AppID."""
        try:
            ciphertext = base64.b64decode(encrypted, validate=True)
        except (binascii.Error, ValueError):
            raise CipherError("Encrypt is not Base64") from None
        if not ciphertext or len(ciphertext) % 32:
            raise CipherError("the ciphertext is not a multiple of 32 bytes long") from None
        decryptor = self._cipher.decryptor()
        unpadder = padding.PKCS7(_PAD_BITS).unpadder()
        try:
            padded = decryptor.update(ciphertext) + decryptor.finalize()
            plain = unpadder.update(padded) + unpadder.finalize()
        except ValueError:
            raise CipherError("wrong padding: another key, or blocks of 16 bytes instead of 32") from None
        if len(plain) < _RANDOM_BYTES + 4:
            raise CipherError("too short for random bytes and a length")
        (length,) = struct.unpack(">I", plain[_RANDOM_BYTES : _RANDOM_BYTES + 4])
        message, appid = plain[_RANDOM_BYTES + 4 :][:length], plain[_RANDOM_BYTES + 4 :][length:]
        if len(message) != length:
            raise CipherError("the message is shorter than its length says")
        if appid != self._appid:
            raise CipherError("it was sealed for another AppID")
        return message
