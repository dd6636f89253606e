"""Places at a door: nobody takes all of them, however many keys, members or services he has."""

from contextlib import ExitStack

from pairio_node.places import Places

PEER, MEMBER, ALL = 2, 5, 40


class Door:
    """A door, and who is which member of which services: `service.member.key`, or several of them
    in `also`."""

    def __init__(self) -> None:
        self.also: dict[str, list[tuple[str, str]]] = {}
        self.places = Places(self._memberships, peer=PEER, member=MEMBER, everybody=ALL)
        self.stack = ExitStack()

    def _memberships(self, peer: str) -> list[tuple[str, str]]:
        service, member, *_ = [*peer.split("."), ""]
        own = [(service, member)] if member else []
        return own + self.also.get(peer, [])

    def take(self, *peers: str) -> int:
        """Let peers come, one after the other; return how many have got a place."""
        return sum(self.stack.enter_context(self.places.place(peer)) for peer in peers)


def test_one_key_has_few_places_and_has_them_again_when_it_leaves() -> None:
    door = Door()
    assert door.take(*["a.mary.1"] * 10) == PEER
    assert (door.places.taken, door.places.of("a.mary.1")) == (PEER, PEER)
    door.stack.close()
    assert (door.places.taken, door.places.of("a.mary.1")) == (0, 0)
    assert door.take("a.mary.1") == 1


def test_all_keys_of_a_member_together_have_few_places() -> None:
    door = Door()
    assert door.take(*(f"a.mallory.{number}" for number in range(64))) == MEMBER
    assert door.take("a.honest.1") == 1


def test_all_members_of_a_service_together_leave_room_for_others() -> None:
    """An admin makes members as he likes."""
    door = Door()
    taken = door.take(*(f"a.made up {number}.1" for number in range(200)))
    assert taken == ALL * 75 // 100
    assert door.take("b.honest.1", "b.honest.2") == 2


def test_whoever_is_in_two_services_has_the_places_of_both() -> None:
    """So a service whose places are taken shuts nobody out who is in another one, too."""
    door = Door()
    door.take(*(f"a.made up {number}.1" for number in range(200)))
    door.also["a.honest.1"] = [("b", "honest")]
    assert door.take("a.honest.1") == 1


def test_a_stranger_has_none() -> None:
    door = Door()
    assert door.take(*(f"stranger {number}" for number in range(100))) == 0
    assert door.places.is_stranger("stranger 1")
    assert not door.places.is_stranger("a.mary.1")
