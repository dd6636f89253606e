"""Inputs that a job reads by streams: its node is its only door, and opens for these inputs alone.

The jobs are real ones, in a sandbox: what they try they write into their output. No other node and
no other job has a way to a job's streams: they are a socket that its sandbox shows, or a port of
loopback behind a word that only the job is told.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from pairio_protocol.service import Chain
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.table import attack
from tests.integration.range_web import range_web

PART = "Inputs that a job reads by streams"
NO_INPUT = "refused: a job's read of what is no input of it"
NO_REQUEST = "refused: a job's read that is no GET or HEAD"
SECRET = b"of this machine's own network"
SPEC = {
    "name": "reading",
    "processors": [
        {"name": "tries", "executable": "main.py", "outputs": [{"name": "output"}],
         "inputs": [{"name": "data", "stream": True}],
         "parameters": [{"name": "says", "type": "str"}]}
    ],
}  # fmt: skip
#: Sends each of what it is told to its node, on a connection of its own, and writes what comes.
MAIN = """
import json, os, socket, time, urllib.parse
job = json.load(open(os.environ["PAIRIO_JOB_FILE"]))
url = urllib.parse.urlsplit(job["inputs"][0]["url"])
heard = []
for text in json.loads(job["parameters"][0]["value"]):
    token = url.path.split("/")[1]
    if text == "WAIT":
        print("it waits", flush=True)
        time.sleep(600)
    text = text.replace("PATH", url.path).replace("TOKEN", token).replace("HOST", url.netloc)
    with socket.create_connection((url.hostname, url.port), 10) as made:
        made.settimeout(10)
        try:
            made.sendall(text.encode("latin-1"))
            heard.append(made.recv(12)[9:12].decode("latin-1"))
        except OSError as error:
            heard.append(type(error).__name__)
json.dump([token, heard], open(job["outputs"][0]["path"], "w"))
"""


async def reading(lab: Lab) -> Chain:
    """Make, once, a service with the app; the node computes in it."""
    if "reading" in lab.made:
        found: Chain = lab.made["reading"]
        return found
    admins = [lab.root.key.peer, lab.node.info["peerId"]]
    chain = lab.made["reading"] = await lab.found(
        "reading",
        lab.add("node", "submit", "compute"),
        lab.add("reader", "read"),
        admins=admins,
    )
    folder = lab.work / "reading"
    folder.mkdir()
    (folder / "main.py").write_text(MAIN)
    (folder / "spec.json").write_text(json.dumps(SPEC))
    await lab.call("POST", f"services/{chain.service}/apps", {"source": str(folder)})
    return chain


async def _submit(lab: Lab, source: str, says: list[str]) -> Any:
    chain = await reading(lab)
    definition = {
        "appName": "reading", "processorName": "tries", "outputFiles": [{"name": "output"}],
        "inputFiles": [{"name": "data", "url": source, "fileBaseName": "data.txt"}],
        "parameters": [{"name": "says", "value": json.dumps(says)}],
    }  # fmt: skip
    resources = {"numCpus": 1, "memoryGb": 1, "numGpus": 0, "timeSec": 60}
    body = {"serviceName": chain.service, "jobDefinition": definition,
            "requiredResources": resources}  # fmt: skip
    return await lab.call("POST", "jobs", body)


@asynccontextmanager
async def waiting(lab: Lab) -> AsyncIterator[Any]:
    """Run a job that says something and waits, while the block runs."""
    cid = await lab.upload(b"what the job may read " + os.urandom(8))
    job = await _submit(lab, f"ipfs://{cid}", ["WAIT"])
    try:
        assert await until(lambda: lab.get(f"jobs/{job['requestId']}")["attempts"]), "it is not run"
        yield lab.get(f"jobs/{job['requestId']}")
    finally:
        await lab.call("POST", f"jobs/{job['requestId']}/cancel")


async def _tried(lab: Lab, *says: str) -> tuple[str, list[str]]:
    """Let a job with a streamed input say this to its node; return the word that is in its URL, and
    the status of each answer."""
    cid = await lab.upload(b"what the job may read " + os.urandom(8))
    job = await _submit(lab, f"ipfs://{cid}", ["GET PATH HTTP/1.1\r\nHost: x\r\n\r\n", *says])
    job = await lab.call("GET", f"jobs/{job['requestId']}/wait?timeoutSec=60")
    assert job["status"] == "completed", (job["status"], job["error"], job["attempts"])
    token, heard = await lab.output(job["outputFileResults"][0]["cid"])
    assert heard[0] == "200", f"its own input is not given: {heard}"
    return token, heard[1:]


def _get(target: str) -> str:
    return f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"


@attack(PART, "another URL than the job's inputs", has="an app of a service",
        does="asks the node for URLs of the machine's own network, as of a proxy",
        counted=NO_INPUT)  # fmt: skip
async def _another_url(lab: Lab) -> None:
    with range_web() as web:
        web.files["/secret"] = SECRET
        told = [web.url("/secret"), "http://169.254.169.254/latest/", "/" + web.url("/secret"),
                f"/TOKEN/0/../../{web.host}/secret", f"PATH?{web.url('/secret')}",
                f"/TOKEN/0/x@{web.host}/secret"]  # fmt: skip
        _, heard = await _tried(lab, *map(_get, told))
        assert heard == ["404"] * len(told), heard
        assert not web.asked, "somebody asked for it"


@attack(PART, "inputs that the job has not", has="an app of a service",
        does="asks for other places of its list, and for files of the node's home",
        counted=NO_INPUT)  # fmt: skip
async def _another_input(lab: Lab) -> None:
    told = ["/TOKEN/1/x", "/TOKEN/9999/x", "/TOKEN/-1/x", "/TOKEN/0/../../node.key",
            "/TOKEN/0/%2e%2e/node.key", "/", "/etc/passwd"]  # fmt: skip
    _, heard = await _tried(lab, *map(_get, told))
    assert heard == ["404"] * len(told), heard


@attack(PART, "another job's input", has="an app of a service, the URL that another job is told",
        does="asks for it", counted=NO_INPUT)  # fmt: skip
async def _another_job(lab: Lab) -> None:
    token, _ = await _tried(lab)
    _, heard = await _tried(lab, _get(f"/{token}/0/data.txt"))
    assert heard == ["404"], heard


@attack(PART, "what is no read", has="an app of a service",
        does="sends garbage, a head without end, a body, a tunnel, and writes",
        counted=NO_REQUEST)  # fmt: skip
async def _no_read(lab: Lab) -> None:
    told = ["\xff\xfe\r\n\r\n", "GET PATH HTTP/1.1\r\nHost: x\r\nX: " + "x" * 12_000,
            "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n",
            "PUT PATH HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET PATH HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"]  # fmt: skip
    _, heard = await _tried(lab, *told)
    assert heard == ["400", "400", "405", "405", "400"], heard


@attack(PART, "an input of the machine's own network", has="role submit",
        does="asks for a job that is to read loopback, or a cloud's metadata, by a stream",
        refused_by="the owner's rules: nobody is asked, and the attempt says why")  # fmt: skip
async def _inside(lab: Lab) -> bool:
    with range_web() as web:
        web.files["/secret"] = SECRET
        for url in (web.url("/secret"), "http://169.254.169.254/latest/meta-data/"):
            job = await _submit(lab, url, [])
            assert await until(partial(_reason, lab, job)), "no attempt is made"
            reason = _reason(lab, job)
            assert "is not fetched on this node" in reason, reason
            await lab.call("POST", f"jobs/{job['requestId']}/cancel")
        return not web.asked


def _reason(lab: Lab, job: Any) -> str:
    attempts = lab.get(f"jobs/{job['requestId']}")["attempts"]
    return next((str(one["reason"]) for one in attempts if one["reason"]), "")
