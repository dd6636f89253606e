"""`pairio-node key`: show the node's key, take it elsewhere, bring it back."""

import stat
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pairio_cli.output import as_json, data, finished, note
from pairio_cli.shared import new_typer

__all__ = ["keys_app"]

keys_app = new_typer("The key that this node is known by.")

_PASSPHRASE_BYTES_MAX = 1024
_HomeOption = Annotated[Path | None, typer.Option(help="The home; default PAIRIO_HOME.")]
_PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", help="File whose first line is the passphrase; without it it is asked."
    ),
]


def _home_with_key(path: Path | None) -> Any:
    """Return the home; never makes a key."""
    from pairio_node.errors import NotFoundError
    from pairio_node.home import Home, default_home

    if not (path or default_home()).joinpath("node.key").exists():
        raise NotFoundError(
            f"{path or default_home()} has no key",
            hint="pairio-node init makes one; pairio-node key import FILE brings one",
        )
    return Home.open(path)


@keys_app.command("show")
def show(
    home: _HomeOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show whose key this home has, never the secret. Example: pairio-node key show"""
    from pairio_node.keyfile import fingerprint
    from pairio_protocol.ids import public_key_of

    opened = _home_with_key(home)
    peer, path = opened.key().peer, opened.key_path
    mode = stat.S_IMODE(path.stat().st_mode)
    shown = {
        "peerId": peer,
        "publicKey": public_key_of(peer).hex(),
        "fingerprint": fingerprint(peer),
        "file": str(path),
        "permissions": f"{mode:04o}",
    }
    if json:
        as_json(shown)
    else:
        data(f"peer         {peer}")
        data(f"public key   {shown['publicKey']} (Ed25519)")
        data(f"fingerprint  {shown['fingerprint']}")
        data(f"file         {path}, permissions {mode:04o}")
    if mode & 0o077:
        note(f"warning: others on this machine can reach the key: chmod 600 {path}")


@keys_app.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="The file to make; never overwritten.")],
    home: _HomeOption = None,
    passphrase_file: _PassphraseFile = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the key, encrypted with a passphrase. Example: pairio-node key export lab.key"""
    from pairio_node.errors import UserError
    from pairio_node.keyfile import encrypt_seed, write_new

    opened = _home_with_key(home)
    if file.exists():  # said before a passphrase is asked for; write_new decides
        raise UserError(f"{file} is there already", hint="nothing is overwritten: name another one")
    write_new(file, encrypt_seed(opened.seed(), _passphrase(passphrase_file, twice=True)))
    peer = opened.key().peer
    as_json({"peerId": peer, "file": str(file)}) if json else data(peer)
    note("Whoever has the file and its passphrase is this node, in every service: keep them apart.")
    note("Without the key and without this file the node's place in its services is lost: an admin")
    note("has to add a new key and revoke the old one.")
    finished(f"{file} holds the key of this node, encrypted")


@keys_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What `key export` wrote.")],
    home: _HomeOption = None,
    passphrase_file: _PassphraseFile = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put another key of this home aside.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make this home the node of an exported key. Example: pairio-node key import lab.key"""
    from pairio_node.home import Home
    from pairio_node.keyfile import decrypt_seed

    seed = decrypt_seed(file, _passphrase(passphrase_file, twice=False))
    opened, aside = Home.install_key(home, seed, replace)
    peer, put = opened.key().peer, str(aside) if aside is not None else None
    told = {"peerId": peer, "home": str(opened.path), "putAside": put}
    as_json(told) if json else data(peer)
    if aside is not None:
        note(f"The key that was there lies in {aside}.")
    note("Run a key on one machine at a time: two nodes with one key take each other's messages.")
    note("If somebody else may have the old machine or file, make a new key instead (pairio-node")
    note("init on a new home), let an admin add it, and revoke this one.")
    finished(f"{opened.path} is this node now")


def _passphrase(path: Path | None, twice: bool) -> str:
    """Return the passphrase, of a file or asked for on the terminal; never of the command line."""
    import getpass

    from pairio_node.errors import UserError

    if path is not None:
        try:
            with open(path, "rb") as file:
                line = file.read(_PASSPHRASE_BYTES_MAX + 1).split(b"\n")[0].rstrip(b"\r")
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}",
                hint="--passphrase-file names a file whose first line is the passphrase",
            ) from None
        if not line or len(line) > _PASSPHRASE_BYTES_MAX:
            raise UserError(
                f"the first line of {path} is no passphrase",
                hint=f"1 to {_PASSPHRASE_BYTES_MAX} bytes",
            )
        return line.decode("utf-8", "surrogateescape")
    if not sys.stdin.isatty():
        raise UserError(
            "there is no terminal to ask for the passphrase", hint="use --passphrase-file FILE"
        )
    given = getpass.getpass("Passphrase: ")
    if twice and getpass.getpass("The same again: ") != given:
        raise UserError("the two passphrases differ", hint="nothing was written; try again")
    return given
