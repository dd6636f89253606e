"""`pairio-node key`: shown without its secret, exported encrypted, imported with care."""

import getpass
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from pairio_node.home import Home
from pairio_node.keyfile import decrypt_seed, encrypt_seed, fingerprint
from tests.cli.conftest import Ran, Run

PASSPHRASE = "correct horse battery"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("PAIRIO_HOME", str(tmp_path / "home"))
    return Home.open()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(f"{PASSPHRASE}\n")
    return path


@pytest.fixture
def exported(home: Home, tmp_path: Path) -> Path:
    path = tmp_path / "lab.key"
    path.write_text(encrypt_seed(home.seed(), PASSPHRASE))
    return path


def _key(run: Run, *arguments: object) -> Ran:
    return run("key", *map(str, arguments), program="pairio-node")


def test_show_names_the_key_and_keeps_its_secret(run: Run, home: Home) -> None:
    ran = _key(run, "show")
    assert ran.code == 0
    assert home.key().peer in ran.out
    assert fingerprint(home.key().peer) in ran.out
    assert f"{home.key_path}, permissions 0600" in ran.out
    assert home.seed().hex() not in ran.out + ran.err
    shown = json.loads(_key(run, "show", "--json").out)
    assert (shown["peerId"], shown["permissions"]) == (home.key().peer, "0600")


def test_show_warns_of_a_key_that_others_can_read(run: Run, home: Home) -> None:
    home.key_path.chmod(0o640)
    ran = _key(run, "show")
    assert "permissions 0640" in ran.out
    assert f"chmod 600 {home.key_path}" in ran.err


def test_show_and_export_make_no_home(run: Run, tmp_path: Path) -> None:
    for arguments in (("show",), ("export", tmp_path / "k")):
        ran = _key(run, *arguments, "--home", tmp_path / "none")
        assert ran.code == 1
        assert "has no key" in ran.err
        assert "pairio-node init" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_is_six_words_that_can_be_said() -> None:
    peer = "12D3KooWEjceZaxJ8xiATFuqNY51dP1dUbGBSbhfFvt2sBhLDvTi"
    words = fingerprint(peer).split("-")
    assert len(words) == 6
    assert all(len(word) == 5 for word in words)
    assert fingerprint(peer) == "ripap-dulir-zoraz-ramok-dolok-bakif"


def test_an_export_is_for_its_owner_and_brings_the_node_back(
    run: Run, home: Home, secret: Path, tmp_path: Path
) -> None:
    before = os.umask(0)
    ran = _key(run, "export", tmp_path / "lab.key", "--passphrase-file", secret)
    os.umask(before)
    assert ran.code == 0
    assert stat.S_IMODE((tmp_path / "lab.key").stat().st_mode) == 0o600
    assert home.seed().hex() not in (tmp_path / "lab.key").read_text() + ran.out + ran.err
    assert "is this node, in every service" in ran.err
    new = tmp_path / "elsewhere"
    ran = _key(run, "import", tmp_path / "lab.key", "--home", new, "--passphrase-file", secret)
    assert (ran.code, ran.out.strip()) == (0, home.key().peer)
    assert Home.open(new).seed() == home.seed()
    assert stat.S_IMODE((new / "node.key").stat().st_mode) == 0o600


def test_an_export_overwrites_nothing(run: Run, exported: Path, secret: Path) -> None:
    before = exported.read_text()
    ran = _key(run, "export", exported, "--passphrase-file", secret)
    assert ran.code == 1
    assert "is there already" in ran.err
    assert exported.read_text() == before


def test_an_export_follows_no_link(run: Run, home: Home, secret: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    ran = _key(run, "export", tmp_path / "link", "--passphrase-file", secret)
    assert ran.code == 1
    assert not (tmp_path / "target").exists()


def test_another_passphrase_opens_nothing(
    run: Run, exported: Path, secret: Path, tmp_path: Path
) -> None:
    secret.write_text("another passphrase\n")
    new = tmp_path / "new"
    ran = _key(run, "import", exported, "--home", new, "--passphrase-file", secret)
    assert ran.code == 1
    assert "does not open" in ran.err
    assert not new.exists()


@pytest.mark.parametrize("field", ["peer", "salt", "nonce", "ciphertext", "n", "v", "format"])
def test_an_export_in_which_anything_was_changed_is_refused(
    field: str, exported: Path, tmp_path: Path
) -> None:
    raw = json.loads(exported.read_text())
    stranger = Home.open(tmp_path / "stranger").key().peer
    changed = {"peer": stranger, "n": 2**30, "v": 2, "format": "other"}
    raw[field] = changed.get(field) or f"{int(raw[field], 16) ^ 1:0{len(raw[field])}x}"
    exported.write_text(json.dumps(raw))
    with pytest.raises(Exception, match=r"does not open|is no exported key"):
        decrypt_seed(exported, PASSPHRASE)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 4000, "\xff", '{"format": 1}' + " " * 5000])
def test_what_is_no_export_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(text, encoding="latin-1")
    with pytest.raises(Exception, match="is no exported key"):
        decrypt_seed(tmp_path / "x", PASSPHRASE)


def test_a_home_with_another_key_keeps_it_unless_told(
    run: Run, exported: Path, secret: Path, tmp_path: Path
) -> None:
    other = Home.open(tmp_path / "other")
    seed, peer = other.seed(), other.key().peer
    arguments = ("import", exported, "--home", other.path, "--passphrase-file", secret)
    ran = _key(run, *arguments)
    assert ran.code == 1
    assert f"it is node {peer}" in ran.err
    assert "--replace" in ran.err
    assert other.seed() == seed
    ran = _key(run, *arguments, "--replace")
    assert ran.code == 0
    aside = other.path / f"node.key.{peer}"
    assert str(aside) in ran.err
    assert seed.hex() in aside.read_text()
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert other.seed() != seed
    assert _key(run, *arguments).code == 0  # the same key again: nothing to do


def test_the_key_is_not_changed_under_a_node_that_runs(
    run: Run, exported: Path, secret: Path, tmp_path: Path
) -> None:
    other = Home.open(tmp_path / "other")
    seed = other.seed()
    other.lock()
    ran = _key(
        run, "import", exported, "--home", other.path, "--passphrase-file", secret, "--replace"
    )
    assert ran.code == 1
    assert "a node runs on" in ran.err
    assert other.seed() == seed


def test_a_passphrase_is_asked_twice_on_a_terminal(
    run: Run, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([PASSPHRASE, "correct horse batteri", PASSPHRASE, PASSPHRASE])
    monkeypatch.setattr(getpass, "getpass", lambda _: next(answers))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    ran = _key(run, "export", tmp_path / "lab.key")
    assert ran.code == 1
    assert "differ" in ran.err
    assert not (tmp_path / "lab.key").exists()
    assert _key(run, "export", tmp_path / "lab.key").code == 0
    assert decrypt_seed(tmp_path / "lab.key", PASSPHRASE) == home.seed()


def test_without_a_terminal_a_file_is_needed(run: Run, home: Home, tmp_path: Path) -> None:
    ran = _key(run, "export", tmp_path / "lab.key")
    assert ran.code == 1
    assert "--passphrase-file" in ran.err


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "no passphrase"), ("\nsecond\n", "no passphrase"), ("seven77\n", "too short")],
)
def test_a_passphrase_that_protects_nothing_is_refused(
    text: str, says: str, run: Run, home: Home, secret: Path, tmp_path: Path
) -> None:
    secret.write_text(text)
    ran = _key(run, "export", tmp_path / "lab.key", "--passphrase-file", secret)
    assert ran.code == 1
    assert says in ran.err
    assert not (tmp_path / "lab.key").exists()


def test_a_file_that_is_not_there_is_told_with_what_to_name(
    run: Run, home: Home, secret: Path, tmp_path: Path
) -> None:
    ran = _key(run, "import", tmp_path / "nix", "--passphrase-file", secret)
    assert (ran.code, "hint: name the file that key export wrote" in ran.err) == (1, True)
    ran = _key(run, "export", tmp_path / "lab.key", "--passphrase-file", tmp_path / "nix")
    assert (ran.code, "hint: --passphrase-file names a file" in ran.err) == (1, True)
