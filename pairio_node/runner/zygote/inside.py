"""The program in the sandbox of a warm worker. Standard library only, and nothing of the node.

As a zygote it imports the app once and forks an init (J1, process 1 of the job) and the job (J2)
for each job, ahead of it: both wait with their namespaces made, and J2 has shut itself in. J1 is
given the job's folders, J2 what else it is to be. As a worker for one job it is J1 itself, and the
app is imported in J2. `App.run()` of the SDK calls `serve()`, which returns in the process of a job
only.
"""

import _socket
import contextlib
import gc
import json
import os
import resource
import select
import signal
import sys
import types
from typing import Any

from . import kernel

__all__ = ["main", "serve"]

LINK_FD = 3
MESSAGE_BYTES_MAX = 128 * 1024
FDS_MAX = 200
_J1_OOM_SCORE, _JOB_OOM_SCORE = 900, 1000
_REAP_S = 1.0
#: How many processes wait for jobs, and how long nothing is taken before one more is made: less
#: than a job takes in all, or those that come one after another would each wait for a fork.
_AHEAD = 2
_QUIET_S = 0.005
#: One that died before it was taken is replaced after this, twice as late for each one more in a
#: row, and only so often: what killed it (the system has no memory left) may kill the next, too.
_DIED_S, _DIED_MAX = 0.05, 5
_PROGRAM_END = 70
_SIGCHLD = int(signal.SIGCHLD)
_FD_BYTES = 4
_EXAMPLE = '{"name": "text", "number": 1}'

#: The descriptors that the host passes: where jobs come from, and its own. All are numbers here:
#: an object closes its number when it is collected, which may be another's by then.
_control_fd, _host_fd = -1, -1
_config: dict[str, Any] = {}
_in_job = False
_strict: kernel.Filter  # of a zygote, for its jobs


def main() -> None:
    """Take the configuration from the host, run the app's script."""
    global _control_fd, _host_fd, _strict
    _control_fd, _host_fd = int(sys.argv[1]), int(sys.argv[2])
    _config.update(json.loads(os.read(_host_fd, MESSAGE_BYTES_MAX)))
    if _hung_up(_host_fd):  # before bubblewrap could have noticed
        os._exit(_PROGRAM_END)
    if _config["single"]:
        pid = os.fork()
        if pid:
            _guard(_host_fd, pid)
        os.setsid()
        _adjust_oom(_JOB_OOM_SCORE)
    else:
        _strict = kernel.packed_filter(bytes.fromhex(_config["strict"]))
        kernel.load_filter(kernel.packed_filter(bytes.fromhex(_config["middle"])))
    code = _run_script(_config["script"])
    if not _in_job:
        if code == 0:
            print("the program ended without App.run()", file=sys.stderr, flush=True)
        os._exit(_PROGRAM_END)
    _leave(code)


def _hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def serve(*, asks: str = "") -> None:
    """Wait for a job; returns in its process, with its environment. The app `asks` for a worker
    for each job (`single`), or for none (`off`)."""
    global _in_job
    if _config["pydantic"]:
        with contextlib.suppress(Exception):  # a job said that it has it, and can say anything
            __import__("pydantic")
    gc.collect()
    gc.freeze()
    sys.stdout.flush()
    sys.stderr.flush()
    if _config["single"]:
        _serve_one(asks)
    else:
        _serve_many(asks)
    _in_job = True


# -- a worker for one job ---------------------------------------------------------------------


def _serve_one(asks: str) -> None:
    _send(_host_fd, _ready(asks))
    _take_environment(json.loads(os.read(_host_fd, MESSAGE_BYTES_MAX)))
    _send(_host_fd, b'{"prepared": true}')
    if os.read(_host_fd, 16) != b"go":
        os._exit(_PROGRAM_END)
    os.close(_host_fd)


# -- a zygote ---------------------------------------------------------------------------------
# A page that a process of a job touches is copied for it. So these do little in Python, and what
# can be made ready before they are forked is.


def _serve_many(asks: str) -> None:
    _send(_host_fd, _ready(asks))
    if os.read(_host_fd, 16) != b"go":  # the host has looked at this process
        os._exit(0)
    null_fd = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null_fd, fd)
    os.close(null_fd)
    # The system reaps those whose job is over. Python is not told, for it is not so in jobs.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    handled = _handled_signals()
    kernel.ignore_children()
    kernel.prepare_forks()
    namespaces = kernel.NEW_NS | kernel.NEW_PID | kernel.NEW_IPC | kernel.NEW_NET
    ahead: list[int] = []  # for each the pipe on which it says that it is taken, or ends
    died = 0
    while True:
        # With none left the next job waits for one; else the job that took one goes first.
        pause_s = _DIED_S * 2**died if died else _QUIET_S if ahead else 0
        if died > _DIED_MAX or len(ahead) == _AHEAD:
            pause_s = None
        over = select.select(ahead, [], [], pause_s)[0]
        for fd in over:
            died = 0 if os.read(fd, 1) else died + 1
            os.close(fd)
            ahead.remove(fd)
        if over:
            if died > _DIED_MAX:
                _send(_control_fd, b'{"lost": true}')
            continue
        # The first processes of all jobs would have the same number as the zygote, and libraries
        # look at it to see that they were forked.
        last_pid = 100 + int.from_bytes(os.urandom(2), "big") % 20_000
        links = (*_pair(), *_pair())
        taken_fd, take_fd = os.pipe()
        if kernel.fork_into(namespaces) == 0:
            _init(links, take_fd, b"%d" % last_pid, handled)
            return
        for fd in (*links, take_fd):
            os.close(fd)
        ahead.append(taken_fd)


def _init(links: tuple[int, ...], take_fd: int, last_pid: bytes, handled: list[int]) -> None:
    """J1: fork the job, attach its folders when it comes, see it to its end; returns in J2. What
    is before its fork is little, for what it touches there is copied twice."""
    try:
        link, theirs, of_job, jobs_link = links
        _write("/proc/sys/kernel/ns_last_pid", last_pid)
        pid = kernel.fork_again()
        if pid == 0:
            _become_job(of_job)
            return
        kernel.die_with_parent()
        kernel.default_signals((_SIGCHLD, *handled))
        _mount_own()  # that the job is there already does not matter: it waits for what follows
        job_fd = os.pidfd_open(pid)
        passed = (theirs, jobs_link, os.pidfd_open(os.getpid()), job_fd)
        _shut_off((_control_fd, link, take_fd, *passed))
        _send(_control_fd, b'{"hello": true}', passed)
        for fd in (_control_fd, *passed[:3]):
            os.close(fd)
        _serve_init(link, take_fd, pid, job_fd)
    except BaseException:
        os._exit(_PROGRAM_END)
    os._exit(0)


def _serve_init(link: int, take_fd: int, pid: int, job_fd: int) -> None:
    targets, mounts = _received(link)
    if not targets:
        return  # nobody keeps it any more, for its job has died, say: it ends without a job
    os.write(take_fd, b"t")  # another one is made, whatever becomes of this one
    os.close(take_fd)
    for fd, target in zip(mounts, targets.split(b"\0"), strict=True):
        kernel.move_mount(fd, target)
        os.close(fd)
    kernel.drop_capabilities()
    kernel.die_with_parent()
    kernel.load_filter(_strict)
    _send(link, b'{"held": true}')
    _send(link, _ended(link, job_fd, pid))


def _mount_own() -> None:
    """What every job has for itself. It is done before a job is there."""
    kernel.mount("proc", "/proc")
    kernel.mount("tmpfs", "/dev/shm", f"mode=1777,size={_config['shm_bytes']}", executable=True)
    kernel.mount("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=620")


def _become_job(link: int) -> None:
    """J2: shut itself in, wait for the job."""
    try:
        os.setsid()
        kernel.default_signals((_SIGCHLD,))
        os.dup2(link, LINK_FD)
        kernel.close_from(LINK_FD + 1)
        _adjust_oom(_JOB_OOM_SCORE)
        kernel.drop_capabilities()
        kernel.load_filter(_strict)
        _rehearse()
        _send(LINK_FD, b'{"shut_in": true}')
        job, fds = _received(LINK_FD)
        if not job:
            os._exit(0)
        for target in (1, 2):
            os.dup2(fds[0], target)
        os.close(fds[0])
        _take_environment(json.loads(job))
        _send(LINK_FD, b'{"prepared": true}')
        os.close(LINK_FD)
    except BaseException as error:
        try:
            _send(LINK_FD, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        finally:
            os._exit(_PROGRAM_END)


def _rehearse() -> None:
    """Do first what a job will do, before one is there: pages that it will touch are copied."""
    os.environ["PWD"] = json.loads(_EXAMPLE)["name"]
    dict(os.environ)
    resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE))
    with open(os.devnull) as file:
        file.read()


def _take_environment(job: dict[str, Any]) -> None:
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if job["nice"]:
        os.nice(job["nice"])
    os.chdir(job["cwd"])
    wanted = {**job["environment"], "PWD": job["cwd"]}  # as bubblewrap does
    found = dict(os.environ)
    for name in found.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if found.get(name) != value:
            os.environ[name] = value
    # `random` starts anew when it is forked.
    if "tempfile" in sys.modules:
        sys.modules["tempfile"]._name_sequence = None  # type: ignore[attr-defined]
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


# -- J1 ---------------------------------------------------------------------------------------


def _handled_signals() -> list[int]:
    """Return those that do not do here what they do by default: their handlers may be the app's."""
    with open("/proc/self/status", "rb") as file:
        masks = dict(line.split(b":") for line in file if line.startswith(b"Sig"))
    handled = int(masks[b"SigCgt"], 16) | int(masks[b"SigIgn"], 16)
    return [int(number) for number in signal.valid_signals() if handled >> (number - 1) & 1]


def _shut_off(kept: tuple[int, ...]) -> None:
    """Keep the job, which has this process' user, from looking into it."""
    _adjust_oom(_J1_OOM_SCORE)
    kernel.set_dumpable(False)
    kernel.close_except(kept)


def _guard(link: int, pid: int) -> None:
    """J1 of a worker for one job."""
    try:
        job_fd = os.pidfd_open(pid)
        null_fd = os.open(os.devnull, os.O_RDWR)
        for target in (0, 1, 2):
            os.dup2(null_fd, target)
        kernel.default_signals(_handled_signals())
        _shut_off((link, job_fd))
        _send(link, b'{"held": true}', (job_fd,))
        _send(link, _ended(link, job_fd, pid))
    except BaseException:
        os._exit(_PROGRAM_END)
    os._exit(0)


def _ended(link: int, job_fd: int, pid: int) -> bytes:
    poll = select.poll()
    poll.register(job_fd, select.POLLIN)
    poll.register(link, 0)  # its end: a supervisor that is killed takes the job with it
    status = None
    while status is None:
        if any(fd != job_fd for fd, _ in poll.poll(_REAP_S * 1000)):
            os._exit(_PROGRAM_END)
        while status is None and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            status = ended[1] if ended[0] == pid else None
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.wait()
    except (ChildProcessError, ProcessLookupError):
        pass  # nothing is left
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_ms = int((used.ru_utime + used.ru_stime) * 1000)
    told = (status, cpu_ms, used.ru_maxrss * 1024)
    return b'{"status": %d, "cpu_ms": %d, "memory_peak_bytes": %d}' % told


# -- the app ----------------------------------------------------------------------------------


def _run_script(path: str) -> int:
    """Run the app as `python PATH` would; return its exit code."""
    sys.modules["_pairio_warm"] = sys.modules[__name__]
    module = types.ModuleType("__main__")
    module.__file__ = path
    sys.modules["__main__"] = module
    sys.argv[:] = [path]
    sys.path[0] = os.path.dirname(path)
    try:
        with open(path, "rb") as file:
            program = compile(file.read(), path, "exec")
        exec(program, module.__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return 1
    return 0


def _leave(code: int) -> None:
    """End as the interpreter does, without taking modules apart."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    if "atexit" in sys.modules:
        sys.modules["atexit"]._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120  # what the interpreter says when it cannot write
    os._exit(code)


# -- messages ---------------------------------------------------------------------------------


def _ready(asks: str) -> bytes:
    return json.dumps({"ready": True, "asks": asks}).encode()


def _pair() -> tuple[int, int]:
    one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    return one.detach(), other.detach()


def _send(link: int, message: bytes, fds: tuple[int, ...] = ()) -> None:
    """Send a message, and descriptors with it."""
    if not fds:
        os.write(link, message)
        return
    using = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, link)
    packed = b"".join([fd.to_bytes(_FD_BYTES, sys.byteorder) for fd in fds])
    try:
        using.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)])
    finally:
        using.detach()


def _received(link: int) -> tuple[bytes, list[int]]:
    """Return a message and its descriptors; an empty one at the end."""
    using = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, link)
    try:
        using.settimeout(None)  # an app may have set one for all that are made
        room = _socket.CMSG_SPACE(FDS_MAX * _FD_BYTES)
        message, more, _, _ = using.recvmsg(MESSAGE_BYTES_MAX, room)
    finally:
        using.detach()
    return message, memoryview(more[0][2]).cast("i").tolist() if more else []


def _adjust_oom(score: int) -> None:
    _write("/proc/self/oom_score_adj", b"%d" % score)


def _write(path: str, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)
