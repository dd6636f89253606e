"""Deadlines behave as a dictionary that is searched would."""

from hypothesis import given
from hypothesis import strategies as st

from pairio_protocol.machines.deadlines import Deadlines

steps = st.lists(
    st.tuples(st.sampled_from(["set", "drop", "due"]), st.integers(0, 5), st.integers(0, 50)),
    max_size=80,
)


@given(steps)
def test_it_is_a_searched_dictionary(steps: list[tuple[str, int, int]]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    model: dict[int, int] = {}
    for what, key, at_ms in steps:
        if what == "set":
            deadlines.set(key, at_ms)
            model[key] = at_ms
        elif what == "drop":
            deadlines.drop(key)
            model.pop(key, None)
        else:
            due = {k for k, at in model.items() if at <= at_ms}
            found = deadlines.due(at_ms)
            assert set(found) == due
            assert [model[k] for k in found] == sorted(model[k] for k in found)
            for k in due:
                del model[k]
        assert deadlines.next_ms() == min(model.values(), default=None)
        assert len(deadlines) == len(model)


def test_what_is_put_off_again_and_again_takes_no_room() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for n in range(10_000):
        deadlines.set(n % 3, n)
        deadlines.drop((n + 1) % 3)
    assert len(deadlines._heap) < 200
