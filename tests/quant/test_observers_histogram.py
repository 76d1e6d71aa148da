"""Observers that search on a histogram, against NumPy oracles and the papers' claims."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressjax import quant
from compressjax.quant import observers
from compressjax.quant.observers import histogram
from tests.support import observer_oracles as oracles

# One program for all examples: batches of one shape.
SIZE = 8
few = settings(max_examples=15)
BATCHES = st.lists(
    st.tuples(
        st.integers(-8, 8), st.lists(st.floats(-1, 1, width=16), min_size=SIZE, max_size=SIZE)
    ).map(lambda drawn: np.float32(drawn[1]) * np.float32(2.0 ** drawn[0])),
    min_size=1,
    max_size=5,
)
COUNTING = observers.percentile()
UPDATE = jax.jit(COUNTING.update)
MERGE = jax.jit(COUNTING.merge)


@functools.cache
def compiled(observer):
    return jax.jit(observer.update)


def run(observer, *batches):
    update, state = compiled(observer), observer.init()
    for batch in batches:
        state = update(state, jnp.asarray(batch, jnp.float32))
    return state


def found(observer, *batches):
    return tuple(float(end) for end in observer.find(run(observer, *batches)))


def state_of(batches):
    state = COUNTING.init()
    for batch in batches:
        state = UPDATE(state, batch)
    return state


def whole(state):
    high, low = np.asarray(state["counts"]).astype(object)
    return high * 2**16 + low


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def heavy_tail(seed=0, size=20000):
    return np.random.default_rng(seed).standard_t(3, size).astype(np.float32)


@few
@given(BATCHES)
def test_growth_loses_no_counts(batches):
    state = state_of(batches)
    values = np.concatenate(batches)
    assert whole(state).sum() == values.size
    assert whole(state)[histogram.BINS] == (values == 0).sum()
    if values.any():
        assert 2.0 ** int(state["exponent"]) == oracles.bin_width(values) * histogram.BINS
        np.testing.assert_array_equal(
            np.delete(whole(state), histogram.BINS).astype(int), oracles.bins(values)
        )


@few
@given(BATCHES, st.randoms(use_true_random=False))
def test_the_order_of_batches_changes_nothing(batches, random):
    shuffled = list(batches)
    random.shuffle(shuffled)
    assert_same(state_of(batches), state_of(shuffled))


@few
@given(BATCHES, BATCHES)
def test_merged_states_are_the_state_of_all_batches(one, other):
    assert_same(MERGE(state_of(one), state_of(other)), state_of(one + other))


def test_counts_stay_exact_beyond_32_bits():
    state = state_of([np.float32([0, 0, 0, 1, 1, -1, 0.5, 2])])
    for _ in range(40):
        state = MERGE(state, state)
    counts = whole(state)
    assert counts.sum() == SIZE * 2**40 and counts[histogram.BINS] == 3 * 2**40


@few
@given(BATCHES)
def test_the_hundredth_percentile_is_min_max(batches):
    low, high = observers.percentile(100.0).find(state_of(batches))
    values = np.concatenate(batches)
    assert (low, high) == (values.min(), values.max())


@few
@given(BATCHES, st.sampled_from([60.0, 75.0, 90.0, 99.0]))
def test_percentiles_are_numpys_up_to_a_bin(batches, p):
    values = np.concatenate(batches)
    ends = observers.percentile(p).find(state_of(batches))
    width = oracles.bin_width(values) if values.any() else 0.0
    np.testing.assert_allclose(ends, oracles.percentile(values, p), atol=1.01 * width)


@pytest.mark.parametrize("bits", [8, 4])
@few
@given(batches=BATCHES)
def test_squared_error_is_never_above_that_of_min_max(batches, bits):
    values = np.concatenate(batches)
    ends = map(float, observers.mse(bits=bits).find(state_of(batches)))
    least, plain = (
        np.sqrt(oracles.squared_error(values, *range_, bits))
        for range_ in (ends, (values.min(), values.max()))
    )
    # Within a bin the histogram knows no better.
    assert least <= plain + (oracles.bin_width(values) if values.any() else 0.0)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "values",
    [heavy_tail(), np.abs(heavy_tail()), -np.abs(heavy_tail()), np.maximum(heavy_tail(), -0.2)],
    ids=["both signs", "positive", "negative", "lopsided"],
)
def test_squared_error_is_the_least(values, bits):
    values = values[:4000]
    error = oracles.squared_error(values, *found(observers.mse(bits=bits), values), bits)
    assert error <= 1.03 * oracles.least_squared_error(values, bits, candidates=25)
    plain = oracles.squared_error(values, values.min(), values.max(), bits)
    assert error < (0.8 if bits == 4 else 1.001) * plain


def test_squared_error_keeps_all_of_what_lies_on_the_grid():
    pixels = np.random.default_rng(0).integers(0, 256, 5000) / np.float32(255)
    assert found(observers.mse(), pixels) == (0.0, 1.0)


def test_a_symmetric_search_has_fewer_codes():
    values = heavy_tail()[:4000]
    low, high = found(observers.mse(bits=4, symmetric=True), values)
    magnitudes = np.abs(values)
    assert low == -high
    error = oracles.squared_error(magnitudes, 0.0, high, bits=3)
    assert error <= 1.03 * oracles.least_squared_error(magnitudes, bits=3)


@pytest.mark.parametrize(
    "values",
    [np.abs(heavy_tail()), -np.abs(heavy_tail()), heavy_tail(1), np.maximum(heavy_tail(2), -0.4)],
    ids=["positive", "negative", "both signs", "lopsided"],
)
def test_entropy_is_the_rules(values):
    assert_least_divergence(values, found(observers.entropy(), values), oracles.entropy(values))


def test_symmetric_entropy_is_the_rule_for_absolute_values():
    values = heavy_tail()
    low, high = found(observers.entropy(symmetric=True), values)
    assert low == -high
    expected = oracles.entropy(np.abs(values), levels=128)
    assert_least_divergence(np.abs(values), (0.0, high), expected, levels=128)


def assert_least_divergence(values, ends, expected, levels=256):
    """Compares divergences: ranges may tie to the last digit of float32."""
    counts, width = oracles.bins(values), oracles.bin_width(values)

    def divergence(low, high):
        start, end = int(np.floor(min(low / width, 0))), int(np.ceil(max(high / width, 0)))
        return oracles.divergence(counts, 2048 + start, 2048 + end, levels)

    np.testing.assert_allclose(divergence(*ends), divergence(*expected), atol=2e-6)
    np.testing.assert_allclose(ends, expected, rtol=0.02, atol=width)


def test_entropy_beats_min_max_on_a_heavy_tail():
    values = heavy_tail()
    ends = found(observers.entropy(), values)
    assert ends[1] < 0.7 * values.max() and ends[0] > 0.7 * values.min()
    inner = values[np.abs(values) < 3]
    error, plain = (
        oracles.squared_error(inner, *range_) for range_ in (ends, (values.min(), values.max()))
    )
    assert error < 0.5 * plain
    assert divergence_of(values, *ends) < divergence_of(values, values.min(), values.max())


def divergence_of(values, low, high):
    width = oracles.bin_width(values)
    edges = (int(np.floor(low / width)), int(np.ceil(high / width)))
    return oracles.divergence(oracles.bins(values), *(2048 + edge for edge in edges), 256)


def test_entropy_does_not_count_zeros():
    values = np.abs(heavy_tail())
    zeros = np.zeros(50000, np.float32)
    assert found(observers.entropy(), values, zeros) == pytest.approx(
        found(observers.entropy(), np.append(values, 0.0)), rel=0.01
    )


EVERY = {
    "min_max": observers.min_max(),
    "moving_average": observers.moving_average(),
    "percentile": observers.percentile(99.0),
    "mse": observers.mse(),
    "mse symmetric": observers.mse(symmetric=True),
    "entropy": observers.entropy(),
    "entropy symmetric": observers.entropy(symmetric=True),
    "entropy sampled": observers.entropy(samples=3),
}
every = pytest.mark.parametrize("observer", EVERY.values(), ids=EVERY.keys())


def unusable(ends):
    low, high = map(float, ends)
    return not (np.isfinite(low) and np.isfinite(high) and low <= high)


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_dropped(observer, bad):
    batch = np.float32([[1.0, -2.0], [0.0, bad]])
    after = run(observer, np.ones((2, 2)), batch, np.ones((2, 2)))
    assert unusable(observer.find(after))
    assert unusable(observer.find(observer.merge(run(observer, np.ones((2, 2))), after)))


def test_calibration_refuses_what_is_not_finite():
    q = quant.quantize(lambda v, x: x @ v["kernel"], quant.int8())
    batches = [jnp.ones((2, 2)), jnp.array([[1.0, jnp.nan], [0.0, 1.0]])]
    with pytest.raises(ValueError, match="expected finite numbers in order.*NaN or infinity"):
        q.calibrate({"kernel": jnp.eye(2)}, batches, observer=observers.percentile())


@every
def test_a_state_without_batches_gives_no_range(observer):
    assert unusable(observer.find(observer.init()))


@every
@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [3.0, 3.0], [-3.0, 0.0], [1e-30, 2e-30], [-3e38, 3e38], [0.5, 2.0]]
)
def test_odd_values_give_ranges_within_the_extremes(observer, values):
    low, high = found(observer, values)
    reach = np.float32(np.abs(values).max())
    assert -reach * 1.0001 <= low <= high <= reach * 1.0001
    assert high > 0 or max(values) <= 0


@every
def test_bfloat16_is_counted_as_float32(observer):
    values = jnp.asarray(heavy_tail()[:64], jnp.bfloat16)
    state = compiled(observer)(observer.init(), values)
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, observer.init())
    assert_same(state, compiled(observer)(observer.init(), values.astype(jnp.float32)))


@pytest.mark.parametrize("name", ["moving_average", "percentile", "mse", "entropy sampled"])
def test_each_channel_is_observed_by_itself(name):
    observer = EVERY[name]
    values = np.stack([heavy_tail(seed)[:90] * 4.0**seed for seed in range(3)])
    by_channel = observers.per_channel(observer, 3, axis=1)
    batches = [part.T.reshape(5, 6, 3).swapaxes(1, 2) for part in np.split(values, 3, axis=1)]
    low, high = by_channel.find(run(by_channel, *batches))
    assert low.shape == high.shape == (3,)
    for channel in range(3):
        alone = found(observer, *(batch[:, channel] for batch in batches))
        np.testing.assert_allclose((low[channel], high[channel]), alone, rtol=1e-6)


@pytest.mark.parametrize("name", ["min_max", "percentile"])
def test_merging_channels_is_merging_each(name):
    by_channel = observers.per_channel(EVERY[name], 2)
    one, other = heavy_tail(1)[:60].reshape(30, 2), heavy_tail(2)[:60].reshape(30, 2)
    merged = by_channel.merge(run(by_channel, one), run(by_channel, other))
    assert_same(merged, run(by_channel, one, other))


def test_samples_are_few_and_from_every_channel():
    values = np.arange(1, 97, dtype=np.float32) * np.ones((50, 1), np.float32)
    state = run(observers.percentile(samples=500), values)
    counts = np.delete(whole(state), histogram.BINS).astype(int)
    assert 400 < counts.sum() <= 500
    assert (counts > 0).sum() == 96 and counts.max() <= 2 * counts[counts > 0].min()
    assert (float(state["low"]), float(state["high"])) == (1.0, 96.0)


def test_samples_find_nearly_the_same_range():
    values = np.abs(heavy_tail(size=60000))
    sampled, exact = (found(observers.mse(bits=4, samples=n), values) for n in (20000, None))
    np.testing.assert_allclose(sampled, exact, rtol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: observers.percentile(50.0), r"p is 50.0, expected .* \(50, 100\]"),
        (lambda: observers.percentile(100.5), "p is 100.5"),
        (lambda: observers.mse(bits=1), "bits is 1, expected 2 to 8"),
        (lambda: observers.entropy(bits=16), "bits is 16.*min_max"),
        (lambda: observers.mse(samples=0), "samples is 0, expected at least 1"),
        (lambda: observers.per_channel(observers.min_max(), 0), "channels is 0"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("shape", "axis"), [((4, 2), -1), ((), -1), ((3,), 1), ((3, 2), 1)])
def test_values_without_the_channels_are_refused(shape, axis):
    observer = observers.per_channel(observers.min_max(), 3, axis)
    with pytest.raises(ValueError, match=r"expected 3 channels on axis"):
        observer.update(observer.init(), jnp.zeros(shape))
