"""Who may call the API, and which URLs open what."""

import hmac
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from pairio_node.api import auth as auth_module
from pairio_node.api.auth import Auth
from pairio_node.api.links import Links
from pairio_node.errors import ForbiddenError, UserError

PORT = 4102
CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


class _Time:
    """The clocks that `auth` looks at."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Time:
    clock = _Time()
    monkeypatch.setattr(auth_module, "time", clock)
    return clock


@pytest.fixture
def auth(tmp_path: Path, clock: _Time) -> Auth:
    return Auth("main-token", tmp_path / "tokens.json", PORT)


def _may(auth: Auth, authorization: str | None, method: str) -> bool:
    try:
        auth.check_token(authorization, method)
    except ForbiddenError as error:
        assert (error.http_status, error.message) == (403, "this token only reads")
        return False
    except UserError as error:
        if error.code != "unauthorized":
            raise
        assert error.http_status == 401
        return False
    return True


# -- tokens -----------------------------------------------------------------------------------


def test_the_nodes_own_token_allows_everything(auth: Auth) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert _may(auth, "Bearer main-token", method)
    assert _may(auth, "bearer main-token", "GET")


@pytest.mark.parametrize(
    "given", [None, "", "main-token", "Bearer", "Bearer ", "Bearer wrong", "Basic main-token", "é"]
)
def test_anything_else_allows_nothing(auth: Auth, given: str | None) -> None:
    auth.create_token("laptop", read_only=False, expires_s=None)
    assert not _may(auth, given, "GET")


def test_a_created_token_works_also_after_a_restart(auth: Auth, tmp_path: Path) -> None:
    token = auth.create_token("laptop", read_only=False, expires_s=None)
    assert _may(auth, f"Bearer {token}", "POST")
    assert _may(Auth("other", tmp_path / "tokens.json", PORT), f"Bearer {token}", "POST")


def test_a_read_only_token_reads(auth: Auth) -> None:
    token = auth.create_token("dashboard", read_only=True, expires_s=None)
    assert _may(auth, f"Bearer {token}", "GET")
    assert _may(auth, f"Bearer {token}", "HEAD")
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get"):
        assert not _may(auth, f"Bearer {token}", method), method


def test_a_token_expires_when_it_was_said_to(auth: Auth, clock: _Time) -> None:
    token = auth.create_token("guest", read_only=False, expires_s=60)
    clock.now_s += 59
    assert _may(auth, f"Bearer {token}", "GET")
    clock.now_s += 1
    assert not _may(auth, f"Bearer {token}", "GET")


def test_tokens_are_kept_as_hashes_for_the_owner_alone(auth: Auth, tmp_path: Path) -> None:
    token = auth.create_token("laptop", read_only=False, expires_s=None)
    path = tmp_path / "tokens.json"
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len({auth.create_token("x", False, None) for _ in range(20)}) == 20


def test_every_token_is_compared_in_constant_time_and_all_of_them_are(
    auth: Auth, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [auth.create_token(f"t{n}", read_only=False, expires_s=None) for n in range(3)]
    compared: list[Any] = []
    stock = hmac.compare_digest

    def compare(a: Any, b: Any) -> bool:
        compared.append(b)
        return stock(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in (tokens[0], "wrong"):
        compared.clear()
        _may(auth, f"Bearer {given}", "GET")
        assert len(compared) == 4, "the first that fits ends nothing"


@pytest.mark.parametrize("text", ["", "garbage", "5"])
def test_a_corrupt_token_file_is_named_and_left_alone(
    text: str, auth: Auth, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"tokens\.json is corrupt"):
        _may(auth, "Bearer x", "GET")
    with pytest.raises(UserError, match=r"tokens\.json is corrupt"):
        auth.create_token("y", read_only=False, expires_s=None)
    assert path.read_text() == text
    assert _may(auth, "Bearer main-token", "GET"), "the owner gets in to mend it"


def test_the_number_of_tokens_is_bounded(auth: Auth, tmp_path: Path) -> None:
    entry = {"name": "x", "hash": "0" * 64, "read_only": True, "expires": None}
    (tmp_path / "tokens.json").write_text(json.dumps([entry] * 1000))
    with pytest.raises(UserError, match="there are 1000 tokens already"):
        auth.create_token("one more", read_only=True, expires_s=None)


# -- pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_this_machine_and_its_own_pages_are_let_in(auth: Auth, host: str) -> None:
    auth.check_origin(f"{host}:{PORT}", None)
    auth.check_origin(f"{host}:{PORT}", f"http://{host}:{PORT}")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (None, None),
        ("evil.example", None),
        (f"evil.example:{PORT}", None),
        ("127.0.0.1", None),
        (f"127.0.0.1:{PORT + 1}", None),
        (f"127.0.0.1:{PORT}", "null"),
        (f"127.0.0.1:{PORT}", "http://evil.example"),
        (f"127.0.0.1:{PORT}", f"https://127.0.0.1:{PORT}"),
        (f"127.0.0.1:{PORT}", f"http://127.0.0.1:{PORT + 1}"),
    ],
)
def test_other_names_and_other_pages_are_refused(
    auth: Auth, host: str | None, origin: str | None
) -> None:
    with pytest.raises(ForbiddenError):
        auth.check_origin(host, origin)


def test_a_link_opens_its_page_once(auth: Auth) -> None:
    code = auth.make_link("/job/bafy")
    opened = auth.use_link(code)
    assert opened is not None
    path, session = opened
    assert path == "/job/bafy"
    assert auth.has_session(session)
    assert auth.use_link(code) is None
    assert auth.use_link("never made") is None


def test_a_link_is_good_for_a_minute_and_a_session_for_a_month(auth: Auth, clock: _Time) -> None:
    late = auth.make_link("/")
    clock.now_s += 60
    assert auth.use_link(late) is None
    opened = auth.use_link(auth.make_link("/"))
    assert opened is not None
    clock.now_s += 30 * 24 * 3600 - 1
    assert auth.has_session(opened[1])
    clock.now_s += 1
    assert not auth.has_session(opened[1])


@pytest.mark.parametrize("cookie", [None, "", "x"])
def test_without_a_session_there_is_none(auth: Auth, cookie: str | None) -> None:
    auth.use_link(auth.make_link("/"))
    assert not auth.has_session(cookie)


@pytest.mark.parametrize("path", ["", "job/x", "//evil.example", "https://evil.example", "/\\evil"])
def test_a_link_leads_nowhere_but_here(auth: Auth, path: str) -> None:
    with pytest.raises(UserError, match="is not of this node"):
        auth.make_link(path)


# -- capabilities -----------------------------------------------------------------------------


def _key_in(url: str) -> str:
    return url.rpartition("?k=")[2]


def test_a_content_url_is_a_capability_for_one_name_of_one_content() -> None:
    links = Links(1, 2, b"k" * 32)
    url = links.content(CID, "a b/ü.txt")
    assert url.startswith(f"http://127.0.0.1:2/ipfs/{CID}/a%20b%2F%C3%BC.txt?k=")
    key = _key_in(url)
    assert links.is_valid(CID, "a b/ü.txt", key)
    for cid, name, given in (
        (CID, "other.txt", key),
        (CID[:-1] + "2", "a b/ü.txt", key),
        (CID, "a b/ü.txt", key[:-1]),
        (CID, "a b/ü.txt", key.upper()),
        (CID, "a b/ü.txt", ""),
        (CID, "a b/ü.txt", "é"),
    ):
        assert not links.is_valid(cid, name, given), (cid, name, given)


def test_name_and_cid_cannot_be_shifted_into_each_other() -> None:
    links = Links(1, 2, b"k" * 32)
    assert not links.is_valid("ab", "c", _key_in(links.content("a", "bc")))


def test_a_capability_of_another_node_opens_nothing_here() -> None:
    theirs = Links(1, 2, b"x" * 32).content(CID, "n")
    assert not Links(1, 2, b"k" * 32).is_valid(CID, "n", _key_in(theirs))
    assert Links(7, 8, b"x" * 32).is_valid(CID, "n", _key_in(theirs)), "other ports: still good"


def test_a_capability_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def compare(a: Any, b: Any) -> bool:
        calls.append(1)
        return bool(a == b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    Links(1, 2, b"k" * 32).is_valid(CID, "n", "wrong")
    assert calls == [1]


def test_a_job_page_is_on_the_api_port() -> None:
    assert Links(1, 2, b"k" * 32).job_page("bafy") == "http://127.0.0.1:1/job/bafy"
