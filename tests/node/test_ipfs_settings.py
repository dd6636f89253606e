"""The table [ipfs]: addresses in every form that people write, a token that stays secret."""

from pathlib import Path
from typing import Any

import pytest

from pairio_node.config import load_config
from pairio_node.errors import UserError
from pairio_node.ipfs_settings import IpfsSettings, api_multiaddr, parse_ipfs, read_token

LOCAL = "/ip4/127.0.0.1/tcp/5001"


@pytest.mark.parametrize(
    ("address", "multiaddr"),
    [
        ("http://127.0.0.1:5001", f"{LOCAL}/http"),
        ("http://127.0.0.1:5001/", f"{LOCAL}/http"),
        ("http://127.0.0.1:5001/api/v0", f"{LOCAL}/http"),
        ("http://localhost:5001", "/dns/localhost/tcp/5001/http"),
        ("http://[::1]:5001", "/ip6/::1/tcp/5001/http"),
        ("https://kubo.lab", "/dns/kubo.lab/tcp/443/https"),
        (LOCAL, LOCAL),
        ("/dns4/kubo.lab/tcp/443/https", "/dns4/kubo.lab/tcp/443/https"),
        ("/unix/run/ipfs/api.sock", "/unix/run/ipfs/api.sock"),
    ],
)
def test_an_address_is_a_url_a_multiaddr_or_a_socket(address: str, multiaddr: str) -> None:
    assert api_multiaddr(address) == multiaddr


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:5001",
        "http://127.0.0.1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:5001/ipfs/x",
        "http://127.0.0.1:5001/?arg=x",
        "ftp://127.0.0.1:5001",
        "/ip4/127.0.0.1/udp/5001",
        "/ip4/127.0.0.1/tcp/0",
        "/ip4/127.0.0.1/tcp/5001/p2p/12D3KooW",
        "/unix/",
        "http://[::1",
    ],
)
def test_what_is_no_address_is_refused_with_examples(address: str) -> None:
    with pytest.raises(UserError, match="is not the address of a Kubo daemon") as refused:
        api_multiaddr(address)
    assert "http://127.0.0.1:5001" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({}, "names no daemon"),
        ({"api": 1}, "setting ipfs is"),
        (["x"], "setting ipfs is"),
        ({"api": LOCAL, "tokn": "x"}, "unknown setting ipfs.tokn"),
        ({"api": LOCAL, "publish": "some"}, "ipfs.publish is 'some'"),
        ({"api": "http://me:secret@127.0.0.1:5001"}, "holds a password"),
    ],
)
def test_a_wrong_table_is_refused(raw: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        parse_ipfs(raw)
    assert "secret" not in str(refused.value) + str(refused.value.hint)


def test_the_command_line_names_another_daemon_and_the_rest_of_the_table_holds(
    tmp_path: Path,
) -> None:
    path = tmp_path / "node.toml"
    path.write_text(f'[ipfs]\napi = "{LOCAL}"\npublish = "none"\ntoken_file = "t"\n')
    other = "http://10.0.0.1:5001"
    found = load_config(path, {"ipfs": other}).ipfs
    assert found == IpfsSettings(other, "/ip4/10.0.0.1/tcp/5001/http", "t", "none")
    assert load_config(path, {"ipfs": None}).ipfs == IpfsSettings(LOCAL, LOCAL, "t", "none")
    assert load_config(tmp_path / "none.toml", {"ipfs": LOCAL}).ipfs == IpfsSettings(LOCAL, LOCAL)
    assert load_config(tmp_path / "none.toml", {}).ipfs is None


def test_a_token_is_read_from_a_file_that_nobody_else_can_read(tmp_path: Path) -> None:
    token = tmp_path / "token"
    settings = IpfsSettings(LOCAL, LOCAL, str(token))
    with pytest.raises(UserError, match="cannot read the token"):
        read_token(settings)
    token.write_text("bearer:abc\n")
    token.chmod(0o640)
    with pytest.raises(UserError, match="others on this machine can read"):
        read_token(settings)
    token.chmod(0o600)
    assert read_token(settings) == "abc"
    for wrong in ("", "two words", "a\nb", "ü"):
        token.write_text(wrong)
        with pytest.raises(UserError, match="holds no token"):
            read_token(settings)
