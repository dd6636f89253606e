"""Many submits in one call: in order, at once, each with its own answer or error."""

from typing import Any

import trio

from pairio_node.api.batch import submit_all
from pairio_node.errors import ConflictError


class _Node:
    """Answers the last submit first; refuses the job called `bad`."""

    def __init__(self) -> None:
        self.waiting = 0
        self.keys: list[str] = []

    async def submit(self, body: dict[str, Any], key: str) -> dict[str, Any]:
        self.keys.append(key)
        name = body["jobDefinition"]["processorName"]
        if name == "bad":
            raise ConflictError("it is bad", hint="mend it")
        self.waiting += 1
        while self.waiting < 3:  # goes on when all three are here
            await trio.lowlevel.checkpoint()
        return {"jobId": name}


def _job(name: str, **more: Any) -> dict[str, Any]:
    return {"jobDefinition": {"appName": "a", "processorName": name}, **more}


async def test_answers_come_in_order_and_one_failure_is_its_own() -> None:
    entries = [_job("one"), _job("bad"), _job("two"), _job("x", colour="red"), 7, _job("three")]
    node = _Node()
    with trio.fail_after(5):  # each waits for the others: they are submitted at once
        answers = await submit_all(node.submit, entries)
    assert [a.get("jobId") for a in answers] == ["one", None, "two", None, None, "three"]
    assert answers[1] == {"error": {"message": "it is bad", "hint": "mend it", "code": "conflict"}}
    assert answers[3]["error"]["message"].startswith("colour: ")
    assert answers[4]["error"]["code"] == "invalid"


async def test_nothing_is_answered_with_nothing() -> None:
    assert await submit_all(_Node().submit, []) == []


async def test_each_job_of_a_call_with_a_key_has_one_of_its_own() -> None:
    node = _Node()
    await submit_all(node.submit, [_job("one"), 7, _job("two"), _job("three")], "k")
    assert sorted(node.keys) == ["k/0", "k/2", "k/3"]
