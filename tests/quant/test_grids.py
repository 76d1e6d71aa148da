"""What every weight grid promises, checked on all of them; their papers are tested beside this."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compressjax.quant import grids

CHANNEL, TENSOR, BLOCK = grids.per_channel(), grids.per_tensor(), grids.per_block(3)
AFFINE = grids.integer(4, symmetric=False)
# Those that take the nearest of their values; the others decide by a threshold.
NEAREST = [
    grids.integer(2),
    grids.integer(4, granularity=BLOCK),
    grids.integer(8),
    grids.integer(16, granularity=TENSOR),
    AFFINE,
    grids.learned_step(3),
    grids.power_of_two(4),
    grids.power_of_two(6, granularity=TENSOR),
    grids.additive_power_of_two(4, granularity=TENSOR),
    grids.additive_power_of_two(8),
    grids.binary(),
    grids.codebook(5),
    grids.bfloat16(),
    grids.float16(),
]
GRIDS = [
    *NEAREST,
    grids.ternary(),
    grids.trained_ternary(),
    grids.logarithmic(5),
    grids.keep_zeros(grids.binary()),
    grids.keep_zeros(grids.codebook(4)),
]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
coded_grid = pytest.mark.parametrize(
    "grid", [grid for grid in GRIDS if grid.codes], ids=lambda grid: grid.name
)
SHAPE = (2, 6, 4)


def kernel(seed=0, shape=SHAPE, zeros=0.2):
    rng = np.random.default_rng(seed)
    w = rng.standard_t(3, shape) * 0.3 * (rng.random(shape) >= zeros)
    return jnp.asarray(w, jnp.float32)


class Run(NamedTuple):
    """All that a grid makes of a kernel."""

    value: Any
    again: Any
    around: Any
    coded: Any
    params: Any
    slope: Any
    fit_slope: Any


@functools.cache
def compiled(grid):
    """Fits and runs a grid; compiled once for each grid."""

    def run(w):
        params = grid.fit(w)
        value = grid.project(w, params)
        coded = grid.codes(w, params, jnp.float32(0)) if grid.codes else None
        slope = jax.grad(lambda w: (grid.project(w, params) * kernel(2)).sum())(w)
        fit_slope = jax.grad(
            lambda w: sum(map(jnp.sum, jax.tree.leaves(grid.fit(w))), 0 * w[0, 0, 0])
        )
        around = grid.around(w, params)
        again = grid.project(value, params)
        return Run(value, again, around, coded, params, slope, fit_slope(w))

    return jax.jit(run)


def kernels():
    """Kernels of one shape: ties, zeros, equal and dominant weights are common."""
    value = st.one_of(
        st.just(0.0),
        st.integers(-8, 8).map(float),
        st.floats(2**-10, 1e3, width=32),
        st.floats(-1e3, -(2**-10), width=32),
    )
    size = int(np.prod(SHAPE))
    return st.lists(value, min_size=size, max_size=size).map(
        lambda values: np.array(values, np.float32).reshape(SHAPE)
    )


@every_grid
@settings(max_examples=15)
@given(kernels())
def test_projection_is_idempotent_nearest_and_what_the_codes_say(grid, w):
    value, again, (below, above), coded, *_ = jax.device_get(compiled(grid)(w))
    np.testing.assert_array_equal(value, again)
    assert value.dtype == np.float32 and value.shape == w.shape
    assert (below <= above).all()
    assert (((below <= w) & (w <= above)) | (below == above)).all()
    if grid in NEAREST:
        distance = np.minimum(np.abs(w - below), np.abs(w - above))
        assert (np.abs(w - value) <= distance * 1.001 + 1e-6 * np.abs(w).max()).all()
    if coded is not None:
        codes, scale = coded
        assert scale.shape in ((), w.shape[-1:]) and (scale > 0).all()
        np.testing.assert_array_equal(codes, np.rint(codes).clip(-127, 127))
        np.testing.assert_array_equal(codes * scale, value)


def test_the_grids_with_codes_are_those_that_int8_holds():
    assert grids.integer(8).codes and not grids.integer(9).codes
    assert not grids.integer(4, granularity=BLOCK).codes
    assert not grids.integer(4, symmetric=False).codes
    assert grids.power_of_two(4).codes and not grids.power_of_two(5).codes
    assert grids.additive_power_of_two(6).codes and not grids.additive_power_of_two(7).codes
    assert grids.ternary().codes and not grids.trained_ternary().codes
    learned = {grid.name for grid in GRIDS if grid.learned}
    assert learned == {
        "learned int3 per channel",
        "codebook of 5",
        "trained ternary per tensor",
        "codebook of 4, zeros kept",
    }


@pytest.mark.parametrize("grid", GRIDS[1::3], ids=lambda grid: grid.name)
def test_jit_equals_eager(grid):
    w = kernel()
    params = grid.fit(w)
    value = grid.project(w, params)
    # Compilers have an order of summation of their own, but no rounding.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        params,
        compiled(grid)(w).params,
    )
    np.testing.assert_array_equal(jax.jit(lambda w: grid.project(w, params))(w), value)


@every_grid
def test_zeros_kept_stay_zero_without_a_gradient(grid):
    w = kernel(1)
    run = compiled(grids.keep_zeros(grid))(w)
    zero = np.asarray(w) == 0
    assert 0 < zero.sum() < w.size
    codes = (run.coded or [w])[0]
    for value in (run.value, *run.around, codes, run.slope):
        assert not np.asarray(value)[zero].any()
    assert np.asarray(run.slope)[~zero].any()


@pytest.mark.parametrize(
    "grid",
    [
        grids.learned_step(3),
        grids.binary(),
        grids.ternary(),
        grids.trained_ternary(),
        grids.codebook(5),
    ],
    ids=lambda grid: grid.name,
)
def test_kept_zeros_do_not_move_the_fit(grid):
    """Weights beside zeros get the params that they would have alone."""
    w = kernel(2, zeros=0.0)
    kept = grids.keep_zeros(grid)
    beside = kept.fit(jnp.concatenate([w, jnp.zeros_like(w)]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), beside, grid.fit(w))
    assert kept.name.endswith("zeros kept")


@settings(max_examples=15)
@given(kernels())
def test_affine_integers_represent_zero(w):
    value = np.asarray(compiled(AFFINE)(w).value)
    assert not value[w == 0].any()


@coded_grid
def test_codes_have_the_gradient_of_the_projection(grid):
    w, direction = kernel(3), kernel(4, zeros=0.0)
    params = grid.fit(w)

    def by_codes(w, params):
        codes, scale = grid.codes(w, params, jnp.float32(0))
        return (codes * scale.reshape((1, 1, -1)) * direction).sum()

    def by_projection(w, params):
        return (grid.project(w, params) * direction).sum()

    found, expected = jax.jit(
        lambda *args: [jax.grad(f, (0, 1))(*args) for f in (by_codes, by_projection)]
    )(w, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )
    assert np.asarray(expected[0]).any()


@coded_grid
def test_a_floored_scale_rounds_the_codes_again(grid):
    w = kernel(5)
    params = grid.fit(w)
    codes, scale = (np.asarray(x) for x in grid.codes(w, params, jnp.float32(0)))
    least = np.float32(scale * np.resize([2.3, 0.5], scale.size).reshape(scale.shape))
    floored, found = (np.asarray(x) for x in grid.codes(w, params, jnp.asarray(least)))
    np.testing.assert_array_equal(found, np.maximum(scale, least))
    same = np.broadcast_to(least < scale, w.shape)
    np.testing.assert_array_equal(floored[same], codes[same])
    np.testing.assert_array_equal(floored, np.rint(floored).clip(-127, 127))
    # On the coarser grid, a weight is as near as the gap between its two neighbours allows.
    gap = np.maximum(np.abs(codes), 1.0) * found
    assert (np.abs(floored * found - codes * scale) <= gap).all()
    assert (floored != codes).any()


@every_grid
def test_a_kernel_of_zeros_is_fitted(grid):
    run = compiled(grid)(jnp.zeros(SHAPE))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(run))
    assert not np.asarray(run.value).any()


@every_grid
def test_a_fit_passes_no_gradient(grid):
    assert not np.asarray(compiled(grid)(kernel(6)).fit_slope).any()


@every_grid
def test_stochastic_rounding_is_unbiased_and_on_the_grid(grid):
    w = kernel(7)
    run = compiled(grid)(w)
    params, (below, above) = run.params, map(np.asarray, run.around)
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.jit(jax.vmap(lambda key: grids.stochastic(w, grid, params, key)))
    drawn = np.asarray(draw(keys))
    # Compilers have a logarithm and an exponential of their own.
    assert (np.isclose(drawn, below, 1e-6, 0) | np.isclose(drawn, above, 1e-6, 0)).all()
    # The mean of n draws has at most half a gap / sqrt(n) of deviation; five of them are allowed.
    target = np.clip(np.asarray(w), below, above)
    slack = 5 * 0.5 * (above - below) / np.sqrt(len(keys)) + 1e-5 * np.abs(target)
    assert (np.abs(drawn.mean(0, dtype=np.float64) - target) <= slack + 1e-7).all()
    assert drawn.std(0).any()


def test_what_was_drawn_stays_where_it_is():
    w = kernel(8)
    for grid in (grids.integer(4), grids.integer(8), grids.ternary(), grids.power_of_two(3)):
        for seed in range(3):
            drawn = grids.stochastic(w, grid, grid.fit(w), jax.random.key(seed))
            again = grid.project(drawn, grid.fit(drawn))
            np.testing.assert_allclose(again, drawn, rtol=1e-6, err_msg=grid.name)


def test_stochastic_rounding_has_the_gradient_of_the_grid():
    w, grid, key = kernel(9), grids.learned_step(3), jax.random.key(0)
    params = grid.fit(w)

    @jax.jit
    def slopes(w, params):
        drawn = jax.grad(lambda *args: grids.stochastic(args[0], grid, args[1], key).sum(), (0, 1))
        return drawn(w, params), jax.grad(lambda *a: grid.project(*a).sum(), (0, 1))(w, params)

    jax.tree.map(np.testing.assert_array_equal, *slopes(w, params))


@given(kernels())
def test_granularities_cut_kernels_as_they_say(w):
    assume(np.abs(w).max() > 0)
    np.testing.assert_array_equal(TENSOR.reduce(jnp.max, w), w.max())
    np.testing.assert_array_equal(CHANNEL.reduce(jnp.max, w), w.max((0, 1)))
    blocks = BLOCK.reduce(jnp.max, jnp.asarray(w))
    np.testing.assert_array_equal(blocks, np.stack([w[:, :3].max(1), w[:, 3:].max(1)], 1))
    spread = np.asarray(BLOCK.spread(blocks, SHAPE))
    np.testing.assert_array_equal(spread, np.repeat(np.asarray(blocks), 3, axis=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grids.integer(1), "bits is 1, expected 2 to 16"),
        (lambda: grids.integer(17), "bits is 17, expected 2 to 16"),
        (lambda: grids.learned_step(1), "bits is 1, expected 2 to 16"),
        (lambda: grids.logarithmic(0), "bits is 0, expected 2 to 16"),
        (lambda: grids.power_of_two(8), "bits of a power of two is 8, expected 2 to 7"),
        (lambda: grids.additive_power_of_two(1), "is 1, expected 2 to 8"),
        (lambda: grids.trained_ternary(1.0), r"threshold is 1.0, expected a number in \(0, 1\)"),
        (lambda: grids.codebook(1), "a codebook of 1 was asked for, expected at least 2"),
        (lambda: grids.codebook(4, iterations=-1), "iterations is -1"),
        (lambda: grids.per_block(0), "block size is 0, expected at least 1"),
        (lambda: grids.codebook(9).fit(jnp.ones((2, 4))), r"codebook of 9 is larger .* \(2, 4\)"),
        (
            lambda: grids.integer(4, granularity=grids.per_block(4)).fit(jnp.ones((6, 2))),
            r"blocks of 4 do not divide a kernel of shape \(6, 2\)",
        ),
        (
            lambda: grids.integer(4, granularity=grids.per_block(4)).fit(jnp.ones(8)),
            r"blocks of 4 do not divide a kernel of shape \(8,\)",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
