"""The Kubo that tests use: the pinned version, two of them alone in the world."""

import pytest

from tests.integration.kubo import StartKubo

pytestmark = pytest.mark.integration


def test_two_daemons_on_loopback_exchange_content_and_know_nobody_else(
    start_kubo: StartKubo,
) -> None:
    first, second = start_kubo("first"), start_kubo("second")
    assert first.version.startswith("kubo/0.43.0")
    assert all(a.startswith("/ip4/127.0.0.1/tcp/") for a in first.addresses)
    cid = first.rpc("add?quieter=true&cid-version=1", b"hello world\n")
    assert b"bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4" in cid
    first.connect(second)
    found = second.cli("cat", "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4")
    assert found.stdout == b"hello world\n"
    peers = second.cli("swarm", "peers").stdout.decode().split()
    assert [p.rpartition("/")[2] for p in peers] == [first.peer_id]


def test_a_daemon_that_was_killed_comes_back_on_its_ports(start_kubo: StartKubo) -> None:
    kubo = start_kubo()
    before = (kubo.api, kubo.addresses)
    kubo.kill()
    kubo.start()
    assert (kubo.api, kubo.addresses) == before
