"""The system calls that Python 3.11 has no name for. Used on both sides of the sandbox."""

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterable, Mapping

__all__ = [
    "NEW_IPC",
    "NEW_NET",
    "NEW_NS",
    "NEW_PID",
    "NEW_USER",
    "Filter",
    "attach_in",
    "close_except",
    "close_from",
    "default_signals",
    "die_with_parent",
    "drop_capabilities",
    "enter_namespace",
    "fork_again",
    "fork_into",
    "ignore_children",
    "load_filter",
    "loopback_up",
    "make_private",
    "makes_memory_folders",
    "memory_folder",
    "mount",
    "move_mount",
    "open_tree",
    "packed_filter",
    "prepare_forks",
    "set_dumpable",
    "unshare",
]

NEW_NS, NEW_USER, NEW_PID = 0x00020000, 0x10000000, 0x20000000
NEW_IPC, NEW_NET = 0x08000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REC, _PRIVATE = 1, 2, 4, 8, 0x4000, 1 << 18
#: These numbers are the same on all architectures.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_CLOSE_RANGE, _SYS_MOUNT_SETATTR = 428, 429, 436, 442
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FS_SET_STRING, _FS_CREATE, _FS_CLOEXEC = 1, 6, 1
_SYS_CLONE = 220 if os.uname().machine == "aarch64" else 56
_AT_FDCWD, _AT_EMPTY_PATH, _MOVE_MOUNT_F_EMPTY_PATH = -100, 0x1000, 4
_OPEN_TREE_CLONE = 1
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 1, 4, 22
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SECCOMP_MODE_FILTER = 2
_SIGCHLD, _SIGKILL = int(signal.SIGCHLD), int(signal.SIGKILL)
_CAPABILITY_VERSION_3 = 0x20080522
_FILTER_INSTRUCTION_BYTES = 8
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_SIG_IGN = ctypes.c_void_p(1)
_NO_CAPABILITIES = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)

_libc = ctypes.CDLL(None, use_errno=True)
_libc_with_gil = ctypes.PyDLL(None, use_errno=True)


class Filter(ctypes.Structure):
    """A seccomp filter as the system takes it."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _done(result: int, what: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def open_tree(path: str, *, read_only: bool) -> int:
    """Return a descriptor of a detached mount of what lies at `path`, without devices and
    set-user-id. Needs CAP_SYS_ADMIN in the namespace where it lies."""
    fd = _done(
        _libc.syscall(
            _SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC
        ),
        f"open_tree {path}",
    )
    try:
        _set_attributes(fd, _NOSUID | _NODEV | (_RDONLY if read_only else 0))
    except OSError:
        os.close(fd)
        raise
    return fd


def makes_memory_folders() -> bool:
    """Say whether this kernel has what `memory_folder` needs (Linux 5.12, and nobody forbids it):
    whether it finds fault with the question, and does not fail to know it."""
    result = _libc.syscall(_SYS_MOUNT_SETATTR, -1, b"", _AT_EMPTY_PATH, None, 0)
    return bool(result == -1 and ctypes.get_errno() == errno.EINVAL)


def memory_folder(files: Mapping[str, bytes], owner: int, size_bytes: int) -> int:
    """Return a descriptor of a detached mount in memory, read-only, that holds `files` and is gone
    with its last user. They are `owner`'s, who alone may read them; 0: this process' own."""
    context = _done(_libc.syscall(_SYS_FSOPEN, b"tmpfs", _FS_CLOEXEC), "fsopen")
    try:
        options = {b"size": str(size_bytes), b"mode": "0500"}
        options |= {b"uid": str(owner), b"gid": str(owner)} if owner else {}
        for key, value in options.items():
            asked = (context, _FS_SET_STRING, key, value.encode(), 0)
            _done(_libc.syscall(_SYS_FSCONFIG, *asked), f"fsconfig {key.decode()}")
        _done(_libc.syscall(_SYS_FSCONFIG, context, _FS_CREATE, None, None, 0), "fsconfig")
        fd = _done(_libc.syscall(_SYS_FSMOUNT, context, _FS_CLOEXEC, 0), "fsmount")
    finally:
        os.close(context)
    try:
        for name, data in files.items():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(name, flags, 0o400, dir_fd=fd), "wb") as file:
                file.write(data)
                if owner:
                    os.fchown(file.fileno(), owner, owner)
        _set_attributes(fd, _RDONLY | _NOSUID | _NODEV | _NOEXEC)
    except OSError:
        os.close(fd)
        raise
    return fd


def _set_attributes(fd: int, attributes: int) -> None:
    asked = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _done(
        _libc.syscall(_SYS_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, asked, len(asked)),
        "mount_setattr",
    )


def attach_in(process: int, fd: int, target: str) -> None:
    """Attach a detached mount in the mount namespace of another process. Needs CAP_SYS_ADMIN in
    that; a child of this process goes there and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            enter_namespace(f"/proc/{process}/ns/mnt", NEW_NS)
            move_mount(fd, target)
            os._exit(0)
        except OSError as error:
            os._exit(min(error.errno or 1, 255))
        finally:
            os._exit(255)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, f"cannot attach {target}: {os.strerror(code)}")


def move_mount(fd: int, target: str | bytes) -> None:
    """Attach a detached mount."""
    _done(
        _libc.syscall(
            _SYS_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH
        ),
        f"move_mount {target!r}",
    )


def mount(kind: str, target: str, options: str = "", *, executable: bool = False) -> None:
    """Mount a new file system without devices and set-user-id."""
    flags = _NOSUID | _NODEV | (0 if executable else _NOEXEC)
    if kind == "devpts":
        flags &= ~_NODEV
    _done(
        _libc.mount(
            kind.encode(),
            os.fsencode(target),
            kind.encode(),
            ctypes.c_ulong(flags),
            options.encode() or None,
        ),
        f"mount {kind} on {target}",
    )


def make_private() -> None:
    """From now on nothing that is mounted here shows outside."""
    _done(
        _libc.mount(None, b"/", None, ctypes.c_ulong(_REC | _PRIVATE), None), "make mounts private"
    )


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    _done(_libc.unshare(flags), "unshare")


def prepare_forks() -> None:
    """Look up what a process that `fork_into` makes will call: else each of them does."""
    for name in ("syscall", "prctl", "mount", "capset", "signal"):
        getattr(_libc, name)
    for name in ("syscall", "fork"):
        getattr(_libc_with_gil, name)
    for name in ("BeforeFork", "AfterFork_Child", "AfterFork_Parent"):
        getattr(ctypes.pythonapi, f"PyOS_{name}")


def fork_into(flags: int) -> int:
    """Fork a child into new namespaces, in a process with one thread only. Python and whoever asked
    it (`os.register_at_fork`) are not told so in the child: it is to do little, run nothing of the
    app's, start no thread, and fork further by `fork_again`, which does tell them. What that leaves
    is the only process with what the C library believes to be its thread's number."""
    # As os.fork does. Nothing else may run in between, so the GIL is kept.
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _libc_with_gil.syscall(_SYS_CLONE, flags | _SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    return _done(pid, "clone")


def fork_again() -> int:
    """Fork in a child of `fork_into`; as `os.fork` in its parent would have."""
    pid = _libc_with_gil.fork()
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    return _done(pid, "fork")


def enter_namespace(path: str, kind: int) -> None:
    """Enter a namespace by its file in /proc."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _done(_libc.setns(fd, kind), f"setns {path}")
    finally:
        os.close(fd)


def loopback_up() -> None:
    """Let what is in this network namespace talk to itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16xh22x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, asked))[0]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends."""
    _done(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")


def set_dumpable(value: bool) -> None:
    """Say whether processes of the same user may look into this one."""
    _done(_libc.prctl(_PR_SET_DUMPABLE, int(value), 0, 0, 0), "PR_SET_DUMPABLE")


def drop_capabilities() -> None:
    """Give up all capabilities for good (no_new_privs is set by the sandbox)."""
    _done(_libc.capset(*_NO_CAPABILITIES), "capset")
    _done(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "PR_CAP_AMBIENT")


def ignore_children() -> None:
    """Have the system reap the children of this process; Python is not told."""
    _done(_libc.signal(_SIGCHLD, _SIG_IGN), "signal")


def default_signals(numbers: Iterable[int]) -> None:
    """Let signals do what they do by default, whoever handles them; Python is not told."""
    for number in numbers:
        _done(_libc.signal(number, None), "signal")


def packed_filter(program: bytes) -> Filter:
    """Return a seccomp filter (classic BPF) to be loaded."""
    return Filter(len(program) // _FILTER_INSTRUCTION_BYTES, program)


def load_filter(program: Filter) -> None:
    """Load a filter for this thread and what it starts."""
    _done(
        _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
        "PR_SET_SECCOMP",
    )


def close_except(kept: Iterable[int], first: int = 3) -> None:
    """Close all descriptors from `first` on but `kept`."""
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    close_from(first)


def close_from(first: int) -> None:
    """Close all descriptors from `first` on."""
    result = _libc.syscall(_SYS_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), 0)
    if result == -1 and ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    else:
        _done(result, "close_range")
