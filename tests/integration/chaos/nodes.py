"""One `pairio-node` for chaos: started, killed, frozen, restarted; asked over HTTP with limits."""

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from pairio_node.home import Home, Ports
from tests.integration.chaos.wires import connect
from tests.integration.waiting import until

__all__ = ["Node", "Refused", "Unreachable"]

_READY_S = 60.0
_CALL_S = 10.0
_ENDED = (psutil.NoSuchProcess, psutil.ZombieProcess)


class Unreachable(Exception):
    """The node does not answer."""


class Refused(Exception):
    """The node's own error: `code` and the message for people."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(f"{status} {error.get('code')}: {error.get('message')}")
        self.status = status
        self.code = str(error.get("code"))
        self.message = str(error.get("message"))


class Node:
    """A node and everything that runs for it. Its settings are written before each start."""

    def __init__(self, name: str, folder: Path, namespace: str = "", host: str = "127.0.0.1"):
        self.name = name
        self.home = folder / name
        self._out = folder / f"{name}.out"
        self._log = folder / f"{name}.log"
        self._namespace = namespace
        opened = Home.open(self.home)
        while not _take_ports(opened.ports()):  # another home, not started yet, has one of them
            (self.home / "ports.json").unlink()
            Home.open(self.home)
        self.peer = opened.key().peer
        self.address = f"/ip4/{host}/tcp/{opened.ports().listen}/p2p/{self.peer}"
        self.settings: dict[str, Any] = {
            "listen": [f"/ip4/{host}/tcp/{opened.ports().listen}"],
            "cpus": 2,
            "memory_gb": 4,
            "allow_process": ["*"],
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return self.name

    # -- life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start it; `wait_ready` waits for it."""
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.settings.items()]
        (self.home / "node.toml").write_text("\n".join(lines) + "\n")
        (self.home / "api.json").unlink(missing_ok=True)
        inside = ["ip", "netns", "exec", self._namespace] if self._namespace else []
        argv = [*inside, sys.executable, "-m", "pairio_cli.node_entry", "run", "--json"]
        with self._out.open("wb") as out, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                argv, stdout=out, stderr=log, env=self.environment, start_new_session=True
            )

    def wait_ready(self) -> None:
        """Wait until it answers; raises TimeoutError with its log when it does not."""
        try:
            until(f"{self} answers", self.answers, _READY_S)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.log_tail()}") from None

    def answers(self) -> bool:
        """Say whether its API answers."""
        try:
            return bool(self.call("GET", "status", timeout_s=2)["peerId"] == self.peer)
        except Unreachable:
            return False

    @property
    def started(self) -> bool:
        """Say whether it was started and not killed or stopped since."""
        return self._process is not None

    def processes(self) -> list[psutil.Process]:
        """Return all that runs for it: a watchdog, the node, supervisors, jobs."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            if process.pid != os.getpid() and self._is_mine(process):
                found[process.pid] = process
        for process in list(found.values()):
            try:
                found.update((child.pid, child) for child in process.children(recursive=True))
            except _ENDED:
                continue
        return list(found.values())

    def _is_mine(self, process: psutil.Process) -> bool:
        if self._process is not None and process.pid == self._process.pid:
            return True
        home = str(self.home)
        try:
            if process.environ().get("PAIRIO_HOME") == home:
                return True
            return any(part.startswith(home + "/") for part in process.cmdline())
        except (*_ENDED, psutil.AccessDenied):
            return False

    def kill(self) -> None:
        """The machine loses power: everything of it is killed at once."""
        for _ in range(50):
            alive = self.processes()
            _signal(alive, signal.SIGKILL)
            if self._process is not None:
                self._process.wait(10)
            _, left = psutil.wait_procs(alive, timeout=2)
            if not left and not self.processes():
                break
        self._process = None

    def crash(self) -> None:
        """The node itself is killed; what started it, and its jobs, are not."""
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        until(f"{self} has ended", lambda: not _is_alive(pid), 10)

    def pid(self) -> int:
        """Return the process that serves the API."""
        return int(json.loads((self.home / "api.json").read_text())["pid"])

    def restart_after_crash(self) -> None:
        """Start it again unless something of its own does so."""
        assert self._process is not None
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            return  # a watchdog lives
        self.start()

    def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        assert self._process is not None
        self._process.terminate()
        try:
            code = self._process.wait(20)
        finally:
            if self._process.poll() is not None:
                self._process = None
        return code

    def freeze(self) -> None:
        """The machine stands still, jobs and all."""
        _signal(self.processes(), signal.SIGSTOP)
        _signal(self.processes(), signal.SIGSTOP)  # what was started meanwhile

    def thaw(self) -> None:
        """The machine goes on."""
        _signal(self.processes(), signal.SIGCONT)

    # -- asking ---------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands for this node."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PAIRIO_")}
        return {**clean, "PAIRIO_HOME": str(self.home)}

    def raw(
        self, method: str, path: str, body: Any = None, timeout_s: float = _CALL_S
    ) -> tuple[int, bytes]:
        """Make a call; returns (HTTP status, bytes). Raises Unreachable."""
        try:
            info = json.loads((self.home / "api.json").read_text())
            port = int(info["url"].rpartition(":")[2])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
            connection.sock = connect(self._namespace, port, timeout_s)
            try:
                headers = {"Authorization": f"Bearer {info['token']}"}
                sent = json.dumps(body).encode() if body is not None else None
                if sent is not None:
                    headers["Content-Type"] = "application/json"
                connection.request(method, f"/api/v1/{path}", sent, headers)
                response = connection.getresponse()
                return response.status, response.read()
            finally:
                connection.close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Unreachable(f"{self}: {method} {path[:60]}: {error!r}") from None

    def call(self, method: str, path: str, body: Any = None, timeout_s: float = _CALL_S) -> Any:
        """Make a call; returns its JSON. Raises Refused, Unreachable."""
        status, data = self.raw(method, path, body, timeout_s)
        answer = json.loads(data)
        if status >= 400:
            raise Refused(status, answer.get("error", {}))
        return answer

    def cli(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the command line for this node, as its owner would."""
        inside = ["ip", "netns", "exec", self._namespace] if self._namespace else []
        code = "from pairio_cli.main import main; main()"
        return subprocess.run(
            [*inside, sys.executable, "-c", code, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines that the node logged."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return "\n".join([f"-- log of {self}:", *text.splitlines()[-lines:]])


_ports: set[int] = set()


def _take_ports(ports: Ports) -> bool:
    """Note the ports of a home; False when this process has given one of them to another."""
    wanted = {ports.api, ports.gateway, ports.listen}
    if _ports & wanted:
        return False
    _ports.update(wanted)
    return True


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except _ENDED:
            continue


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
