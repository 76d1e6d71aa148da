"""Schedules: the formula of Zhu and Gupta, the steps they choose, and what they refuse."""

from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from compressjax.pruning import constant, one_shot, polynomial


@hypothesis.given(
    st.floats(0, 0.999), st.integers(0, 1000), st.integers(1, 5000), st.floats(0.5, 5), st.data()
)
def test_polynomial_is_the_formula(
    final: float, begin: int, length: int, power: float, data: st.DataObject
) -> None:
    every = data.draw(st.integers(1, length))
    schedule = polynomial(final, begin, begin + length, every, power)
    step = data.draw(st.integers(0, begin + 2 * length))
    progress = np.clip((step - begin) / length, 0, 1)
    expected = final + (0 - final) * (1 - progress) ** power
    np.testing.assert_allclose(schedule.sparsity(jnp.asarray(step)), expected, rtol=1e-4, atol=1e-6)


def _due(schedule: Any, steps: int) -> list[int]:
    marks = jax.vmap(schedule.due)(jnp.arange(steps))
    return np.flatnonzero(marks).tolist()


def test_steps_that_update_masks() -> None:
    assert _due(polynomial(0.9, 10, 30, 5), 50) == [15, 20, 25, 30]
    assert _due(polynomial(0.9, 0, 10, 4), 50) == [4, 8, 10]
    assert _due(constant(0.9, every=20), 50) == [1, 21, 41]
    assert _due(constant(0.9, begin=7, end=30, every=20), 50) == [7, 27]
    assert _due(constant(0.9, end=0), 50) == [1]
    assert _due(one_shot(0.9), 50) == [1]
    assert _due(one_shot(0.9, at=4), 50) == [4]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_refuses_sparsity_out_of_range(sparsity: float) -> None:
    message = rf"must be in \[0, 1\), found {sparsity}"
    with pytest.raises(ValueError, match=message):
        polynomial(sparsity, 0, 10, 1)
    with pytest.raises(ValueError, match=message):
        constant(sparsity)
    with pytest.raises(ValueError, match=message):
        one_shot(sparsity)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 10, 1), "begin must be at least 0, found -1"),
        ((10, 10, 1), "found begin=10, end=10"),
        ((10, 5, 1), "found begin=10, end=5"),
        ((0, 10, 0), "every must be at least 1, found 0"),
        ((0, 10, 11), "every=11 is longer than the ramp from begin=0 to end=10"),
        ((0, 10, 5, 0), "power must be above 0, found 0"),
    ],
)
def test_polynomial_refuses_bad_steps(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        polynomial(0.5, *arguments)


def test_other_schedules_refuse_bad_steps() -> None:
    with pytest.raises(ValueError, match="begin=5, end=4"):
        constant(0.5, begin=5, end=4)
    with pytest.raises(ValueError, match="every must be at least 1"):
        constant(0.5, every=0)
    with pytest.raises(ValueError, match="at must be at least 0, found -2"):
        one_shot(0.5, at=-2)
    with pytest.raises(TypeError, match="every must be an int"):
        polynomial(0.5, 0, 10, 2.5)
