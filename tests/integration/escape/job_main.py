"""The app: does what its parameter `world` says. `probe.py` and `job_traces.py` lie beside it."""

import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import job_traces  # type: ignore[import-not-found]
import probe  # type: ignore[import-not-found]


def main() -> None:
    """Read the job, do it, say how it went in one line."""
    worker = sys.modules.get("_pairio_warm")
    if worker is not None:
        worker.serve()  # returns in the process of a job, as in `App.run`
    with open(os.environ["PAIRIO_JOB_FILE"]) as file:
        job = json.load(file)
    world = job["parameters"][0]["value"]
    world["app"] = os.path.dirname(os.path.abspath(__file__))
    world["input"] = job["inputs"][0]["path"]
    mode = world["mode"]
    if mode == "probe":
        sys.argv = ["probe", json.dumps(world)]
        probe.main()
        return
    if mode in ("leave", "stay"):
        job_traces.leave(world)
        job_traces.leave_daemon(world)
        print("left", flush=True)
        time.sleep(60 if mode == "stay" else 0)
        return
    if mode in ("after", "beside"):
        looks = job_traces.AFTER if mode == "after" else job_traces.LOOKS
        print(f"\n{probe.MARK}{json.dumps(job_traces.looked(world, looks))}", flush=True)
        return
    said = getattr(sys.modules[__name__], f"_{mode}")(world)
    print(f"\n{probe.MARK}{json.dumps({world['attempt']: ['worked', said]})}", flush=True)


def _memory(world: dict[str, int]) -> str:
    held = [bytearray(b"x") * 2**20 for _ in range(world["mib"])]
    time.sleep(1)
    return f"{len(held)} MiB"


def _children(world: dict[str, int]) -> str:
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            _memory(world)
            os._exit(0)
        pids.append(pid)
    if any(os.waitpid(pid, 0)[1] for pid in pids):
        raise SystemExit("a child was killed")
    return f"4 times {world['mib']} MiB"


def _processes(world: dict[str, int]) -> str:
    pids = []
    for _ in range(world["count"]):
        pid = os.fork()
        if pid == 0:
            os.execv("/bin/sleep", ["sleep", "30"])
        pids.append(pid)
    time.sleep(1)
    for pid in pids:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return f"{len(pids)} processes"


def _disk(world: dict[str, int]) -> str:
    piece = bytes(2**20)
    paths = [f"filled-{number}" for number in range(4)]
    try:
        for path in paths:
            with open(path, "wb") as file:
                for _ in range(world["mib"] // 4):
                    file.write(piece)
        time.sleep(1)
    finally:
        for path in paths:
            if os.path.exists(path):
                os.unlink(path)
    return f"{world['mib']} MiB in 4 files"


def _file(world: dict[str, int]) -> str:
    with open("large", "wb") as file:
        file.truncate(world["mib"] * 2**20)
    os.unlink("large")
    return f"a file of {world['mib']} MiB"


def _late(world: dict[str, int]) -> str:
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(world["seconds"])
    return "it ran on"


main()
