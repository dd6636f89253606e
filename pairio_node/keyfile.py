"""A node's key as a file that may leave the machine: encrypted with a passphrase.

A JSON document: scrypt makes a key of the passphrase, ChaCha20-Poly1305 encrypts the seed and
binds everything else in the document to it. The peer id stands there in the clear, so that the
file says whose key it is.
"""

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from pairio_node.errors import UserError
from pairio_protocol.ids import public_key_of
from pairio_protocol.signing import SigningKey, sha256

__all__ = ["PASSPHRASE_MIN", "decrypt_seed", "encrypt_seed", "fingerprint", "write_new"]

PASSPHRASE_MIN = 8
_FORMAT = "pairio-key-export"
#: 128 MiB and some tenths of a second for every passphrase that is tried.
_SCRYPT_N = 2**17
_SCRYPT_R = 8
_FILE_BYTES_MAX = 4096
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"


@dataclass(frozen=True)
class _Export:
    """The fields of an export; bytes stand there as hex."""

    peer: str
    salt: bytes
    nonce: bytes
    ciphertext: bytes

    @property
    def bound(self) -> bytes:
        """What the ciphertext is bound to."""
        return f"{_FORMAT} 1 {self.peer}".encode()

    def cipher(self, passphrase: str) -> ChaCha20Poly1305:
        """Return the cipher that the passphrase gives."""
        kdf = Scrypt(salt=self.salt, length=32, n=_SCRYPT_N, r=_SCRYPT_R, p=1)
        return ChaCha20Poly1305(kdf.derive(passphrase.encode("utf-8", "surrogateescape")))


def encrypt_seed(seed: bytes, passphrase: str) -> str:
    """Return the text of an export of a key."""
    if len(passphrase) < PASSPHRASE_MIN:
        raise UserError(
            f"a passphrase of {len(passphrase)} characters is too short",
            hint=f"use at least {PASSPHRASE_MIN}; five random words are good",
        )
    peer = SigningKey(seed).peer
    empty = _Export(peer, secrets.token_bytes(16), secrets.token_bytes(12), b"")
    ciphertext = empty.cipher(passphrase).encrypt(empty.nonce, seed, empty.bound)
    fields: dict[str, Any] = {"format": _FORMAT, "v": 1, "peer": peer, "kdf": "scrypt"}
    fields |= {"n": _SCRYPT_N, "r": _SCRYPT_R, "p": 1, "salt": empty.salt.hex()}
    fields |= {"nonce": empty.nonce.hex(), "ciphertext": ciphertext.hex()}
    return json.dumps(fields, indent=1) + "\n"


def decrypt_seed(path: Path, passphrase: str) -> bytes:
    """Return the seed in an export.

    Raises:
        UserError: no export, or another passphrase. Which of a wrong passphrase and a changed
            file it was cannot be told.
    """
    export = _read(path)
    try:
        seed = export.cipher(passphrase).decrypt(export.nonce, export.ciphertext, export.bound)
    except InvalidTag:
        raise UserError(
            f"the passphrase does not open {path}, or the file was changed",
            hint="nothing was done; try the passphrase again",
        ) from None
    if len(seed) != 32 or SigningKey(seed).peer != export.peer:
        raise UserError(f"{path} holds another key than it says", hint="use another copy of it")
    return seed


def _read(path: Path) -> _Export:
    try:
        with open(path, "rb") as file:
            raw = json.loads(file.read(_FILE_BYTES_MAX + 1))
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}", hint="name the file that key export wrote"
        ) from None
    except (ValueError, RecursionError):
        raw = None
    known = isinstance(raw, dict) and (raw.get("format"), raw.get("v")) == (_FORMAT, 1)
    kdf = ("scrypt", _SCRYPT_N, _SCRYPT_R, 1)
    try:
        if not known or tuple(raw[name] for name in ("kdf", "n", "r", "p")) != kdf:
            raise ValueError
        salt, nonce, ciphertext = (bytes.fromhex(raw[n]) for n in ("salt", "nonce", "ciphertext"))
        if (len(salt), len(nonce)) != (16, 12):
            raise ValueError
        public_key_of(raw["peer"])
        return _Export(raw["peer"], salt, nonce, ciphertext)
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is no exported key", hint="make one: pairio-node key export FILE"
        ) from None


def write_new(path: Path, text: str) -> None:
    """Write a file that must not be there yet, for its owner's eyes only."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(fd, "w") as file:
            os.fchmod(fd, 0o600)
            file.write(text)
            file.flush()
            os.fsync(fd)
    except FileExistsError:
        raise UserError(
            f"{path} is there already", hint="nothing is overwritten: name another file"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}", hint="name a file that you may write"
        ) from None


def fingerprint(peer: str) -> str:
    """Return six words that can be said on the telephone, for 96 bits of a peer id's hash.

    Every word is 16 bits as consonant, vowel, consonant, vowel, consonant (proquints).
    """
    digest = sha256(b"pairio fingerprint " + public_key_of(peer))
    return "-".join(_word(digest[i : i + 2]) for i in range(0, 12, 2))


def _word(two_bytes: bytes) -> str:
    bits = int.from_bytes(two_bytes, "big")
    shifts = ((12, _CONSONANTS), (10, _VOWELS), (6, _CONSONANTS), (4, _VOWELS), (0, _CONSONANTS))
    return "".join(letters[bits >> shift & len(letters) - 1] for shift, letters in shifts)
