"""A node that starts again: with its own disk, and with an old backup of it."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from pairio_protocol.messages import Changes, Digest, Hello, HelloService
from pairio_protocol.service import Chain
from tests.integration.attacks.doors import NOTHING
from tests.integration.attacks.lab import Lab, until
from tests.integration.attacks.table import attack

RESTART = "A restart"


@attack(RESTART, "an older head, offered to a restarted node", has="role submit",
        does="is the first to greet it, with the list of long ago",
        refused_by="the newest list that it has seen is on its disk")  # fmt: skip
async def _rollback(lab: Lab) -> bool:
    await lab.restart("mallory", "root")
    old = Chain()
    for change in lab.chain.changes()[:2]:
        old.add(change)
    entry = HelloService(lab.service, old.epoch, old.head, old.digest)
    lab.mallory.say(Hello(bytes(16), (entry,)), Digest(lab.service, bytes(40), old.digest))
    data = tuple(change.encode() for change in old.changes())
    lab.mallory.say(Changes(lab.service, data, False))
    await lab.has_taken(lab.mallory)
    return bool(lab.get("services/lab")["head"] == lab.chain.head)


@attack(RESTART, "an old backup of the node's disk", has="the key of a member removed since then",
        does="writes to the node when it is back",
        counted="refused: a segment of somebody who is no member")  # fmt: skip
async def _backup(lab: Lab) -> None:
    chain, key = Chain(), lab.root.key
    create = {"op": "create", "name": "backup", "admins": [key.peer], "threshold": 1,
              "nonce": os.urandom(8).hex()}  # fmt: skip
    members = {"node": lab.node.info["peerId"], "x": lab.xavier.key.peer}
    adds = [{"op": "add", "member": name, "key": peer, "roles": ["submit"]}
            for name, peer in members.items()]  # fmt: skip
    chain.add(chain.propose([create, *adds], [key], 1))
    lab.aside.add(chain.service)
    lab.change_all(chain)
    assert await until(lambda: chain.service in lab.heads()), "the node is in it"
    database, backup = lab.node.home / "node.db", lab.work / "backup.db"
    _copy(database, backup)
    chain.add(chain.propose([{"op": "remove", "member": "x"}], [key], 2))
    lab.change_all(chain)
    assert await until(lambda: lab.heads().get(chain.service) == chain.head), "he is removed"

    def restore() -> None:
        for path in database.parent.glob("node.db*"):
            path.unlink()
        shutil.copy(backup, database)

    await lab.restart("root", "xavier", meanwhile=restore)
    assert lab.heads()[chain.service] != chain.head, "it knows no better"
    entry = HelloService(chain.service, chain.epoch, chain.head, chain.digest)
    lab.root.say(Hello(bytes(16), (entry,)))  # an honest member greets it, and is asked
    data = tuple(change.encode() for change in chain.changes())
    lab.root.say(Changes(chain.service, data, False))
    assert await until(lambda: lab.heads()[chain.service] == chain.head), "it has caught up"
    lab.xavier.push(lab.xavier.segment(chain.service, 1, NOTHING))


def _copy(database: Path, to: Path) -> None:
    """Copy the disk of a running node, as a backup would."""
    with closing(sqlite3.connect(database)) as live, closing(sqlite3.connect(to)) as copy:
        live.backup(copy)
