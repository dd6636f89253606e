"""Dask: `LocalCluster` of two workers of one thread each, and its defaults otherwise.

Run by an interpreter that has `distributed`; takes the number of jobs, prints JSON.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import distributed
from distributed import Client, LocalCluster, wait

RUNS = 60
RUN_S = 0.05
WAIT_S = 120.0


def hello(name: str) -> str:
    """Stand in for hello_world_1."""
    return f"Hello, {name}!"


def marked(name: str, folder: str) -> str:
    """Leave a line for each time that this ran."""
    with open(Path(folder) / "ran", "a") as file:
        file.write(f"{name}\n")
    return name


def nap(number: int) -> int:
    """Work for a while."""
    time.sleep(RUN_S)
    return number


def busy(folder: str) -> None:
    """Say every 50 ms that this still runs."""
    for _ in range(100):
        Path(folder, "alive").write_text(str(time.time()))
        time.sleep(0.05)


def read_secret(path: str) -> str:
    """Read a file of the user who runs the worker."""
    return Path(path).read_text()


def cluster() -> LocalCluster:
    """Start two workers, without a dashboard."""
    return LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50)


def latency(client: Client, jobs: int) -> dict[str, Any]:
    """One after the other, then all at once, then the same from a new client."""
    client.submit(hello, "warm").result()
    took = []
    for number in range(200):
        began = time.perf_counter()
        client.submit(hello, f"one {number}").result()
        took.append((time.perf_counter() - began) * 1000)
    took.sort()
    began = time.perf_counter()
    wait(client.map(hello, [f"many {n}" for n in range(jobs)]))
    return {
        "p50_ms": statistics.median(took),
        "p99_ms": took[197],
        "map_s": time.perf_counter() - began,
    }


def again() -> int:
    """Return how many of 100 equal calls run when a second program asks, the first having ended."""
    with tempfile.TemporaryDirectory() as folder, cluster() as made:
        for _ in range(2):
            with Client(made) as client:
                client.gather(client.map(marked, [str(n) for n in range(100)], folder=folder))
        return Path(folder, "ran").read_text().count("\n") - 100


def worker_killed() -> dict[str, Any]:
    """Kill one of two workers at a fifth of the work."""
    with cluster() as made, Client(made) as client:
        client.submit(hello, "warm").result()
        began = time.perf_counter()
        futures = client.map(nap, range(RUNS))
        while sum(future.done() for future in futures) < RUNS // 5:
            time.sleep(0.005)
        victim = next(iter(made.workers.values()))
        os.kill(victim.pid, 9)
        done = client.gather(futures, errors="skip")
        return {"s": time.perf_counter() - began, "done": len(done)}


def _start(*command: str) -> "subprocess.Popen[bytes]":
    argv = [str(Path(sys.executable).parent / "dask"), *command, "--no-dashboard"]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def centre_killed() -> int:
    """Return how many of the jobs that were submitted can be had after the centre died and came
    back. Here the centre is the scheduler, a process of its own."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    command = ("scheduler", "--host", "127.0.0.1", "--port", str(port))
    scheduler, worker = _start(*command), _start("worker", address, "--nthreads", "1")
    try:
        client = Client(address, timeout=WAIT_S)
        futures = client.map(nap, range(RUNS))
        while sum(future.done() for future in futures) < RUNS // 5:
            time.sleep(0.005)
        scheduler.kill()
        scheduler.wait()
        scheduler = _start(*command)
        end = time.monotonic() + 15
        while time.monotonic() < end and sum(f.status == "finished" for f in futures) < RUNS:
            time.sleep(0.2)
        had = sum(bool(future.status == "finished") for future in futures)
        client.close(timeout=5)
        return had
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()


def stranger() -> str:
    """Somebody who was given nothing but the address."""
    secret = Path(tempfile.mkdtemp()) / "key"
    secret.write_text("a private key")
    secret.chmod(0o600)
    with cluster() as made, Client(made.scheduler_address) as client:
        read = client.submit(read_secret, str(secret)).result(timeout=30)
    secret.unlink()
    return str(read)


def cancelled() -> float:
    """Return for how many seconds a task goes on after its cancel."""
    with tempfile.TemporaryDirectory() as folder, cluster() as made, Client(made) as client:
        future = client.submit(busy, folder)
        while not Path(folder, "alive").exists():
            time.sleep(0.01)
        at = time.time()
        future.cancel()
        time.sleep(2.0)
        return float(Path(folder, "alive").read_text()) - at


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    """Try all of it."""
    began = time.perf_counter()
    with cluster() as made, Client(made) as client:
        client.submit(hello, "first").result()
        start_s = time.perf_counter() - began
        found = latency(client, int(sys.argv[1]))
    found |= {
        "version": f"Dask {distributed.__version__}",
        "start_s": start_s,
        "again_ran": again(),
        "killed": worker_killed(),
        "centre_had": centre_killed(),
        "stranger": stranger(),
        "cancel_s": cancelled(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
