"""A node's home: made once, private, locked, and never destroyed."""

import json
import os
import re
import shutil
import stat
from pathlib import Path

import pytest

from pairio_node.errors import ConflictError, UserError
from pairio_node.home import Home, default_home


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_missing_home_is_made_with_its_parents_for_the_owner_alone(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "a" / "b")
    assert _mode(home.path) == 0o700
    assert {p.name for p in home.path.iterdir()} == {"node.key", "ports.json", "blocks", "jobs"}
    assert _mode(home.path / "blocks") == _mode(home.path / "jobs") == 0o700


def test_a_directory_with_other_things_becomes_a_home_and_they_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "node.toml").write_text("cpus = 2\n")
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "kept").write_text("block")
    home = Home.open(tmp_path)
    assert len(home.seed()) == 32
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "node.toml").read_text() == "cpus = 2\n"
    assert (tmp_path / "blocks" / "kept").read_text() == "block"


def test_key_and_secrets_are_for_the_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        home = Home.open(tmp_path / "home")
        home.secret("links.key")
        home.write_api({"token": "t"})
    finally:
        os.umask(before)
    for name in ("node.key", "links.key", "api.json"):
        assert _mode(home.path / name) == 0o600, name


def test_key_ports_and_secrets_are_kept(tmp_path: Path) -> None:
    first, second = Home.open(tmp_path), Home.open(tmp_path)
    assert first.key().peer == second.key().peer
    assert first.ports() == second.ports()
    assert first.secret("links.key") == second.secret("links.key")
    assert len(first.secret("links.key")) == 32
    assert first.secret("links.key") != first.secret("other.key")


def test_the_three_ports_differ_and_are_not_handed_to_outgoing_connections(tmp_path: Path) -> None:
    ports = Home.open(tmp_path).ports()
    assert len({ports.api, ports.gateway, ports.listen}) == 3
    assert all(10_240 <= port < 32_768 for port in (ports.api, ports.gateway, ports.listen))


def test_two_homes_are_two_nodes(tmp_path: Path) -> None:
    assert Home.open(tmp_path / "a").key().peer != Home.open(tmp_path / "b").key().peer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "pairio-node-key-v1 ed25519 abc\n",
        f"pairio-node-key-v2 ed25519 {'ab' * 32}\n",
        f"pairio-node-key-v1 ed25519 {'AB' * 32}\n",
        f"pairio-node-key-v1 ed25519 {'ab' * 32}\nmore\n",
    ],
)
def test_a_corrupt_key_is_named_and_left_alone(text: str, tmp_path: Path) -> None:
    key = Home.open(tmp_path).path / "node.key"
    key.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{key} is not a node key")) as caught:
        Home.open(tmp_path)
    assert "restore it from a backup" in str(caught.value.hint)
    assert key.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"api": 1, "gateway": 2}',
        '{"api": "x", "gateway": 2, "listen": 3}',
        '{"api": 70000, "gateway": 2, "listen": 3}',
        '{"api": 0, "gateway": 2, "listen": 3}',
        '{"api": Infinity, "gateway": 2, "listen": 3}',
    ],
)
def test_corrupt_ports_are_named_and_left_alone(text: str, tmp_path: Path) -> None:
    ports = Home.open(tmp_path).path / "ports.json"
    ports.write_text(text)
    with pytest.raises(UserError, match=r"ports\.json is corrupt") as caught:
        Home.open(tmp_path)
    assert caught.value.hint == "move it away: the node chooses new ports"
    assert ports.read_text() == text


@pytest.mark.parametrize("text", ["", "ab", "ab" * 33, "no hex"])
def test_a_corrupt_secret_is_never_used(text: str, tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    home.secret("links.key")
    (tmp_path / "links.key").write_text(text)
    with pytest.raises(UserError, match=r"links\.key is corrupt"):
        home.secret("links.key")


def test_a_second_node_on_a_home_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    first, second = Home.open(tmp_path), Home.open(tmp_path)
    first.lock()
    with pytest.raises(ConflictError, match=rf"already \(process {os.getpid()}\)") as error:
        second.lock()
    assert error.value.hint == "stop it, or use another home: PAIRIO_HOME=DIR"
    first.unlock()
    second.lock()
    second.unlock()
    second.unlock()  # twice does no harm


def test_a_lock_left_by_a_node_that_died_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "node.lock").write_text("4194303")
    home = Home.open(tmp_path)
    home.lock()
    assert (tmp_path / "node.lock").read_text() == str(os.getpid())
    home.unlock()


def test_a_home_that_is_no_directory_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"cannot use .* as a home") as caught:
            Home.open(path)
        assert caught.value.hint == "set PAIRIO_HOME to a directory of yours"


def test_a_failed_start_leaves_no_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="No space left on device"):
        Home.open(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"blocks", "jobs"}


def test_the_api_file_is_there_while_the_api_is(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    home.write_api({"url": "http://127.0.0.1:1", "token": "t"})
    assert json.loads((tmp_path / "api.json").read_text())["token"] == "t"
    home.remove_api()
    home.remove_api()  # gone already: fine
    assert not (tmp_path / "api.json").exists()


def test_the_home_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAIRIO_HOME", str(tmp_path / "here"))
    assert default_home() == tmp_path / "here"
    monkeypatch.setenv("PAIRIO_HOME", "")
    assert default_home().name == "pairio"


def test_a_home_knows_its_earlier_starts_and_a_copy_of_it_has_none(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    first, none = home.begin_boot()
    second, past = home.begin_boot()
    assert none == ()
    assert past == (first,)
    assert len(second) == 16
    assert second != first
    shutil.copytree(home.path, tmp_path / "copy")
    assert Home.open(tmp_path / "copy").begin_boot()[1] == ()
    assert home.begin_boot()[1] == (first, second)


def test_corrupt_boots_are_none(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    home.begin_boot()
    (tmp_path / "boots.json").write_text('{"place": 1}')
    assert home.begin_boot()[1] == ()


def test_the_earlier_starts_of_a_home_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairio_node.home._BOOTS_MAX", 3)
    home = Home.open(tmp_path)
    boots = [home.begin_boot()[0] for _ in range(5)]
    assert home.begin_boot()[1] == tuple(boots[-3:])
