"""Apps with an image: what of it is hashed, and which nodes run them."""

from dataclasses import replace
from typing import Any

import pytest

from pairio_protocol import effects as ef
from pairio_protocol import events as ev
from pairio_protocol.apps import archives_of, code_of, processor_record, validate_app
from pairio_protocol.cid import RAW, cid_of
from pairio_protocol.errors import DefinitionError
from tests.protocol.test_core_sim import APP, RESOURCES, World, definition

ARCHIVE = cid_of(RAW, b"archive")
IMAGE = {"archive": ARCHIVE, "id": "sha256:" + "ab" * 32}


def _app(**changes: Any) -> dict[str, Any]:
    first, *others = APP["processors"]
    return {**APP, "processors": [{**first, **changes}, *others]}  # type: ignore[dict-item]


def _code(**changes: Any) -> str:
    app = validate_app(_app(**changes))
    return code_of(app, app["processors"][0])


def test_a_processor_without_a_container_keeps_its_bytes() -> None:
    app = validate_app(_app(image="me/app:1"))
    assert "container" not in app["processors"][0]
    record = processor_record(app, app["processors"][0])
    assert "container" not in record
    assert record["image"] == "me/app:1"


def test_code_is_the_image_s_content_and_not_its_name() -> None:
    code = _code(container=IMAGE, image="me/app:1")
    assert code == _code(container=IMAGE, image="me/app:2")
    assert code != _code(container={**IMAGE, "id": "sha256:" + "cd" * 32})
    assert code != _code(container={**IMAGE, "archive": cid_of(RAW, b"another")})
    assert code != _code()


@pytest.mark.parametrize(
    "container",
    [
        "me/app:1",
        {"archive": ARCHIVE},
        {**IMAGE, "archive": "me/app:1"},
        {**IMAGE, "id": "ab" * 32},
        {**IMAGE, "id": "sha256:" + "AB" * 32},
        {**IMAGE, "id": f"{IMAGE['id']}\n"},
    ],
)
def test_what_is_no_image_is_refused(container: Any) -> None:
    with pytest.raises(DefinitionError):
        validate_app(_app(container=container))


def test_archives_of_an_app_are_named_once() -> None:
    both = [{**p, "container": IMAGE} for p in APP["processors"]]  # type: ignore[dict-item]
    assert archives_of(validate_app({**APP, "processors": both})) == [ARCHIVE]
    assert archives_of(validate_app(APP)) == []


def _world(*executors: tuple[str, ...]) -> World:
    world = World(len(executors))
    for core, names in zip(world.cores.values(), executors, strict=True):
        core.ctx.config = replace(core.ctx.config, executors=names, compute=True)
    world.with_service()
    world.call(world.peers[0], ev.InstallApp(4, "lab", _app(container=IMAGE)))
    world.pass_time(2500)
    return world


def _submit(world: World, peer: str, isolation_min: str = "") -> None:
    event = ev.Submit(10, "lab", definition("write"), RESOURCES, isolation_min=isolation_min)
    world.do(peer, event)
    world.settle()
    assert isinstance(world.answers[10], ef.Reply)


def test_a_run_goes_to_the_node_that_has_containers() -> None:
    world = _world(("bwrap",), ("bwrap",), ("container", "bwrap"))
    _submit(world, world.peers[0])
    assert world.executed == [(world.peers[2], "write")]


def test_no_other_sandbox_is_taken_in_place_of_a_container() -> None:
    world = _world(("bwrap",), ("bwrap", "process"))
    _submit(world, world.peers[0])
    world.pass_time(20_000)
    assert world.executed == []
    core = world.cores[world.peers[0]]
    (errand,) = (core.coordinator.errand_of(name) for name in core.coordinator.wishes)
    assert errand is not None
    declined = {(d.reason, d.needs, d.has) for _, d in errand.declined.values()}
    assert ("executor", "container", "bwrap") in declined


def test_a_container_is_not_enough_for_a_run_that_needs_strong_isolation() -> None:
    world = _world(("container",))
    _submit(world, world.peers[0], isolation_min="strong")
    assert world.executed == []


def test_a_node_without_a_sandbox_of_its_own_still_runs_images() -> None:
    world = _world(("container",))
    core = world.cores[world.peers[0]]
    core.ctx.config = replace(core.ctx.config, isolation="none")
    _submit(world, world.peers[0])
    assert world.executed == [(world.peers[0], "write")]
    plain = ev.Submit(11, "lab", definition("count", {"input": f"ipfs://{ARCHIVE}"}), RESOURCES)
    world.do(world.peers[0], plain)
    world.settle()
    assert world.executed == [(world.peers[0], "write")]
