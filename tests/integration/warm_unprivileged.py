"""`python -m tests.integration.warm_unprivileged FOLDER`: warm jobs of a node that is not root.
Prints one JSON line: what workers the app got, why, and what two jobs said."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from pairio_node.runner.zygote.pool import WarmLimits
from pairio_node.streams import JobStreams
from pairio_node.urls import UrlRules
from tests.integration.warm_lab import Lab, RunInput, lab

_CODE = (
    "import socket\n"
    "server = socket.create_server(('127.0.0.1', 0))\n"
    "socket.create_connection(server.getsockname())\n"
    "text = open(context.own.local_file_name).read()\n"
    "print(json.dumps([text, os.getuid(), os.listdir('/dev/shm')]))\n"
    "open('/dev/shm/trace', 'w')\n"
)


_NEEDY = (
    "import urllib.request\n"
    "opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))\n"
    "text = opener.open(context.data.get_url(), timeout=20).read().decode()\n"
    "print(json.dumps([text, len(open('/run/secrets/TOKEN').read())]))\n"
)


async def _with_needs(made: Lab) -> list[Any]:
    """Run a job with a secret and a streamed input."""
    spec = made.spec(_NEEDY, secrets={"TOKEN": "correct horse"})
    streams = JobStreams(spec.work_dir / "streams", UrlRules(), own_network=True)
    streams.add_file(0, made.top.parent / "own.txt")
    async with streams.serving():
        place = spec.work_dir / "in" / "0" / "own.txt"
        place.parent.mkdir(parents=True)
        file = RunInput("data", "own.txt", place, streams.url(0, "own.txt"), is_here=False)
        ready = replace(spec, inputs=(file,), stream_folder=streams.shown)
        outcome = await made.run_spec(ready)
    assert outcome.status == "completed", outcome
    return list(json.loads(outcome.console))


async def _main(top: Path) -> None:
    own = top / "own.txt"
    own.write_text("content")
    found = {}
    for mode, kind in (("on", "zygote"), ("single", "single")):
        (top / mode).mkdir()
        async with lab(top / mode, WarmLimits(mode=mode)) as made:
            await made.warm(kind)
            inputs = (RunInput("own", "own.txt", own),)
            said = [await made.told(_CODE, inputs=inputs) for _ in range(2)]
            status = made.status
            needs = await _with_needs(made)
            needs.append(made.status["jobsWarm"] - status["jobsWarm"])
            found[kind] = {"said": said, "status": status, "needs": needs}
    print(json.dumps(found))


trio.run(_main, Path(sys.argv[1]))
