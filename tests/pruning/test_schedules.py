"""Schedules: the papers' formulas, the steps they choose, and what they refuse."""

from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from compressjax.pruning import (
    Schedule,
    constant,
    cosine,
    cyclic,
    exponential,
    iterative,
    one_shot,
    polynomial,
)
from tests.support import mask_oracles

_RAMPS: dict[str, tuple[Callable[..., Schedule], Callable[[float, float], float]]] = {
    "cubic": (polynomial, lambda final, progress: final * (1 - (1 - progress) ** 3)),
    "square root": (
        lambda *arguments: polynomial(*arguments, power=0.5),
        lambda final, progress: final * (1 - (1 - progress) ** 0.5),
    ),
    "cosine": (cosine, mask_oracles.cosine),
    "exponential": (
        exponential,
        lambda final, progress: mask_oracles.exponential(final, progress, 1),
    ),
}


def _due(schedule: Any, steps: int) -> list[int]:
    marks = jax.vmap(schedule.due)(jnp.arange(steps))
    return np.flatnonzero(marks).tolist()


@pytest.mark.parametrize("name", _RAMPS)
@hypothesis.settings(max_examples=25)
@hypothesis.given(st.floats(0, 0.999), st.integers(0, 1000), st.integers(1, 5000), st.data())
def test_ramps_are_their_formulas(
    name: str, final: float, begin: int, length: int, data: st.DataObject
) -> None:
    make, formula = _RAMPS[name]
    every = data.draw(st.integers(1, length))
    schedule = make(final, begin, begin + length, every)
    steps = np.array([0, begin, begin + length, data.draw(st.integers(0, begin + 2 * length))])
    progress = np.clip((steps - begin) / length, 0, 1)
    expected = [formula(final, p) for p in progress]
    np.testing.assert_allclose(
        schedule.sparsity(jnp.asarray(steps)), expected, rtol=1e-4, atol=1e-6
    )
    grid = (steps > begin) & (steps < begin + length) & ((steps - begin) % every == 0)
    np.testing.assert_array_equal(
        schedule.due(jnp.asarray(steps)), grid | (steps == begin + length)
    )
    assert not schedule.falls


@hypothesis.settings(max_examples=20)
@hypothesis.given(st.floats(0.01, 0.99), st.integers(1, 20), st.integers(1, 30), st.integers(0, 9))
def test_every_round_prunes_the_same_fraction_of_what_is_left(
    final: float, rounds: int, every: int, begin: int
) -> None:
    schedule = iterative(final, rounds, every, begin)
    ends = [begin + k * every for k in range(1, rounds + 1)]
    assert _due(schedule, 640) == ends
    found = np.asarray(schedule.sparsity(jnp.arange(640)))[ends]
    np.testing.assert_allclose(found, mask_oracles.rounds(final, rounds), rtol=1e-4, atol=1e-6)


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 60))
def test_phases_alternate_and_end_sparse(begin: int, sparse: int, dense: int, rest: int) -> None:
    end = max(begin, 1) + sparse + rest
    schedule = cyclic(0.75, begin, end, sparse, dense)
    plan = mask_oracles.phases(begin, end, sparse, dense, 128)
    np.testing.assert_array_equal(schedule.sparsity(jnp.arange(128)), 0.75 * np.array(plan))
    # Masks are computed where the plan changes and nowhere else; the network starts dense.
    assert _due(schedule, 128) == [t for t in range(1, 128) if plan[t] != plan[t - 1]]
    assert schedule.falls


def test_steps_that_update_masks() -> None:
    assert _due(polynomial(0.9, 10, 30, 5), 50) == [15, 20, 25, 30]
    assert _due(polynomial(0.9, 0, 10, 4), 50) == [4, 8, 10]
    assert _due(constant(0.9, every=20), 50) == [1, 21, 41]
    assert _due(constant(0.9, begin=7, end=30, every=20), 50) == [7, 27]
    assert _due(constant(0.9, end=0), 50) == [1]
    assert _due(one_shot(0.9), 50) == [1]
    assert _due(one_shot(0.9, at=4), 50) == [4]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "make",
    [
        *(lambda final, make=make: make(final, 0, 10, 1) for make, _ in _RAMPS.values()),
        lambda final: iterative(final, 2, 10),
        lambda final: cyclic(final, 0, 20, 5, 5),
        constant,
        one_shot,
    ],
)
def test_refuses_sparsity_out_of_range(make: Callable[..., Schedule], sparsity: float) -> None:
    with pytest.raises(ValueError, match=rf"must be in \[0, 1\), found {sparsity}"):
        make(sparsity)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 10, 1), "begin must be at least 0, found -1"),
        ((10, 10, 1), "found begin=10, end=10; use one_shot"),
        ((10, 5, 1), "found begin=10, end=5; use one_shot"),
        ((0, 10, 0), "every must be at least 1, found 0"),
        ((0, 10, 11), "every=11 is longer than the ramp from begin=0 to end=10; use at most 10"),
    ],
)
@pytest.mark.parametrize("name", _RAMPS)
def test_ramps_refuse_steps_out_of_order(
    name: str, arguments: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _RAMPS[name][0](0.5, *arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: polynomial(0.5, 0, 10, 5, 0), "power must be above 0, found 0"),
        (lambda: constant(0.5, begin=5, end=4), "begin=5, end=4; None never ends"),
        (lambda: constant(0.5, every=0), "every must be at least 1"),
        (lambda: one_shot(0.5, at=-2), "at must be at least 0, found -2"),
        (lambda: iterative(0.5, 0, 10), "rounds must be at least 1, found 0"),
        (lambda: iterative(0.5, 3, 0), "every must be at least 1, found 0"),
        (lambda: iterative(0.5, 3, 10, begin=-1), "begin must be at least 0, found -1"),
        (lambda: cyclic(0.5, 0, 20, 0, 5), "sparse must be at least 1, found 0"),
        (lambda: cyclic(0.5, 0, 20, 5, 0), "dense must be at least 1, found 0"),
        (lambda: cyclic(0.5, 10, 15, 5, 5), r"end=15 .* begins at step 15 \(begin=10, sparse=5\)"),
    ],
)
def test_refuses_steps_that_make_no_sense(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: polynomial(0.5, 0, 10, 2.5), "every"),
        (lambda: iterative(0.5, 2.0, 10), "rounds"),
        (lambda: cyclic(0.5, 0, 1e4, 10, 10), "end"),
        (lambda: one_shot(0.5, at=True), "at"),
    ],
)
def test_refuses_what_is_not_a_whole_number(make: Callable[[], Schedule], name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be an int, found .*; pass a whole number$"):
        make()
