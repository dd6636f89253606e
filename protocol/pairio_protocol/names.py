"""Names of members and services: what they may hold, and which of them look alike.

Every node must find the same changes valid, whatever its version of Python. So all rests on
Unicode 3.2 (`unicodedata.ucd_3_2_0`, the same everywhere) and on the table here, never on newer
ones: it has the letters of every script that is written every day, and no emoji.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from unicodedata import ucd_3_2_0 as unicode

from pairio_protocol.limits import NAME_LENGTH_MAX

__all__ = ["Taken", "free_name", "is_alike", "name_flaw", "normal_name"]

#: Letters, marks, numbers, punctuation, symbols. Bidi controls, invisible formats, private and
#: unassigned characters are of other classes.
_CLASSES = "LMNPS"
#: Letters and marks that show nothing: joiners, fillers, selectors of a variant.
_INVISIBLE = frozenset(
    "\u00ad\u034f\u06dd\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180e\u2800\u3164\uffa0\ufffc"
) | frozenset(map(chr, range(0xFE00, 0xFE10)))
#: A wanted name leaves room for a mark.
_WANTED_LENGTH_MAX = 100
#: Scripts that are written together, also with Latin: the first word of a letter's name.
_EAST_ASIAN = frozenset(
    ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC", "HANGUL", "BOPOMOFO")
)
#: What looks like a Latin letter: character -> that letter. Upper and lower case differ.
_LOOKS = str.maketrans(
    "01|I" "ıɑɡɩʏ"
    "АВЕЅІЈКМНОРСТУХЗ" "авеѕіјкмнорстухԁһ"
    "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ" "αικνορτυχ"
    "օսոհզց" "ᎠᎡᎢᎪᎫᎬᎳᎷᎻᎶᏃᏒᏙᏚᏞᏟᏢᏦᏴ",
    "Olll" "iagiy"
    "ABESlJKMHOPCTYX3" "abesijkmhopctyxdh"
    "ABEZHlKMNOPTYX" "aikvoptux"
    "ounhqg" "DRTAJEWMHGZRVSLCPKB",
)  # fmt: skip


def normal_name(text: str) -> str:
    """Return a name as it may stand on a list: composed, compatibility forms replaced, no space
    around it."""
    return unicode.normalize("NFKC", text).strip(" ")


@lru_cache(maxsize=8192)
def name_flaw(name: str) -> str | None:
    """Return what is wrong with a name, in words that follow the name; None if nothing is."""
    if not 0 < len(name) <= NAME_LENGTH_MAX:
        return f"is not 1 to {NAME_LENGTH_MAX} characters long"
    for char in name:
        if char == "/":
            return "holds a slash"
        if char != " " and (unicode.category(char)[0] not in _CLASSES or char in _INVISIBLE):
            return f"holds U+{ord(char):04X}, which cannot be seen or is none of Unicode 3.2"
    if name != name.strip(" ") or "  " in name:
        return "begins or ends with a space, or holds two together"
    if unicode.normalize("NFKC", name) != name:
        return "is not in the normal form NFKC"
    if unicode.category(name[0])[0] == "M":
        return "begins with a mark"
    scripts = {
        unicode.name(char, "").partition(" ")[0]
        for char in name
        if unicode.category(char)[0] == "L"
    }
    others = scripts - _EAST_ASIAN
    if len(others) > 1 or (len(others) < len(scripts) and others - {"LATIN"}):
        return f"mixes letters of {' and '.join(map(str.title, sorted(scripts)))}"
    return None


def is_alike(one: str, other: str) -> bool:
    """Say whether people would take one name for the other: they differ in case, or in letters
    that look the same."""
    return not _looks(one).isdisjoint(_looks(other))


class Taken:
    """The names of a list, none of which is like another, while some come and go."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_look = {look: name for name in names for look in _looks(name)}

    def add(self, name: str) -> str | None:
        """Take a name; or return the one that it looks like."""
        looks = _looks(name)
        for look in looks:
            if look in self._by_look:
                return self._by_look[look]
        self._by_look.update(dict.fromkeys(looks, name))
        return None

    def discard(self, name: str) -> None:
        """A name is free again."""
        for look in _looks(name):
            self._by_look.pop(look, None)


def free_name(wanted: str, peer: str, taken: Iterable[str]) -> str:
    """Return a name for a new member: the wanted one; marked with the end of his peer id when it
    looks like another's; of the peer id alone when it is none."""
    wanted, others = normal_name(wanted)[:_WANTED_LENGTH_MAX], tuple(taken)
    marks = [peer[-length:] for length in range(6, len(peer))]
    names = [f"node-{mark}" for mark in marks]
    if wanted:
        names = [wanted, *(f"{wanted}~{mark}" for mark in marks), *names]
    # Others may have taken all of these on purpose; one name looks like four others at most.
    numbered = (f"node-{peer[-6:]}~{number}" for number in range(4 * len(others) + 1))
    return next(
        name
        for name in chain(names, numbered)
        if name_flaw(name) is None and not any(is_alike(name, other) for other in others)
    )


@lru_cache(maxsize=16384)
def _looks(name: str) -> frozenset[str]:
    """Return what a name looks like, in lower case and letter by letter. `casefold` of what is in
    Unicode 3.2 never changes any more."""
    plain = unicode.normalize("NFKD", name)
    shown = plain.translate(_LOOKS).casefold().replace("rn", "m")
    return frozenset((plain.casefold(), shown))
