"""What nodes say on `/pairio/kad/1`: who holds results of a job, and the results themselves.

A stream carries one question after the other, each answered before the next; a frame is 4 bytes of
length and a message. Questions are answered for members of the service that they name, and for
nobody else. Nothing that is answered counts for having been answered: contacts are hints, segments
are checked as those in a file are.
"""

import hashlib
from dataclasses import dataclass

from pairio_protocol.cid import CidError, parse_cid
from pairio_protocol.limits import ADDRESS_LENGTH_MAX, ADDRESSES_MAX, KAD_CONTACTS_MAX, KAD_JOBS_MAX
from pairio_protocol.wire import Registry

__all__ = [
    "KAD",
    "Contact",
    "Find",
    "Found",
    "Give",
    "Given",
    "Provide",
    "Provided",
    "distance",
]

KAD = Registry()


def distance(job: str, peer: str) -> int:
    """Return how far a peer is from a job's id: the XOR of their SHA-256, as a number."""
    return _place(job) ^ _place(peer)


def _place(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")


def _check_addresses(addresses: tuple[str, ...]) -> None:
    if len(addresses) > ADDRESSES_MAX:
        raise ValueError(f"{len(addresses)} addresses; at most {ADDRESSES_MAX}")
    if any(len(a) > ADDRESS_LENGTH_MAX or not a.startswith("/") for a in addresses):
        raise ValueError("an address that is none")


def _check_job(job: str) -> None:
    try:
        parse_cid(job)
    except CidError as error:
        raise ValueError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Contact:
    """A member, and where it was last said to be."""

    peer: str
    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_addresses(self.addresses)


@KAD.wire("find")
@dataclass(frozen=True, slots=True)
class Find:
    """Asks who holds results of a job, and which members are nearer to its id."""

    service: str
    job: str

    def __post_init__(self) -> None:
        _check_job(self.job)


@KAD.wire("found")
@dataclass(frozen=True, slots=True)
class Found:
    """Who said to hold results, and members near to the job's id, nearest first."""

    providers: tuple[Contact, ...]
    closer: tuple[Contact, ...]

    def __post_init__(self) -> None:
        if max(len(self.providers), len(self.closer)) > KAD_CONTACTS_MAX:
            raise ValueError(f"more than {KAD_CONTACTS_MAX} contacts")


@KAD.wire("provide")
@dataclass(frozen=True, slots=True)
class Provide:
    """The asker holds results of these jobs, and is to be found at these addresses."""

    service: str
    jobs: tuple[str, ...]
    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_addresses(self.addresses)
        if len(self.jobs) > KAD_JOBS_MAX:
            raise ValueError(f"{len(self.jobs)} jobs; at most {KAD_JOBS_MAX}")
        for job in self.jobs:
            _check_job(job)


@KAD.wire("provided")
@dataclass(frozen=True, slots=True)
class Provided:
    """How many of the jobs were noted."""

    noted: int


@KAD.wire("give")
@dataclass(frozen=True, slots=True)
class Give:
    """Asks for the results of a job and what is needed to see that they count: changes of the
    service from place `start` on if the one before is `after`, and segments."""

    service: str
    job: str
    start: int
    after: str

    def __post_init__(self) -> None:
        _check_job(self.job)


@KAD.wire("given")
@dataclass(frozen=True, slots=True)
class Given:
    """A part of the answer; the last one has neither, and says whether the holder has all outputs
    of the results."""

    changes: tuple[bytes, ...]
    segments: tuple[bytes, ...]
    is_whole: bool = False
