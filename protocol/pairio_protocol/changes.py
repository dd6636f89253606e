"""What a change of a service looks like: the document as it travels, cuts, and their reading.

Whether one counts is decided in `service.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pairio_protocol.allowlist import Folded, is_count
from pairio_protocol.codec import pack, unpack
from pairio_protocol.documents import decode, document_cid, encode
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import LogId
from pairio_protocol.limits import (
    ADMINS_MAX,
    CHANGE_SIZE_BYTES_MAX,
    CUTS_PER_CHANGE_MAX,
    FRAME_SIZE_BYTES_MAX,
    SIGNATURE_SIZE_BYTES,
)
from pairio_protocol.signing import SigningKey, sha256, signing_input

__all__ = [
    "ChangeBeyond",
    "ChangeGap",
    "Cut",
    "Cutting",
    "SignedChange",
    "Told",
    "Weighed",
    "parse_cuts",
    "signed_bytes",
]


@dataclass(frozen=True)
class SignedChange:
    """One change as it travels: the document's bytes and the admins' signatures over them."""

    body: bytes
    signatures: tuple[tuple[str, bytes], ...]

    @cached_property
    def cid(self) -> str:
        """The CID of the change; of the first one it is the service's id."""
        return document_cid(self.body)

    @property
    def seq(self) -> int:
        """The seq that the change states; of a valid one its place in the chain. DecodeError when
        it states none."""
        seq = decode(self.body, CHANGE_SIZE_BYTES_MAX).get("seq")
        if not is_count(seq):
            raise DecodeError("a change that states no seq")
        return seq

    def encode(self) -> bytes:
        """Return the bytes that are stored and sent."""
        return pack([self.body, [[peer, signature] for peer, signature in self.signatures]])

    @staticmethod
    def decode(data: bytes) -> "SignedChange":
        """Return the change in `data`; DecodeError when it has not this shape."""
        plain = unpack(data, FRAME_SIZE_BYTES_MAX)
        match plain:
            case [bytes(body), list(signatures)] if (
                len(body) <= CHANGE_SIZE_BYTES_MAX and len(signatures) <= 2 * ADMINS_MAX
            ):
                pairs = []
                for item in signatures:
                    match item:
                        case [str(peer), bytes(signature)] if (
                            len(signature) == SIGNATURE_SIZE_BYTES
                        ):
                            pairs.append((peer, signature))
                        case _:
                            raise DecodeError("a signature is not [peer, bytes]")
                return SignedChange(body, tuple(pairs))
        raise DecodeError("not a signed change")

    def signed_by(self, key: SigningKey) -> "SignedChange":
        """Return the change with this key's signature too."""
        return self.united_with(((key.peer, key.sign(signed_bytes(self.body))),))

    def united_with(self, signatures: Iterable[tuple[str, bytes]]) -> "SignedChange":
        """Return the change with these signatures too, behind those that it has."""
        known = {peer for peer, _ in self.signatures}
        more = {peer: signature for peer, signature in signatures if peer not in known}
        return SignedChange(self.body, (*self.signatures, *more.items()))


def signed_bytes(body: bytes) -> bytes:
    """Return what admins sign of a change."""
    return signing_input("change", sha256(body))


@dataclass(frozen=True)
class Cut:
    """The last segment of a log that counts after its author lost something: seq and hash."""

    log: LogId
    seq: int
    hash: bytes

    def plain(self) -> dict[str, Any]:
        """Return the cut as it stands in a change."""
        author, boot, shard = self.log
        return {
            "author": author,
            "boot": boot.hex(),
            "shard": shard,
            "seq": self.seq,
            "hash": self.hash.hex(),
        }

    @staticmethod
    def parse(plain: Any) -> "Cut":
        """Return the cut in `plain`; DecodeError when it has not this shape."""
        match plain:
            case {
                "author": str(author),
                "boot": str(boot),
                "shard": 0,
                "seq": int(seq),
                "hash": str(digest),
                **rest,
            } if not rest and seq >= 0 and len(boot) == 32 and len(digest) == 64:
                try:
                    cut = Cut(LogId(author, bytes.fromhex(boot), 0), seq, bytes.fromhex(digest))
                except ValueError:
                    raise DecodeError("a cut whose boot or hash is not hex") from None
                if encode(cut.plain()) == encode(plain):  # lower-case hex, no truth values
                    return cut
        raise DecodeError("a cut is not {author, boot, shard, seq, hash}")


@dataclass(frozen=True)
class Cutting:
    """What one change takes from a key: segments written under an epoch below `epoch` count only
    on the chains that end in its cuts."""

    epoch: int
    cuts: dict[LogId, Cut]


@dataclass(frozen=True)
class Weighed:
    """A change that may lack signatures: with those only that are right, what it would do after the
    change before it, who signed (in the order in which they did), whether they are enough."""

    change: SignedChange
    document: dict[str, Any]
    before: Folded
    after: Folded
    signers: tuple[str, ...]
    is_enough: bool
    is_newest: bool  # it follows the newest change

    def may_sign(self) -> tuple[str, ...]:
        """Return the admins before and, where it changes who they are or how many, after it."""
        old, new = self.before, self.after
        changed = (old.admins, old.threshold) != (new.admins, new.threshold)
        return tuple(dict.fromkeys((*old.admins, *(new.admins if changed else ()))))


class ChangeGap(DecodeError):
    """A change that may be valid but whose predecessors are not known here yet."""


class ChangeBeyond(DecodeError):
    """A valid change of admins who have each signed as many that follow the same one as are
    kept."""


@dataclass(frozen=True)
class Told:
    """A valid change as the history of a service tells it. `fate` is `counts`, `lost` (on a losing
    branch) or `over` (lost, and an admin has signed over it)."""

    change: SignedChange
    document: dict[str, Any]
    signers: tuple[str, ...]
    needed: int
    before: Folded | None
    fate: str


def parse_cuts(plain: Any, lost: dict[str, frozenset[str]]) -> dict[LogId, Cut]:
    """Return the cuts of a change by log; DecodeError when one cuts who loses nothing."""
    if not isinstance(plain, list) or len(plain) > CUTS_PER_CHANGE_MAX:
        raise DecodeError(f"cuts are not a list of at most {CUTS_PER_CHANGE_MAX}")
    cuts = {}
    for item in plain:
        cut = Cut.parse(item)
        if cut.log.author not in lost or cut.log in cuts:
            raise DecodeError("a cut of a log whose author loses nothing, or a second one")
        cuts[cut.log] = cut
    return cuts
