"""Observers against NumPy, written from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressjax.quant import observers

BATCHES = st.lists(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6), min_size=1, max_size=6
)


def run(observer, batches):
    state = observer.init()
    for batch in batches:
        state = observer.update(state, jnp.asarray(batch, jnp.float32))
    return [float(end) for end in observer.find(state)]


@given(BATCHES)
def test_min_max_is_the_extremes_of_everything(batches):
    everything = np.concatenate([np.asarray(batch, "float32") for batch in batches])
    assert run(observers.min_max(), batches) == [everything.min(), everything.max()]


@given(BATCHES, st.sampled_from([0.0, 0.5, 0.9, 0.99]))
def test_moving_average_is_the_weighted_mean_of_the_extremes(batches, decay):
    weights = np.array([decay**age for age in range(len(batches))][::-1])
    weights /= weights.sum()
    low = sum(w * min(batch) for w, batch in zip(weights, batches, strict=True))
    high = sum(w * max(batch) for w, batch in zip(weights, batches, strict=True))
    np.testing.assert_allclose(
        run(observers.moving_average(decay), batches), [low, high], rtol=1e-4, atol=1e-2
    )


def test_one_batch_is_its_own_average():
    np.testing.assert_allclose(
        run(observers.moving_average(0.99), [[-1.0, 3.0]]), [-1.0, 3.0], 1e-6
    )


@pytest.mark.parametrize("observer", [observers.min_max(), observers.moving_average()])
def test_states_are_stable_and_jit_equals_eager(observer):
    state = observer.init()
    new = jax.jit(observer.update)(state, jnp.ones((2, 3)))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(new))
    eager = observer.update(state, jnp.ones((2, 3)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, eager)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_outside_its_interval_is_refused(decay):
    with pytest.raises(ValueError, match=rf"decay is {decay}"):
        observers.moving_average(decay)
