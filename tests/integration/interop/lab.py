"""Two pairio nodes and a Kubo that is connected with the one that submits."""

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pairio._http import Api
from tests.integration.conftest import RunningNode, launch
from tests.integration.kubo import Kubo, StartKubo

__all__ = ["PATIENCE_S", "Lab", "make_lab", "random_file", "random_folder"]

PATIENCE_S = 60.0
APP = """
import os
from pairio.sdk import App, BaseModel, Field, InputFile, OutputFile, ProcessorBase


class Context(BaseModel):
    data: InputFile = Field(description="A file or folder")
    output: OutputFile = Field(description="The same, byte by byte")


class Copy(ProcessorBase):
    name = "copy"
    executable = "main.py"

    @staticmethod
    def run(context: Context) -> None:
        context.data.download("here")
        context.output.upload("here")


app = App("copying")
app.add_processor(Copy)
if __name__ == "__main__":
    app.run()
"""


class Lab:
    """`submitter` computes nothing and is connected with `kubo`; `worker` is not, until somebody
    says so; `lone` submits too, and never is."""

    def __init__(self, folder: Path, nodes: dict[str, RunningNode], kubo: Kubo):
        self.folder = folder
        self.submitter = nodes["submitter"]
        self.worker = nodes["worker"]
        self.lone = nodes["lone"]
        self.kubo = kubo

    def pairio(self, *arguments: str, node: RunningNode | None = None) -> str:
        """Run `pairio ARGUMENTS`; return what it prints."""
        ran = (node or self.submitter).cli(*arguments)
        assert ran.returncode == 0, (arguments, ran.stdout, ran.stderr)
        return ran.stdout

    def copied(self, source: str) -> dict[str, Any]:
        """Have a job done that copies an input; return it."""
        said = self.pairio("submit", "copying/copy", "-i", f"data={source}", "--wait", "--json")
        job: dict[str, Any] = json.loads(said)
        assert job["status"] == "completed", job
        return job

    def added(self, path: Path) -> str:
        """Add a file to the submitter; return its CID."""
        found = json.loads((self.submitter.home / "api.json").read_text())
        api = Api(found["url"], found["token"])
        try:
            with path.open("rb") as file:
                return str(api.upload(file)["cid"])
        finally:
            api.close()

    def connect(self, node: RunningNode) -> None:
        """Have Kubo dial a node."""
        self.kubo.cli("swarm", "connect", node.info["addresses"][0])

    def until_it_asks(self, node: RunningNode) -> None:
        """Wait until a node knows that Kubo speaks Bitswap."""
        ends = time.monotonic() + PATIENCE_S
        while self.kubo.peer_id not in node.get("status")["bitswap"]["peers"]:
            assert time.monotonic() < ends, "the node does not know that Kubo speaks Bitswap"
            time.sleep(0.05)  # house: waiting for another process

    def peak_mb(self, node: RunningNode) -> float:
        """Return the most memory that a node ever had."""
        pid = json.loads((node.home / "api.json").read_text())["pid"]
        status = Path(f"/proc/{psutil.Process(pid).pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _until_the_app_is_known(node: RunningNode) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not any(s["apps"] for s in node.get("services")["services"]):
        assert time.monotonic() < ends, "the worker does not hear of the app"
        time.sleep(0.05)  # house: waiting for another process


@contextmanager
def make_lab(folder: Path, start_kubo: StartKubo) -> Iterator[Lab]:
    """Start all three."""
    kubo = start_kubo()
    # The worker names the submitter; the submitter names Kubo, and dials it itself.
    submitter = launch(folder / "submitter", "--no-compute", "--ipfs-peer", kubo.addresses[0])
    nodes = {"submitter": submitter}
    try:
        known = ("--bootstrap", submitter.info["addresses"][0])
        nodes["worker"] = worker = launch(folder / "worker", *known, "--allow-process", "copying")
        nodes["lone"] = lone = launch(folder / "lone", *known, "--no-compute")
        lab = Lab(folder, nodes, kubo)
        (folder / "app").mkdir()
        (folder / "app" / "main.py").write_text(APP)
        lab.pairio("service", "create", "lab")
        lab.pairio("app", "install", "lab", str(folder / "app"))
        lab.pairio("service", "grant", "lab", worker.info["peerId"], "--roles", "compute")
        lab.pairio("service", "grant", "lab", lone.info["peerId"], "--roles", "submit")
        _until_the_app_is_known(worker)
        _until_the_app_is_known(lone)
        lab.until_it_asks(submitter)
        yield lab
    finally:
        for node in nodes.values():
            if node.process.poll() is None:
                node.stop()


def random_file(path: Path, size_bytes: int, seed: int) -> Path:
    """Write a file of bytes that no other seed gives."""
    source, left = random.Random(seed), size_bytes
    with path.open("wb") as file:
        while left:
            left -= file.write(source.randbytes(min(left, 2**20)))
    return path


def random_folder(path: Path, size_bytes: int, seed: int) -> Path:
    """Make a folder with folders, an empty one, odd names, and files of so many bytes in all."""
    deep = path / "sub folder" / "déep"
    deep.mkdir(parents=True)
    (path / "empty").mkdir()
    (path / "empty file").write_bytes(b"")
    random_file(path / "half.bin", size_bytes // 2, seed)
    random_file(deep / "other half.bin", size_bytes - size_bytes // 2, seed + 1)
    return path
