"""Names of things: peers, services, jobs, runs, requests, attempts, logs.

A peer id is libp2p's text form of an Ed25519 public key (identity multihash, base58btc), so the
key is in the name. Jobs, results and services are CIDs. The others are hex of sha2-256.
"""

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple

import base58

from pairio_protocol.errors import DecodeError

__all__ = [
    "LogId",
    "is_attempt_of",
    "peer_of",
    "public_key_of",
    "rendezvous",
    "request_id",
    "run_id",
]

# libp2p: multihash identity(0x00), 36 bytes of protobuf {type: Ed25519, data: 32 bytes}.
_ATTEMPT = re.compile(r"[0-9A-Za-z]{1,64}/[0-9a-f]{16}/[0-9]{1,19}", re.ASCII)
_PEER_PREFIX = bytes.fromhex("002408011220")


class LogId(NamedTuple):
    """One append-only log: a node begins a new one at every start (boot = 128 random bits)."""

    author: str
    boot: bytes
    shard: int = 0


@lru_cache(maxsize=8192)
def peer_of(public_key: bytes) -> str:
    """Return the peer id of a raw 32-byte Ed25519 public key."""
    return base58.b58encode(_PEER_PREFIX + public_key).decode()


@lru_cache(maxsize=8192)
def public_key_of(peer: str) -> bytes:
    """Return the 32-byte Ed25519 public key that a peer id is.

    Raises:
        DecodeError: not the id of an Ed25519 key.
    """
    try:
        raw = base58.b58decode(peer) if len(peer) <= 64 else b""
    except ValueError:
        raw = b""
    if len(raw) != len(_PEER_PREFIX) + 32 or not raw.startswith(_PEER_PREFIX):
        raise DecodeError(f"{peer[:80]!r} is not an Ed25519 peer id (12D3Koo...)")
    return raw[len(_PEER_PREFIX) :]


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.hexdigest()


def request_id(service: str, author: str, boot: bytes, seq: int) -> str:
    """Return the id of the request that stands at `seq` of the author's log in a service."""
    return _hash(b"request", service.encode(), author.encode(), boot, seq.to_bytes(8, "big"))


def run_id(resolved_job_id: str, salt: str = "") -> str:
    """Return the id of one wanted execution; equal wishes share it (the salt is empty for them)."""
    return _hash(b"run", resolved_job_id.encode(), salt.encode())


def is_attempt(attempt: str) -> bool:
    """Say whether some coordinator may have given this attempt id."""
    return _ATTEMPT.fullmatch(attempt) is not None


def is_attempt_of(attempt: str, coordinator: str) -> bool:
    """Say whether an attempt id is one that this coordinator may give: it stands in records."""
    return attempt.startswith(f"{coordinator}/") and _ATTEMPT.fullmatch(attempt) is not None


def rendezvous(key: str, peer: str) -> bytes:
    """Return the weight of a peer for a key: highest first decides (rendezvous hashing)."""
    return hashlib.sha256(key.encode() + b"|" + peer.encode()).digest()
