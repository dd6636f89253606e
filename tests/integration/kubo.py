"""A real Kubo for tests: pinned (`scripts/kubo`), on loopback only, alone in the world.

It dials nobody by itself: no bootstrap, no mDNS, no AutoConf, AutoTLS, relays or telemetry. Two of
them know each other after `connect`. Ports are free ones, kept over a restart.
"""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Kubo", "StartKubo", "kubo_program", "starter"]

ROOT = Path(__file__).parents[2]
#: A start takes a second on an idle machine.
START_S = 60.0


def kubo_program() -> Path:
    """The program; missing, it fails the test in CI, and skips it elsewhere."""
    found = subprocess.run(
        [ROOT / "scripts" / "kubo", "--cached"], capture_output=True, text=True, timeout=30
    )
    if found.returncode == 0:
        return Path(found.stdout.strip())
    if os.environ.get("CI") == "true":
        pytest.fail(found.stderr.strip())
    pytest.skip(found.stderr.strip())


class Kubo:
    """One daemon with a repository of its own in `folder`."""

    def __init__(self, program: Path, folder: Path, settings: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._auth: list[str] = []
        self.cli("init", "--profile=test")
        config = json.loads((folder / "config").read_text())
        config["Addresses"]["Swarm"] = ["/ip4/127.0.0.1/tcp/0"]
        # By sweeps, the default, a daemon that found nobody at its start announces minutes later.
        config["Provide"] = {"Strategy": "pinned", "DHT": {"SweepEnabled": False}}
        config["Routing"] = {"Type": "dhtserver", "LoopbackAddressesOnLanDHT": True}
        config["AutoConf"] = {"Enabled": False}
        config["AutoTLS"] = {"Enabled": False}
        config["Swarm"]["DisableNatPortMap"] = True
        config["Swarm"]["RelayClient"] = {"Enabled": False}
        config["Swarm"]["Transports"] = {
            "Network": {"QUIC": False, "WebTransport": False, "WebRTCDirect": False}
        }
        config |= settings or {}
        rules = config.get("API", {}).get("Authorizations") or {}
        self._auth = [f"--api-auth={rule['AuthSecret']}" for rule in rules.values()][:1]
        (folder / "config").write_text(json.dumps(config))

    def start(self) -> None:
        """Start the daemon, again on the ports it had before."""
        log = (self.folder / "daemon.log").open("wb")
        for name in ("api", "gateway"):
            (self.folder / name).unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [self._program, "daemon"], env=self._environment, stdout=log, stderr=log
        )
        log.close()
        ends = time.monotonic() + START_S
        while b"Daemon is ready" not in self.log():
            assert self._process.poll() is None, self.log().decode()
            assert time.monotonic() < ends, self.log().decode()
            time.sleep(0.05)  # house: waiting for another process
        self.api = (self.folder / "api").read_text().strip()
        config = json.loads((self.folder / "config").read_text())
        known = json.loads(self.cli("id").stdout)
        self.peer_id: str = known["ID"]
        self.addresses: list[str] = known["Addresses"]
        self.version: str = known["AgentVersion"]
        config["Addresses"]["API"] = self.api
        config["Addresses"]["Swarm"] = [a.rpartition("/p2p/")[0] for a in self.addresses]
        (self.folder / "config").write_text(json.dumps(config))

    def log(self) -> bytes:
        """What the daemon said since it started."""
        return (self.folder / "daemon.log").read_bytes()

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "IPFS_PATH": str(self.folder), "IPFS_TELEMETRY": "off"}

    @property
    def url(self) -> str:
        """The API as http URL."""
        _, _, host, _, port = self.api.split("/")
        return f"http://{host}:{port}"

    @property
    def gateway_url(self) -> str:
        """Its own gateway, for comparisons."""
        return (self.folder / "gateway").read_text().strip()

    @property
    def process_id(self) -> int:
        """The daemon's."""
        assert self._process is not None
        return self._process.pid

    def cli(self, *arguments: str, input: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run `ipfs ARGUMENTS` against this daemon; raises when it fails."""
        done = subprocess.run(
            [self._program, *self._auth, *arguments],
            env=self._environment,
            input=input,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, (arguments, done.stderr.decode())
        return done

    def rpc(self, path: str, body: bytes | None = None) -> bytes:
        """POST to `/api/v0/PATH` and return the answer; `body` goes as the file `data`."""
        headers, data = {}, b""
        if body is not None:
            edge = b"0f9a1c"
            headers["Content-Type"] = f"multipart/form-data; boundary={edge.decode()}"
            part = b'Content-Disposition: form-data; name="data"; filename="data"\r\n\r\n'
            data = b"--" + edge + b"\r\n" + part + body + b"\r\n--" + edge + b"--\r\n"
        asked = urllib.request.Request(f"{self.url}/api/v0/{path}", data, headers, method="POST")
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return bytes(answer.read())

    def connect(self, other: "Kubo") -> None:
        """Dial another daemon."""
        self.cli("swarm", "connect", other.addresses[0])

    def stop(self) -> None:
        """End the daemon, by its id; may be started again."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None


class StartKubo:
    """Starts daemons by name below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = kubo_program()
        self._started: list[Kubo] = []

    def __call__(self, name: str = "kubo", **settings: Any) -> Kubo:
        """Start one; `settings` replace whole tables of its config."""
        folder = self._folder / name
        folder.mkdir()
        kubo = Kubo(self._program, folder, settings)
        self._started.append(kubo)
        kubo.start()
        return kubo

    def stop_all(self) -> None:
        """End what was started."""
        for kubo in self._started:
            kubo.stop()


def starter(folder: Path) -> Iterator[StartKubo]:
    """The body of the fixtures: yields a starter, ends its daemons with the test."""
    start = StartKubo(folder)
    try:
        yield start
    finally:
        start.stop_all()
