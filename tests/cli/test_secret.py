"""`--secret`: from files and variables, never from the command line itself."""

from pathlib import Path

import pytest

from pairio.errors import PairioError
from pairio_cli.secret import read_secrets

VALUE = "correct horse battery"


def test_a_file_gives_its_text_without_the_last_newline(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{VALUE}\n")
    (tmp_path / "key").write_text("one\ntwo\n\n")
    given = [f"TOKEN=@{tmp_path}/token", f"KEY=@{tmp_path}/key"]
    assert read_secrets(given) == {"TOKEN": VALUE, "KEY": "one\ntwo\n"}


def test_a_variable_gives_its_value_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", f"{VALUE}\n")
    assert read_secrets(["TOKEN=env:MY_TOKEN"]) == {"TOKEN": f"{VALUE}\n"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([f"TOKEN={VALUE}"], "names no place"),
        ([VALUE], "names no place"),
        ([f"={VALUE}"], "names no place"),
        (["TOKEN=@/nowhere/token"], "No such file"),
        (["TOKEN=@/usr"], "Is a directory"),
        (["TOKEN=env:NOT_SET_HERE"], "no variable"),
        (["TOKEN=@/dev/null", "TOKEN=@/dev/null"], "twice"),
    ],
)
def test_what_names_no_secret_is_refused_and_says_no_value(given: list[str], said: str) -> None:
    with pytest.raises(PairioError) as refused:
        read_secrets(given)
    assert said in str(refused.value)
    assert VALUE not in f"{refused.value} {refused.value.hint}"


def test_a_file_of_other_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(PairioError, match="no text"):
        read_secrets([f"TOKEN=@{tmp_path}/token"])
