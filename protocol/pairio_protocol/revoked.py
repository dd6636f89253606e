"""Why somebody may not do something any more: who took the role, when, and by which change."""

from pairio_protocol.allowlist import Folded
from pairio_protocol.service import Chain
from pairio_protocol.wording import op_words

__all__ = ["REVOKED_HINT", "why_without"]

REVOKED_HINT = "ask an admin to grant the role again: pairio service log NAME shows who took it"


def why_without(chain: Chain, peer: str, role: str) -> str:
    """Return why a peer is without a role: the change that took it, its date, who signed it.
    Empty when nobody took it from him: he never had it."""
    told = chain.taken_from(peer, role)
    if told is None:
        return ""
    date = _date(told.document["issued"] // 1000)
    signers = ", ".join(_named(signer, told.before) for signer in told.signers)
    what = "; ".join(op_words(op, told.before) for op in told.document["ops"][:3])
    return f"change {told.document['seq']} of {date}, signed by {signers}: {what}"


def _named(peer: str, before: Folded | None) -> str:
    name = before.member_of(peer) if before is not None else None
    return f"{name} ({peer})" if name else peer


def _date(unix_s: int) -> str:
    """Return a date of the Gregorian calendar, by days since 1 March of the year 0."""
    days, second = divmod(unix_s, 86_400)
    era, day = divmod(days + 719_468, 146_097)
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day -= (153 * month + 2) // 5 - 1
    year += era * 400 + (month >= 10)
    month += 3 if month < 10 else -9
    clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    return f"{year:04}-{month:02}-{day:02} {clock} UTC"
