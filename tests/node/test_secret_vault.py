"""Secrets at their submitter: for nobody else's eyes, over a restart, and gone when they are not
needed."""

from pathlib import Path

import pytest

from pairio_node.errors import UserError
from pairio_node.secret_vault import Vault, check_values
from pairio_protocol.limits import SECRET_SIZE_BYTES_MAX

VALUE = "correct horse battery"


def test_what_is_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    Vault(folder).keep("s", "j", {"TOKEN": VALUE})
    again = Vault(folder)
    assert again.get("s", "j") == {"TOKEN": VALUE}
    assert again.held == {("s", "j")}
    assert again.get("other", "j") is None


def test_files_and_folder_are_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    Vault(folder).keep("s", "j", {"TOKEN": VALUE})
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]


def test_what_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "secrets")
    vault.keep("s", "j", {"TOKEN": VALUE})
    vault.keep("s", "j", {"TOKEN": VALUE + "2"})
    vault.drop("s", "j")
    vault.drop("s", "j")
    assert list((tmp_path / "secrets").iterdir()) == []
    assert vault.held == frozenset()


def test_a_half_written_file_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    Vault(folder).keep("s", "j", {"TOKEN": VALUE})
    (folder / "x.part").write_text('{"service": "s"')
    assert Vault(folder).held == {("s", "j")}
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "value", ["sh0rt", " " * 20, "x" * (SECRET_SIZE_BYTES_MAX + 1), "with\0zero", "lone \ud800 one"]
)
def test_what_is_no_secret_is_refused_without_being_said(value: str) -> None:
    with pytest.raises(UserError) as error:
        check_values({"TOKEN": value})
    assert "TOKEN" in error.value.message
    assert value not in f"{error.value.message} {error.value.hint}"


def test_all_together_have_a_bound() -> None:
    with pytest.raises(UserError, match="have"):
        check_values({f"T{i}": "x" * SECRET_SIZE_BYTES_MAX for i in range(3)})
