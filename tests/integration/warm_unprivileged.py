"""`python -m tests.integration.warm_unprivileged FOLDER`: warm jobs of a node that is not root.
Prints one JSON line: what workers the app got, why, and what two jobs said."""

import json
import sys
from pathlib import Path

import trio

from pairio_node.runner.zygote.pool import WarmLimits
from tests.integration.warm_lab import RunInput, lab

_CODE = (
    "import socket\n"
    "server = socket.create_server(('127.0.0.1', 0))\n"
    "socket.create_connection(server.getsockname())\n"
    "text = open(context.own.local_file_name).read()\n"
    "print(json.dumps([text, os.getuid(), os.listdir('/dev/shm')]))\n"
    "open('/dev/shm/trace', 'w')\n"
)


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
            found[kind] = {"said": said, "status": made.status}
    print(json.dumps(found))


trio.run(_main, Path(sys.argv[1]))
