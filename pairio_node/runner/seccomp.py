"""Filters of system calls, built by hand as classic BPF: no library is needed to have them.

`strict` is for jobs, `middle` for the zygote that prepares them (it mounts a job's folders).
Both refuse programs of another architecture, new namespaces by `clone`, input put into a terminal,
sockets that do not stay in the job's network, and device files. `clone3` hides its flags behind a
pointer, so it is said to be missing: libraries fall back to `clone`.
"""

import errno
import os
import struct
from typing import Any, Final, Literal

from pairio_node.runner.syscalls import ALLOWED_TO_ZYGOTES, DENIED, LAST, NUMBERS

__all__ = ["ARCHITECTURES", "Architecture", "docker_profile", "middle", "native", "strict"]

Architecture = Literal["x86_64", "aarch64"]
ARCHITECTURES: Final[tuple[Architecture, ...]] = ("x86_64", "aarch64")

_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT: Final = 0x40000000

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6], little-endian.
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENTS = 0, 4, 16
_LOAD, _AND = 0x20, 0x54
_EQUAL, _GREATER, _GREATER_EQUAL, _ANY_BIT = 0x15, 0x25, 0x35, 0x45
_RETURN = 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

#: CLONE_NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWNS. (NEWTIME is no flag of clone.)
_NEW_NAMESPACES: Final = 0x7E020000
_NEW_USER: Final = 0x10000000
#: TIOCSTI types into the terminal, TIOCLINUX pastes into a console.
_TERMINAL_INPUT: Final = (0x5412, 0x541C)
_KIND_OF_FILE, _CHARACTER_DEVICE, _BLOCK_DEVICE = 0o170000, 0o020000, 0o060000
#: UNIX, INET, INET6, and of NETLINK that of routes. Others (VSOCK, ALG ...) have no namespace.
_FAMILIES: Final = (1, 2, 10)
_NETLINK: Final = 16
_FAMILY_MAX: Final = 45
#: So many numbers are compared with one after another.
_LEAF_MAX: Final = 5

_Code = list[tuple[int, int, int, int]]


def native() -> Architecture | None:
    """Return this machine's architecture; None: there is no filter for it."""
    machine = os.uname().machine
    return next((a for a in ARCHITECTURES if a == machine), None)


def strict(architecture: Architecture) -> bytes:
    """Return the filter of a job: an array of `struct sock_filter`, as bwrap's --seccomp reads."""
    return _filter(architecture, tuple(DENIED), {})


def middle(architecture: Architecture) -> bytes:
    """Return the filter of a zygote: as `strict`, but it may mount, and have new namespaces by
    `unshare` and `clone`, except those of users."""
    denied = tuple(name for name in DENIED if name not in ALLOWED_TO_ZYGOTES)
    without_users = _refused_bits(0, _NEW_USER)
    return _filter(architecture, denied, {"unshare": without_users, "clone": without_users})


def _filter(architecture: Architecture, denied: tuple[str, ...], more: dict[str, _Code]) -> bytes:
    column = ARCHITECTURES.index(architecture)
    code: _Code = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[architecture]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _AT_NUMBER),
    ]
    if architecture == "x86_64":
        code += _when(_GREATER_EQUAL, _X32_BIT, _fail(errno.ENOSYS))
    code += _when(_GREATER, LAST, _fail(errno.ENOSYS))
    blocks = {DENIED[name][column]: _fail(errno.EPERM) for name in denied}
    for name, block in {**_by_arguments(), **more}.items():
        blocks.setdefault(NUMBERS[name][column], block)
    code += _chosen(sorted((n, block) for n, block in blocks.items() if n is not None))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _chosen(blocks: list[tuple[int, _Code]]) -> _Code:
    """Return what does one of `blocks`, by the number of the call, or allows it. The kernel tries a
    filter with every number when it is loaded, which is done for each job: hence a tree."""
    if len(blocks) <= _LEAF_MAX:
        code = [step for number, block in blocks for step in _when(_EQUAL, number, block)]
        return [*code, (_RETURN, 0, 0, _ALLOW)]
    middle = len(blocks) // 2
    lower, upper = _chosen(blocks[:middle]), _chosen(blocks[middle:])
    return [(_GREATER_EQUAL, len(lower), 0, blocks[middle][0]), *lower, *upper]


def _by_arguments() -> dict[str, _Code]:
    """Return what is done for calls that depend on their arguments. The kernel looks at the lower
    32 bits of these, and so does the filter: the upper ones could hide a value from it."""
    typed: _Code = [_argument(1)]
    for request in _TERMINAL_INPUT:
        typed += _when(_EQUAL, request, _fail(errno.EPERM))
    socket: _Code = [_argument(0)]
    for family in _FAMILIES:
        socket += _when(_EQUAL, family, [(_RETURN, 0, 0, _ALLOW)])
    routes = [_argument(2), *_when(_EQUAL, 0, [(_RETURN, 0, 0, _ALLOW)])]
    socket += [(_EQUAL, 0, len(routes), _NETLINK), *routes, *_fail(errno.EAFNOSUPPORT)]
    return {
        "clone": _refused_bits(0, _NEW_NAMESPACES),
        "clone3": _fail(errno.ENOSYS),
        "ioctl": [*typed, (_RETURN, 0, 0, _ALLOW)],
        "mknod": _no_device(1),
        "mknodat": _no_device(2),
        "socket": socket,
    }


def _refused_bits(argument: int, bits: int) -> _Code:
    return [
        _argument(argument),
        *_when(_ANY_BIT, bits, _fail(errno.EPERM)),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _no_device(argument: int) -> _Code:
    code: _Code = [_argument(argument), (_AND, 0, 0, _KIND_OF_FILE)]
    for kind in (_CHARACTER_DEVICE, _BLOCK_DEVICE):
        code += _when(_EQUAL, kind, _fail(errno.EPERM))
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def _argument(number: int) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, _AT_ARGUMENTS + 8 * number)


def _when(test: int, value: int, then: _Code) -> _Code:
    return [(test, 0, len(then), value), *then]


def _fail(number: int) -> _Code:
    return [(_RETURN, 0, 0, _ERRNO | number)]


def docker_profile() -> dict[str, Any]:
    """Return the strict rules as a profile for `--security-opt seccomp=FILE` of Docker and Podman.
    They refuse calls that they do not know, and other architectures, by themselves."""
    namespaces = [1 << n for n in range(32) if _NEW_NAMESPACES >> n & 1]
    families = sorted({*range(_FAMILY_MAX + 1)} - {*_FAMILIES, _NETLINK})
    no_family, not_routes = errno.EAFNOSUPPORT, (2, "NE", 0, 0)
    rules = [
        {"names": sorted(DENIED), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM},
        _rule("clone3", errno.ENOSYS),
        *(_rule("clone", errno.EPERM, (0, "MASKED_EQ", bit, bit)) for bit in namespaces),
        *(
            _rule("ioctl", errno.EPERM, (1, "MASKED_EQ", 0xFFFFFFFF, request))
            for request in _TERMINAL_INPUT
        ),
        *(
            _rule(name, errno.EPERM, (argument, "MASKED_EQ", _KIND_OF_FILE, kind))
            for name, argument in (("mknod", 1), ("mknodat", 2))
            for kind in (_CHARACTER_DEVICE, _BLOCK_DEVICE)
        ),
        *(_rule("socket", no_family, (0, "EQ", family, 0)) for family in families),
        _rule("socket", no_family, (0, "GT", _FAMILY_MAX, 0)),
        _rule("socket", no_family, (0, "EQ", _NETLINK, 0), not_routes),
    ]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": rules,
    }


def _rule(name: str, error: int, *tests: tuple[int, str, int, int]) -> dict[str, Any]:
    arguments = [
        {"index": index, "op": f"SCMP_CMP_{test}", "value": value, "valueTwo": second}
        for index, test, value, second in tests
    ]
    return {
        "names": [name],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": error,
        "args": arguments,
    }
