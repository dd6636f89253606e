"""Settings: what is given holds, what is missing has a default, what is wrong is said in words."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from pairio_node.config import NodeConfig, load_config, peer_in
from pairio_node.errors import UserError
from pairio_protocol.limits import RELAYS_MAX
from pairio_protocol.signing import SigningKey

PEER = SigningKey(b"k" * 32).peer
ADDRESS = f"/ip4/10.0.0.1/tcp/4001/p2p/{PEER}"


def _load(path: Path, text: str, **overrides: Any) -> NodeConfig:
    (path / "node.toml").write_text(text)
    return load_config(path / "node.toml", overrides)


def test_without_a_file_everything_has_a_default(tmp_path: Path) -> None:
    config = load_config(tmp_path / "node.toml", {})
    assert config == NodeConfig()
    assert config.cpu_millicores >= 1000
    assert config.memory_mib >= 1
    assert 0 < config.quota_for(tmp_path) <= 100 * 2**30
    free_bytes = config.quota_for(tmp_path) * 5
    if free_bytes < 400 * 2**30:  # else it is 100 GiB anyway
        grown = config.quota_for(tmp_path, held_bytes=50 * 2**30)
        assert grown == pytest.approx(config.quota_for(tmp_path) + 10 * 2**30, rel=0.01)


def test_the_file_holds_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    text = f'cpus = 1.5\nmemory_gb = 2\ncompute = false\nbootstrap = ["{ADDRESS}"]\n'
    config = _load(tmp_path, text, cpus=0.25, gpus=None)
    assert (config.cpu_millicores, config.memory_mib, config.gpus) == (250, 2048, 0)
    assert (config.compute, config.bootstrap) == (False, (ADDRESS,))


def test_what_is_given_is_never_rounded_down_to_the_default(tmp_path: Path) -> None:
    config = _load(tmp_path, "cpus = 0.0001\nmemory_gb = 0.0001\nquota_bytes = 1\n")
    assert (config.cpu_millicores, config.memory_mib) == (1, 1)
    assert config.quota_for(tmp_path) == 1


def test_an_unknown_setting_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown setting 'cpu' in") as caught:
        _load(tmp_path, "cpu = 2\n")
    assert "cpus, memory_gb" in str(caught.value.hint)
    assert str(tmp_path) in caught.value.message


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*node\.toml: .*line 1"):
        _load(tmp_path, "cpus = = 2\n")
    (tmp_path / "node.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"cannot read .*node\.toml"):
        load_config(tmp_path / "node.toml", {})


@pytest.mark.parametrize(
    ("line", "needs"),
    [
        ('cpus = "2"', "a number"),
        ("cpus = true", "a number"),
        ("gpus = 1.5", "a whole number"),
        ("gpus = inf", "a whole number"),
        ("gpus = nan", "a whole number"),
        ("lease_ms = [1]", "a whole number"),
        ("compute = 1", "true or false"),
        ('compute = "yes"', "true or false"),
        (f'bootstrap = "{ADDRESS}"', "a list of texts"),
        ("trust = [1]", "a list of texts"),
        ("allow_process = true", "a list of texts"),
    ],
)
def test_a_value_of_the_wrong_type_is_said(line: str, needs: str, tmp_path: Path) -> None:
    name = line.partition(" ")[0]
    with pytest.raises(UserError, match=f"setting {name} is ") as caught:
        _load(tmp_path, line)
    assert needs in str(caught.value.hint)


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("cpus = -1", "0 to 4096"),
        ("cpus = 5000", "0 to 4096"),
        ("cpus = nan", "0 to 4096"),
        ("memory_gb = inf", "0 to 65536"),
        ("gpus = -1", "0 to 1024"),
        ("api_port = 65536", "0 to 65535"),
        ("gateway_port = -1", "0 to 65535"),
        ("quota_bytes = -1", "0 to "),
        ("lease_ms = 999", "1000 to 3600000"),
        ("replicas = 17", "0 to 16"),
        ("gossip_loss_percent = 101", "0 to 100"),
        ("url_input_bytes_max = 0", "1 to"),
        ('allow_hosts = ["http://lab/"]', "HOST or HOST:PORT"),
    ],
)
def test_a_value_out_of_range_is_said_with_the_range(
    line: str, allowed: str, tmp_path: Path
) -> None:
    name = line.partition(" ")[0]
    with pytest.raises(UserError, match=f"setting {name} is ") as caught:
        _load(tmp_path, line)
    assert allowed in str(caught.value.hint)


@pytest.mark.parametrize("value", [-0.5, math.inf, math.nan])
def test_the_command_line_is_checked_like_the_file(value: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="setting cpus is"):
        load_config(tmp_path / "node.toml", {"cpus": value})


def test_a_bootstrap_address_names_its_peer() -> None:
    assert peer_in(ADDRESS) == PEER


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("/ip4/10.0.0.1/tcp/4001", "names no peer"),
        ("10.0.0.1:4001", "names no peer"),
        (PEER, "names no peer"),
        (f"10.0.0.1/p2p/{PEER}", "names no peer"),
        ("/ip4/10.0.0.1/tcp/4001/p2p/", "bootstrap: "),
        ("/ip4/10.0.0.1/tcp/4001/p2p/QmNoEd25519Key", "bootstrap: "),
        (f"/ip4/10.0.0.1/tcp/4001/p2p/{PEER[:-1]}", "bootstrap: "),
    ],
)
def test_a_bootstrap_address_without_a_peer_is_refused(
    address: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        _load(tmp_path, f'bootstrap = ["{address}"]\n')


def test_relays_are_named_by_address_and_lead_nowhere_else(tmp_path: Path) -> None:
    assert _load(tmp_path, f'relays = ["{ADDRESS}"]\n').relays == (ADDRESS,)
    for relays, says in (
        (["/ip4/10.0.0.1/tcp/4001"], "relays address"),
        ([f"{ADDRESS}/p2p-circuit/p2p/{PEER}"], "leads through another relay"),
        ([ADDRESS] * (RELAYS_MAX + 1), f"names {RELAYS_MAX + 1} relays"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            _load(tmp_path, f"relays = {relays}\n")
        assert caught.value.hint or "names no peer" in caught.value.message
    with pytest.raises(UserError, match="relay_for: "):
        _load(tmp_path, 'relay_for = ["alice"]\n')
    with pytest.raises(UserError, match="setting relay_reservations is 0"):
        _load(tmp_path, "relay_reservations = 0\n")
    assert not _load(tmp_path, "").relay


def test_nowhere_to_listen_is_said_alone(tmp_path: Path) -> None:
    assert _load(tmp_path, 'listen = ["none"]\n').listen == ("none",)
    with pytest.raises(UserError, match="listen address 'none'"):
        _load(tmp_path, 'listen = ["none", "/ip4/127.0.0.1/tcp/1"]\n')


def test_trust_is_for_peer_ids(tmp_path: Path) -> None:
    assert _load(tmp_path, f'trust = ["{PEER}"]\n').trust == (PEER,)
    with pytest.raises(UserError, match="trust: "):
        _load(tmp_path, 'trust = ["alice"]\n')


@pytest.mark.parametrize(
    "address", ["127.0.0.1:4001", "/ip4/127.0.0.1/tcp/70000", "/ip6/127.0.0.1/tcp/1", "/tcp/1"]
)
def test_an_address_nobody_can_listen_on_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="listen address"):
        _load(tmp_path, f'listen = ["{address}"]\n')
    assert _load(tmp_path, 'listen = ["/ip6/::/tcp/0"]\n').listen == ("/ip6/::/tcp/0",)
