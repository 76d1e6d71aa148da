"""The union-find over units, against one that follows every pair in plain Python."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from compressjax.graph.units import UNKNOWN, ZERO, Units, kept_shape, take

PAIRS = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30)


@hypothesis.given(
    batches=st.lists(PAIRS, max_size=4), frozen=st.sets(st.integers(0, 19), max_size=3)
)
def test_classes_are_the_connected_components(batches, frozen):
    units = Units()
    all_units = units.fresh(20)
    units.freeze(np.array(sorted(frozen), int), "asked for")
    component = {i: {i} for i in range(20)}
    for pairs in batches:
        if pairs:
            left, right = np.array(pairs).T
            units.tie(left, right)
        for a, b in pairs:
            merged = component[a] | component[b]
            component.update(dict.fromkeys(merged, merged))
    assert units.find(all_units).tolist() == [min(component[i]) for i in range(20)]
    expected = [bool(component[i] & frozen) for i in range(20)]
    assert units.frozen(all_units).tolist() == expected


def test_grows_and_keeps_what_was_tied():
    units = Units()
    first = units.fresh(10)
    units.freeze(first[:1], "first")
    more = units.fresh(5000)
    units.tie(first[0], more)
    assert units.frozen(more).all() and not units.frozen(first[1:]).any()
    assert len(units) == 5010


def test_take_keeps_the_array_when_nothing_is_cut():
    x = np.arange(6.0).reshape(2, 3)
    keeps = (np.ones(2, bool), np.ones(3, bool))
    assert take(x, keeps) is x and kept_shape(keeps) == (2, 3)


class TestRest:
    """What a value holds at a cut position goes with the unit, not with its class."""

    def test_units_keep_what_they_say_when_they_are_tied(self):
        units = Units()
        zero, other = units.fresh(2, ZERO), units.fresh(2)
        units.tie(zero, other)
        assert units.rest(zero).tolist() == [ZERO, ZERO]
        assert units.rest(other).tolist() == [UNKNOWN, UNKNOWN]

    def test_joined_axes_are_zero_where_all_of_them_are(self):
        units = Units()
        first = units.fresh(3, np.array([ZERO, ZERO, UNKNOWN]))
        second = units.fresh(3, np.array([ZERO, UNKNOWN, ZERO]))
        joined = units.join([first, second])
        assert units.rest(joined).tolist() == [ZERO, UNKNOWN, UNKNOWN]
        assert units.find(joined).tolist() == units.find(second).tolist()
        assert units.join([first]) is first
        assert units.join([first], units.rest(first)) is first

    def test_labels_tell_axes_apart(self):
        units = Units()
        a, b = units.label("a"), units.label("b")
        assert a == units.label("a") != b and min(a, b) > ZERO > UNKNOWN
        assert units.rest(units.fresh(2, a)).tolist() == [a, a]
