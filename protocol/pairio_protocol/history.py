"""The history of a service in words: who changed what, when, signed by whom; forks and what lost.

It is read from the signed changes alone, on a node or from a file that one wrote.
"""

from collections.abc import Iterable
from typing import Any

from pairio_protocol.allowlist import Folded
from pairio_protocol.changes import SignedChange, Told
from pairio_protocol.errors import DecodeError
from pairio_protocol.service import Chain
from pairio_protocol.wording import op_words

__all__ = ["app_history", "history", "read_history"]


def history(chain: Chain) -> list[dict[str, Any]]:
    """Return an entry for every known change, by seq; at a fork the one that counts first."""
    return [_entry(told) for told in chain.story()]


def _entry(told: Told) -> dict[str, Any]:
    document, before = told.document, told.before
    return {
        "epoch": document["seq"],
        "id": told.change.cid,
        "previous": document["prev"],
        "issuedUnixMs": document["issued"],
        "signedBy": [
            {"peerId": peer, "member": _member(document, before, peer)} for peer in told.signers
        ],
        "needed": told.needed,
        "does": [op_words(op, before) for op in document["ops"]],
        "ops": document["ops"],
        "cuts": len(document["cuts"]),
        "over": list(document["over"]),
        "fate": told.fate,
    }


def _member(document: dict[str, Any], before: Folded | None, peer: str) -> str | None:
    """Return whose key signed: the list before a change says it; the first change adds its own."""
    if before is not None:
        return before.member_of(peer)
    added = [op for op in document["ops"] if op["op"] == "add" and op.get("key") == peer]
    return str(added[0]["member"]) if added else None


def app_history(chain: Chain, app: str | None = None) -> list[dict[str, Any]]:
    """Return when apps (or one) came, were updated and went, on the branch that counts."""
    found = []
    for entry in history(chain):
        for op, words in zip(entry["ops"], entry["does"], strict=True):
            named = {"app": op.get("app"), "app_remove": {"name": op.get("app")}}.get(op["op"])
            if named is None or entry["fate"] != "counts" or app not in (None, named["name"]):
                continue
            shown = {key: entry[key] for key in ("epoch", "issuedUnixMs", "signedBy")}
            found.append(
                {**shown, "app": named["name"], "bundle": named.get("bundle"), "does": words}
            )
    return found


def read_history(changes: Iterable[bytes]) -> Chain:
    """Return the chain that changes make, in whatever order they are; every signature, link and
    state is checked.

    Raises:
        DecodeError: one of them is invalid, or follows one that is missing.
    """
    chain = Chain()
    read = sorted(map(SignedChange.decode, changes), key=lambda change: change.seq)
    for change in read:
        try:
            chain.add(change)
        except DecodeError as error:
            raise DecodeError(f"change {change.seq} ({change.cid}): {error}") from None
    if not read:
        raise DecodeError("no changes")
    return chain
