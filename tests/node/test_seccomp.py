"""The filters of system calls: each rule is run as a kernel runs it, for both processors."""

import errno
import json
import struct
from collections.abc import Callable

import pytest

from pairio_node.runner.seccomp import (
    ARCHITECTURES,
    Architecture,
    docker_profile,
    middle,
    native,
    strict,
)
from pairio_node.runner.syscalls import ALLOWED_TO_ZYGOTES, DENIED, LAST, NUMBERS

ALLOW, KILL = 0x7FFF0000, 0x80000000
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: Calls that every program makes: read, write, mmap, execve, exit, futex, openat, prlimit64.
ORDINARY = {
    "x86_64": (0, 1, 9, 59, 60, 202, 257, 302),
    "aarch64": (63, 64, 222, 221, 93, 98, 56, 261),
}
Filter = Callable[[Architecture], bytes]


def _answer(
    code: bytes, architecture: str, number: int, *arguments: int, claims: int | None = None
) -> int:
    """Return what the filter answers: an errno, 0 for allowed."""
    return _run(code, architecture, number, *arguments, claims=claims)[0]


def _run(
    code: bytes, architecture: str, number: int, *arguments: int, claims: int | None = None
) -> tuple[int, int]:
    """Run the filter as the kernel does; return what it answers and how many steps that took."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    audit = AUDIT_ARCH[architecture] if claims is None else claims
    data = struct.pack("<IIQ6Q", number, audit, 0, *padded)
    program = list(struct.iter_unpack("<HBBI", code))
    at = value = steps = 0
    while True:
        operation, if_true, if_false, k = program[at]
        at += 1
        steps += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("<I", data, k)
        elif operation == 0x54:
            value &= k
        elif operation == 0x06:
            assert k in (ALLOW, KILL) or k >> 16 == 5
            return KILL if k == KILL else 0 if k == ALLOW else int(k) & 0xFFFF, steps
        else:
            holds = {
                0x15: value == k,
                0x25: value > k,
                0x35: value >= k,
                0x45: value & k != 0,
            }[operation]
            at += if_true if holds else if_false


ALL = [(architecture, kind) for architecture in ARCHITECTURES for kind in (strict, middle)]


def _number(name: str, architecture: Architecture) -> int | None:
    return NUMBERS[name][ARCHITECTURES.index(architecture)]


@pytest.mark.parametrize(("architecture", "kind"), ALL)
def test_each_number_is_decided_alone(architecture: Architecture, kind: Filter) -> None:
    """Whatever is beside it in the filter: what no rule names is allowed, in all that is known."""
    code = kind(architecture)
    ruled = {_number(name, architecture) for name in NUMBERS} - {None}
    allowed = ALLOWED_TO_ZYGOTES if kind is middle else ()
    refused = {_number(name, architecture) for name in DENIED if name not in allowed} - ruled
    for number in range(LAST + 1):
        if number not in ruled:
            expected = errno.EPERM if number in refused else 0
            assert _answer(code, architecture, number) == expected, number
    for number in (LAST + 1, LAST + 2, 0x3FFFFFFF, 0x40000000, 0x40000001, 0xFFFFFFFF):
        assert _answer(code, architecture, number) == errno.ENOSYS, number


@pytest.mark.parametrize(("architecture", "kind"), ALL)
def test_few_steps_decide(architecture: Architecture, kind: Filter) -> None:
    """The kernel tries every number when it loads a filter, twice for each job that runs warm."""
    steps = 0
    for number in range(LAST + 1):
        steps += _run(kind(architecture), architecture, number)[1]
    assert steps / (LAST + 1) < 16


@pytest.mark.parametrize(("architecture", "kind"), ALL)
def test_every_denied_call_is_refused_and_ordinary_ones_are_not(
    architecture: Architecture, kind: Filter
) -> None:
    code = kind(architecture)
    allowed = ALLOWED_TO_ZYGOTES if kind is middle else ()
    for name in DENIED:
        number = _number(name, architecture)
        if number is not None:
            expected = 0 if name in allowed else errno.EPERM
            assert _answer(code, architecture, number) == expected, name
    for number in ORDINARY[architecture]:
        assert _answer(code, architecture, number) == 0


@pytest.mark.parametrize(("architecture", "kind"), ALL)
def test_only_the_machines_own_calls_are_known(architecture: Architecture, kind: Filter) -> None:
    code = kind(architecture)
    for foreign in (0x40000003, 0x40000028, *(a for a in AUDIT_ARCH.values())):
        if foreign != AUDIT_ARCH[architecture]:
            assert _answer(code, architecture, 0, claims=foreign) == KILL
    read, x32_bit = ORDINARY["x86_64"][0], 0x40000000
    assert _answer(code, architecture, read | x32_bit) == errno.ENOSYS
    assert _answer(code, architecture, 0xFFFFFFFF) == errno.ENOSYS
    assert _answer(code, architecture, LAST) == 0
    assert _answer(code, architecture, LAST + 1) == errno.ENOSYS


@pytest.mark.parametrize(("architecture", "kind"), ALL)
def test_a_new_process_is_allowed_and_a_new_namespace_is_not(
    architecture: Architecture, kind: Filter
) -> None:
    code, clone = kind(architecture), _number("clone", architecture)
    assert clone is not None
    sigchld, of_a_thread = 17, 0x003D0F00
    assert _answer(code, architecture, clone, sigchld) == 0
    assert _answer(code, architecture, clone, of_a_thread) == 0
    users = 28
    for bit in (17, 25, 26, 27, users, 29, 30):
        refused = kind is strict or bit == users  # a zygote's children have some of their own
        wanted = errno.EPERM if refused else 0
        assert _answer(code, architecture, clone, 1 << bit | sigchld) == wanted
    # Its flags lie behind a pointer: libraries take clone when it is said to be missing.
    clone3 = _number("clone3", architecture)
    assert clone3 is not None
    assert _answer(code, architecture, clone3, 0x7FFF0000) == errno.ENOSYS


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_zygote_has_new_namespaces_except_of_users(architecture: Architecture) -> None:
    unshare = _number("unshare", architecture)
    assert unshare is not None
    new_pid, new_user = 0x20000000, 0x10000000
    assert _answer(middle(architecture), architecture, unshare, new_pid) == 0
    assert _answer(middle(architecture), architecture, unshare, new_pid | new_user) == errno.EPERM
    assert _answer(strict(architecture), architecture, unshare, 0) == errno.EPERM


@pytest.mark.parametrize(("architecture", "kind"), ALL)
def test_nothing_is_typed_into_a_terminal(architecture: Architecture, kind: Filter) -> None:
    code, ioctl = kind(architecture), _number("ioctl", architecture)
    assert ioctl is not None
    tcgets, tiocsti, tioclinux = 0x5401, 0x5412, 0x541C
    assert _answer(code, architecture, ioctl, 0, tcgets) == 0
    for request in (tiocsti, tioclinux):
        assert _answer(code, architecture, ioctl, 0, request) == errno.EPERM
        hidden = request | 1 << 32  # the kernel looks at the lower half only
        assert _answer(code, architecture, ioctl, 0, hidden) == errno.EPERM


@pytest.mark.parametrize(("architecture", "kind"), ALL)
def test_sockets_are_of_families_that_stay_in_the_jobs_network(
    architecture: Architecture, kind: Filter
) -> None:
    code, socket = kind(architecture), _number("socket", architecture)
    assert socket is not None
    netlink, routes, audit = 16, 0, 9
    for family in range(60):
        expected = 0 if family in (1, 2, 10, netlink) else errno.EAFNOSUPPORT
        assert _answer(code, architecture, socket, family, 1, routes) == expected
        assert _answer(code, architecture, socket, family | 1 << 32, 1, routes) == expected
    assert _answer(code, architecture, socket, netlink, 3, audit) == errno.EAFNOSUPPORT


@pytest.mark.parametrize(("architecture", "kind"), ALL)
def test_pipes_are_made_and_devices_are_not(architecture: Architecture, kind: Filter) -> None:
    code = kind(architecture)
    for name, before in (("mknod", 1), ("mknodat", 2)):
        number = _number(name, architecture)
        if number is None:
            continue
        for mode, expected in (
            (0o010666, 0),  # a pipe
            (0o100644, 0),
            (0o020666, errno.EPERM),
            (0o060666, errno.EPERM),
        ):
            assert _answer(code, architecture, number, *[0] * before, mode) == expected


def test_the_numbers_are_those_of_this_kernels_headers() -> None:
    # Spot checks by hand against asm/unistd_64.h and asm-generic/unistd.h of Linux.
    known = {
        "ptrace": (101, 117),
        "mount": (165, 40),
        "bpf": (321, 280),
        "io_uring_setup": (425, 425),
        "keyctl": (250, 219),
        "open_by_handle_at": (304, 265),
        "perf_event_open": (298, 241),
        "unshare": (272, 97),
    }
    assert {name: NUMBERS[name] for name in known} == known
    for column in range(2):
        numbers = [row[column] for row in NUMBERS.values() if row[column] is not None]
        assert len(numbers) == len(set(numbers))


def test_the_profile_for_containers_is_made_of_the_same_table() -> None:
    profile = docker_profile()
    assert json.loads(json.dumps(profile)) == profile
    denied, *by_argument = profile["syscalls"]
    assert denied["names"] == sorted(DENIED)
    assert {name for rule in by_argument for name in rule["names"]} == {*NUMBERS} - {*DENIED}
    flags = {rule["args"][0]["value"] for rule in by_argument if rule["names"] == ["clone"]}
    assert flags == {1 << bit for bit in (17, 25, 26, 27, 28, 29, 30)}
    families = [r["args"][0]["value"] for r in by_argument if r["names"] == ["socket"]]
    assert {1, 2, 10}.isdisjoint(families)
    assert {38, 40} <= {*families}  # ALG, VSOCK


def test_this_machine_is_one_of_those_that_have_a_filter() -> None:
    assert native() in ARCHITECTURES
