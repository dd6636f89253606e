"""Links: one word, the same back, and whoever mistypes it hears so."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairio_protocol.codec import pack
from pairio_protocol.documents import document_cid
from pairio_protocol.errors import DecodeError
from pairio_protocol.links import Link, LinkPeer
from pairio_protocol.signing import SigningKey, sha256

SERVICE = document_cid(b"a service")
ANN, BEN = (SigningKey(bytes([i]) * 32).peer for i in (1, 2))
LINK = Link(
    "join",
    SERVICE,
    "lab",
    (
        LinkPeer(ANN, (f"/ip4/192.0.2.1/tcp/4001/p2p/{ANN}", f"/ip4/10.0.0.1/tcp/4001/p2p/{ANN}")),
        LinkPeer(BEN, (f"/ip4/192.0.2.2/tcp/4001/p2p/{BEN}",)),
    ),
    b"s" * 32,
    ("compute", "submit"),
    1_800_000_000_000,
)


def test_a_link_is_one_word_and_comes_back_as_it_was() -> None:
    text = LINK.encode()
    assert text.split() == [text]
    assert Link.decode(text) == LINK
    assert Link.decode(f"  {text}\n") == LINK
    assert len(text) < 420, "it fits into a QR code that fits into 80 columns"
    device = Link("device", SERVICE, "lab", LINK.peers, b"s" * 32, by=ANN, grant=b"g" * 64)
    assert Link.decode(device.encode()) == device
    asks = Link("request", SERVICE, "lab", LINK.peers)
    assert Link.decode(asks.encode()) == asks


def test_the_phrase_is_of_the_link_and_easily_read() -> None:
    assert LINK.phrase() == Link.decode(LINK.encode()).phrase()
    words = LINK.phrase().split("-")
    assert [len(word) for word in words] == [5] * 4
    other = Link("join", SERVICE, "lab", LINK.peers, b"t" * 32, LINK.roles, LINK.expires_unix_ms)
    assert other.phrase() != LINK.phrase()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("is not a link", "https://example.org"),
        ("is not a link", ""),
        ("cut short or mistyped", LINK.encode()[:-3]),
        ("cut short or mistyped", LINK.encode()[:30] + "x" + LINK.encode()[31:]),
        ("cut short or mistyped", "pairio:"),
        ("cut short or mistyped", "pairio:%%%"),
    ],
)
def test_what_is_no_whole_link_is_refused_in_words(words: str, text: str) -> None:
    with pytest.raises(DecodeError, match=words):
        Link.decode(text)


def sealed(plain: object) -> str:
    body = pack(plain)
    return "pairio:" + base64.urlsafe_b64encode(body + sha256(body)[:4]).decode().rstrip("=")


def test_a_newer_link_says_so_and_a_wrong_one_is_refused() -> None:
    with pytest.raises(DecodeError, match="newer pairio"):
        Link.decode(sealed([2, "whatever"]))
    wrong: list[object] = [[], {}, 7, [1], [1, 0, b"x", "", [], b"", [], 0, b"", b""]]
    for plain in wrong:
        with pytest.raises(DecodeError):
            Link.decode(sealed(plain))


@given(st.integers(7, 300), st.integers(0, 255))
def test_bent_links_are_refused_never_worse(place: int, byte: int) -> None:
    body = bytearray(LINK._body())
    body[place % len(body)] = byte
    text = base64.urlsafe_b64encode(bytes(body) + sha256(bytes(body))[:4]).decode().rstrip("=")
    try:
        found = Link.decode("pairio:" + text)
    except DecodeError:
        return
    assert found.peers
