"""Public services: what strangers may ask for, and which sponsored requests count.

The policy `open_submit` makes a service public. A stranger has no log: a member who may submit
carries his request inside a record of its own, with `sponsor_of` naming him. Limits of the job are
checked by every node; how often and how many at once, by each sponsor for itself.
"""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from pairio_protocol.apps import needs_of
from pairio_protocol.errors import DecodeError
from pairio_protocol.ids import public_key_of
from pairio_protocol.limits import (
    CPU_MILLICORES_MAX,
    GPUS_MAX,
    GUEST_REQUESTS_OPEN_MAX,
    GUEST_REQUESTS_PER_HOUR_MAX,
    GUEST_TIME_MS_MAX,
    MEMORY_MIB_MAX,
)
from pairio_protocol.records import Request, Resources

if TYPE_CHECKING:
    from pairio_protocol.allowlist import Folded

__all__ = ["GUESTS", "OpenSubmit", "why_not_sponsored"]

#: Whose share all guests' runs together are taken from; no member's name holds a slash.
GUESTS: Final = "/guests"


@dataclass(frozen=True)
class OpenSubmit:
    """What strangers may ask of a public service. The first two are for one stranger at one
    sponsor, the next two for all strangers together at one sponsor, the rest for one job."""

    requests_per_hour: int
    open_max: int
    all_per_hour: int
    all_open_max: int
    cpu_millicores: int
    memory_mib: int
    gpus: int
    time_ms: int

    def __post_init__(self) -> None:
        """Refuse figures beyond the limits (ValueError)."""
        for name, low, high in (
            ("requests_per_hour", 1, GUEST_REQUESTS_PER_HOUR_MAX),
            ("open_max", 1, GUEST_REQUESTS_OPEN_MAX),
            ("all_per_hour", 1, GUEST_REQUESTS_PER_HOUR_MAX),
            ("all_open_max", 1, GUEST_REQUESTS_OPEN_MAX),
            ("cpu_millicores", 1, CPU_MILLICORES_MAX),
            ("memory_mib", 1, MEMORY_MIB_MAX),
            ("gpus", 0, GPUS_MAX),
            ("time_ms", 1, GUEST_TIME_MS_MAX),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} is {str(value)[:40]}; from {low} to {high}")

    @staticmethod
    def parse(plain: Any) -> "OpenSubmit":
        """Return what a policy says; DecodeError when it is malformed."""
        names = {field.name for field in fields(OpenSubmit)}
        if not isinstance(plain, dict) or set(plain) != names:
            raise DecodeError(f"open_submit is not {{{', '.join(sorted(names))}}}")
        try:
            return OpenSubmit(**plain)
        except ValueError as error:
            raise DecodeError(f"open_submit: {error}") from None

    @staticmethod
    def of(folded: "Folded") -> "OpenSubmit | None":
        """Return what a service lets strangers do; None when it is not public, or over."""
        plain = folded.policy.get("open_submit")
        return None if plain is None or folded.ended else OpenSubmit.parse(plain)

    def document(self) -> dict[str, int]:
        """Return the policy's form."""
        return asdict(self)

    def beyond(self, asked: Resources) -> str:
        """Return what of a job's resources is more than a stranger may ask for; else nothing."""
        for what, need, most in (
            ("cpu_millicores", asked.cpu_millicores, self.cpu_millicores),
            ("memory_mib", asked.memory_mib, self.memory_mib),
            ("gpus", asked.gpus, self.gpus),
            ("time_ms", asked.time_ms, self.time_ms),
        ):
            if need > most:
                return f"{what} {need}, at most {most}"
        return ""


def is_for_strangers(document: dict[str, Any]) -> bool:
    """Say whether a stranger may have a job done: its inputs come by URL. Content by CID, and
    outputs of jobs, may be members' own; a run that reads it would tell the stranger."""
    return all("url" in entry["source"] for entry in document["inputs"])


def why_not_sponsored(record: Request, document: dict[str, Any], folded: "Folded") -> str:
    """Return why a request in a stranger's name does not count, or nothing. Every node asks this,
    with the list as it was when the request was written."""
    allowed = OpenSubmit.of(folded)
    if allowed is None:
        return "a sponsored request in a service that is not public"
    try:
        public_key_of(record.sponsor_of)
    except DecodeError:
        return "a request that sponsors nobody"
    plain = (record.mode, record.salt_of, record.isolation_min, record.targets, record.priority)
    needs = needs_of(folded.apps, document)
    if plain != ("use", "", "", (), 0) or not is_for_strangers(document) or needs.exclusive:
        return "a sponsored request for more than a stranger may have"
    if allowed.beyond(record.resources):
        return "a sponsored request beyond the service's limits"
    return ""
