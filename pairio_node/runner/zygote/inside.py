"""The program in the sandbox of a warm worker. Standard library only, and nothing of the node.

As a zygote it imports the app once and forks an init (J1, process 1 of the job) and the job (J2)
for each job, ahead of it: both wait with their namespaces made, and J2 has shut itself in. J1 is
given the job's folders, J2 what else it is to be. As a worker for one job it is J1 itself, and the
app is imported in J2. `App.run()` of the SDK calls `serve()`, which returns in the process of a job
only.
"""

import gc
import json
import os
import resource
import select
import signal
import socket
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
_PROGRAM_END = 70

#: The numbers of the descriptors that the host passes: where jobs come from, and its own.
_control_fd, _host_fd = -1, -1
_config: dict[str, Any] = {}
_in_job = False
_result: socket.socket | None = None  # of a worker for one job: what J2 says to the host


def main() -> None:
    """Take the configuration from the host, run the app's script."""
    global _result, _control_fd, _host_fd
    _control_fd, _host_fd = int(sys.argv[1]), int(sys.argv[2])
    host = socket.socket(fileno=_host_fd)
    _config.update(json.loads(host.recv(MESSAGE_BYTES_MAX)))
    if _hung_up(host):  # before bubblewrap could have noticed
        os._exit(_PROGRAM_END)
    if _config["single"]:
        pid = os.fork()
        if pid:
            _guard(host, pid)
        os.setsid()
        _adjust_oom(_JOB_OOM_SCORE)
        _result = host
    else:
        kernel.load_filter(bytes.fromhex(_config["middle"]))
    code = _run_script(_config["script"])
    if not _in_job:
        if code == 0:
            print("the program ended without App.run()", file=sys.stderr, flush=True)
        os._exit(_PROGRAM_END)
    _leave(code)


def _hung_up(host: socket.socket) -> bool:
    poll = select.poll()
    poll.register(host, 0)
    return bool(poll.poll(0))


def serve(*, asks: str = "") -> None:
    """Wait for a job; returns in its process, with its environment. The app `asks` for a worker
    for each job (`single`), or for none (`off`)."""
    global _in_job
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
    assert _result is not None
    _send(_result, {"ready": True, "asks": asks})
    job = _received(_result)[0]
    _take_environment(job)
    _send(_result, {"prepared": True})
    if _result.recv(16) != b"go":
        os._exit(_PROGRAM_END)
    _result.close()


# -- a zygote ---------------------------------------------------------------------------------


def _serve_many(asks: str) -> None:
    host = socket.socket(fileno=_host_fd)
    _send(host, {"ready": True, "asks": asks})
    if host.recv(16) != b"go":  # the host has looked at this process
        os._exit(0)
    null_fd = os.open(os.devnull, os.O_RDWR)
    for fd in (1, 2):
        os.dup2(null_fd, fd)
    os.close(null_fd)
    taken_fd, take_fd = os.pipe()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps those whose job is over
    namespaces = kernel.NEW_NS | kernel.NEW_PID | kernel.NEW_IPC | kernel.NEW_NET
    ahead = 0
    while True:
        # With none left the next job waits for one; else the job that took one goes first.
        if ahead and select.select([taken_fd], [], [], _QUIET_S if ahead < _AHEAD else None)[0]:
            ahead -= len(os.read(taken_fd, _AHEAD))
            continue
        if kernel.fork_into(namespaces) == 0:
            host.close()
            os.close(taken_fd)
            _init(take_fd)
            return
        ahead += 1


def _init(take_fd: int) -> None:
    """J1: fork the job, attach its folders when it comes, see it to its end; returns in J2."""
    try:
        kernel.die_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _mount_own()
        control = socket.socket(fileno=_control_fd)
        link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        of_job, jobs_link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _become_job(of_job)
            return
        passed = [theirs.detach(), jobs_link.detach(), os.pidfd_open(os.getpid())]
        job_fd = os.pidfd_open(pid)
        _shut_off((control.fileno(), link.fileno(), take_fd, *passed, job_fd))
        _send(control, {"hello": True}, [*passed, job_fd])
        control.close()
        for fd in passed:
            os.close(fd)
        _serve_init(link, take_fd, pid, job_fd)
    except BaseException:
        os._exit(_PROGRAM_END)
    os._exit(0)


def _serve_init(link: socket.socket, take_fd: int, pid: int, job_fd: int) -> None:
    data, mounts, _, _ = socket.recv_fds(link, MESSAGE_BYTES_MAX, FDS_MAX)
    os.write(take_fd, b"t")  # another one is made, whatever becomes of this one
    os.close(take_fd)
    if not data:
        return  # nobody keeps it any more
    for fd, target in zip(mounts, json.loads(data)["targets"], strict=True):
        kernel.move_mount(fd, target)
        os.close(fd)
    kernel.drop_capabilities()
    kernel.die_with_parent()
    kernel.load_filter(bytes.fromhex(_config["strict"]))
    _send(link, {"held": True})
    _send(link, _ended(link, job_fd, pid))


def _mount_own() -> None:
    """What every job has for itself. It is done before a job is there."""
    kernel.mount("proc", "/proc")
    kernel.mount("tmpfs", "/dev/shm", f"mode=1777,size={_config['shm_bytes']}", executable=True)
    kernel.mount("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=620")
    # The first processes of all jobs would have the same number as the zygote, and libraries
    # look at it to see that they were forked.
    first = 100 + int.from_bytes(os.urandom(2), "big") % 20_000
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(first))


def _become_job(link: socket.socket) -> None:
    """J2: shut itself in, wait for the job."""
    try:
        os.setsid()
        null_fd = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null_fd, 0)
        link = socket.socket(fileno=os.dup2(link.detach(), LINK_FD))
        kernel.close_from(LINK_FD + 1)
        _adjust_oom(_JOB_OOM_SCORE)
        kernel.drop_capabilities()
        kernel.load_filter(bytes.fromhex(_config["strict"]))
        _send(link, {"shut_in": True})
        job, fds = _received(link)
        if not job:
            os._exit(0)
        for target in (1, 2):
            os.dup2(fds[0], target)
        os.close(fds[0])
        _take_environment(job)
        _send(link, {"prepared": True})
        link.close()
    except BaseException as error:
        try:
            _send(link, {"error": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(_PROGRAM_END)


def _take_environment(job: dict[str, Any]) -> None:
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if job["nice"]:
        os.nice(job["nice"])
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["cwd"])
    os.environ["PWD"] = job["cwd"]  # as bubblewrap does
    if "tempfile" in sys.modules:
        sys.modules["tempfile"]._name_sequence = None  # type: ignore[attr-defined]
    if "random" in sys.modules:
        sys.modules["random"].seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


# -- J1 ---------------------------------------------------------------------------------------


def _shut_off(kept: tuple[int, ...]) -> None:
    """Keep the job, which has this process' user, from looking into it and from its handlers."""
    _adjust_oom(_J1_OOM_SCORE)
    kernel.set_dumpable(False)
    for number in signal.valid_signals():
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    null_fd = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null_fd, target)
    kernel.close_except(kept)


def _guard(link: socket.socket, pid: int) -> None:
    """J1 of a worker for one job."""
    try:
        job_fd = os.pidfd_open(pid)
        _shut_off((link.fileno(), job_fd))
        _send(link, {"held": True}, [job_fd])
        _send(link, _ended(link, job_fd, pid))
    except BaseException:
        os._exit(_PROGRAM_END)
    os._exit(0)


def _ended(link: socket.socket, job_fd: int, pid: int) -> dict[str, Any]:
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
    return {
        "status": status,
        "cpu_ms": int((used.ru_utime + used.ru_stime) * 1000),
        "memory_peak_bytes": used.ru_maxrss * 1024,
    }


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


def _send(link: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    socket.send_fds(link, [json.dumps(message).encode()], fds or [])


def _received(link: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a message and its descriptors; an empty one at the end."""
    data, fds, _, _ = socket.recv_fds(link, MESSAGE_BYTES_MAX, FDS_MAX)
    return (json.loads(data) if data else {}), fds


def _adjust_oom(score: int) -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(score))
