"""Weight grids against their papers: values, gradients, and what each paper claims."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.quant import grids
from tests.support import grid_oracles as oracles

F32 = np.float32


def kernel(seed=0, shape=(2, 6, 5), scale=0.3):
    """Weights drawn far from ties, which float32 and float64 could decide differently."""
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(F32)


@functools.cache
def _projecting(grid):
    return jax.jit(lambda w: grid.project(w, grid.fit(w)))


def projected(grid, w):
    return np.asarray(_projecting(grid)(jnp.asarray(w)))


def gradients(grid, w, params, direction):
    """The gradients to weights and params of the sum of values times a direction."""
    slopes = jax.grad(lambda w, p: (grid.project(w, p) * direction).sum(), (0, 1))
    return jax.device_get(jax.jit(slopes)(w, params))


CHANNEL, TENSOR, BLOCK = grids.per_channel(), grids.per_tensor(), grids.per_block(3)
VALUES = [
    (grids.integer(2), oracles.by_channel(oracles.symmetric(2))),
    (grids.integer(8, granularity=TENSOR), oracles.by_tensor(oracles.symmetric(8))),
    (grids.integer(4, granularity=BLOCK), oracles.by_block(oracles.symmetric(4), 3)),
    (grids.integer(3, symmetric=False), oracles.by_channel(oracles.affine(3))),
    (
        grids.integer(8, symmetric=False, granularity=BLOCK),
        oracles.by_block(oracles.affine(8), 3),
    ),
    (grids.learned_step(4), oracles.by_channel(oracles.learned_step_start(4))),
    (grids.ternary(), oracles.by_tensor(oracles.ternary)),
    (grids.ternary(granularity=CHANNEL), oracles.by_channel(oracles.ternary)),
    (grids.trained_ternary(0.1), oracles.by_tensor(oracles.trained_ternary_start(0.1))),
    (grids.binary(), oracles.by_channel(oracles.binary)),
    (grids.power_of_two(3), oracles.by_channel(oracles.power_of_two(3))),
    (grids.power_of_two(5, granularity=TENSOR), oracles.by_tensor(oracles.power_of_two(5))),
    *(
        (grids.additive_power_of_two(bits), oracles.by_channel(oracles.additive_power_of_two(bits)))
        for bits in (3, 4, 5, 6)
    ),
    (grids.logarithmic(4), oracles.by_channel(oracles.logarithmic(4))),
    (grids.codebook(7), oracles.by_tensor(oracles.codebook(7))),
]


@pytest.mark.parametrize(("grid", "oracle"), VALUES, ids=lambda x: getattr(x, "name", ""))
@pytest.mark.parametrize("seed", range(2))
def test_values_are_the_papers(grid, oracle, seed):
    w = kernel(seed)
    np.testing.assert_allclose(projected(grid, w), oracle(w), rtol=2e-5, atol=1e-7)


class TestIntegers:
    @pytest.mark.parametrize("per_channel", [True, False])
    @pytest.mark.parametrize("form", ["eager", "jit", "constants"])
    def test_int8_codes_are_litert_s_bit_for_bit(self, per_channel, form):
        """Scales and codes in float32 as NumPy divides, dead and dominant channels included."""
        w = kernel(3, (3, 3, 8, 16))
        w[..., 2] = 0
        w[..., 3] *= F32(1e-7)
        w[..., 4] *= F32(1e4)
        axes = (0, 1, 2) if per_channel else None
        least = F32(3e-9) if not per_channel else np.linspace(0, 0.01, 16, dtype=F32)
        scale = np.maximum(np.abs(w).max(axes) / F32(127), least)
        expected = np.rint(w / scale).clip(-127, 127)
        grid = grids.integer(8, granularity=CHANNEL if per_channel else TENSOR)

        def code(w, least):
            return grid.codes(w, grid.fit(w), least)

        run = {
            "eager": code,
            "jit": jax.jit(code),
            "constants": lambda w, least: jax.jit(lambda: code(w, least))(),
        }[form]
        codes, found = run(jnp.asarray(w), jnp.asarray(least))
        np.testing.assert_array_equal(found, scale)
        np.testing.assert_array_equal(codes, expected)

    def test_the_gradient_passes_where_codes_are_in_range(self):
        w = jnp.array([[1.0], [0.3], [-9.0]])
        grid = grids.integer(4)
        slope, _ = gradients(grid, w, jnp.array([0.1]), jnp.ones((3, 1)))
        np.testing.assert_array_equal(slope.ravel(), [0, 1, 0])

    def test_affine_integers_use_all_codes_of_a_one_sided_kernel(self):
        w = jnp.linspace(0, 1, 16).reshape(16, 1)
        affine, symmetric = (projected(grids.integer(4, symmetric=s), w) for s in (False, True))
        np.testing.assert_allclose(affine, w, atol=1e-6)
        assert np.unique(symmetric).size == 8

    def test_finer_groups_lose_less(self):
        w = kernel(4, (12, 64)) * np.random.default_rng(0).uniform(0.1, 3, (12, 64)).astype(F32)
        error = [
            np.square(projected(grids.integer(4, granularity=g), w) - w).mean()
            for g in (BLOCK, CHANNEL, TENSOR)
        ]
        assert error[0] < 0.8 * error[1] and error[1] < 0.8 * error[2]


class TestLearnedStep:
    @pytest.mark.parametrize("granularity", [CHANNEL, TENSOR, BLOCK], ids=lambda g: g.name)
    @pytest.mark.parametrize("bits", [2, 4])
    def test_gradients_are_equations_3_and_5(self, granularity, bits):
        w, direction = kernel(1), kernel(2)
        grid, q = grids.learned_step(bits, granularity=granularity), 2 ** (bits - 1) - 1
        step = np.asarray(grid.fit(w)) * F32(0.3)
        wide = np.broadcast_to(np.asarray(granularity.spread(step, w.shape)), w.shape)
        r = np.float64(w) / wide
        inside = np.abs(r) < q
        assert 0 < inside.sum() < w.size
        terms = np.where(inside, np.rint(r) - r, q * np.sign(r)) * direction
        number = w.size / step.size
        expected = np.asarray(granularity.reduce(jnp.sum, jnp.asarray(terms, jnp.float32)))
        to_w, to_step = gradients(grid, w, step, direction)
        np.testing.assert_allclose(to_w, np.where(inside, direction, 0), rtol=1e-6)
        np.testing.assert_allclose(to_step, expected / np.sqrt(number * q), rtol=1e-4, atol=1e-5)

    def test_training_the_step_fits_better_than_the_largest_weight(self):
        w = jnp.asarray(np.random.default_rng(5).standard_t(3, (200, 1)), jnp.float32)
        grid, fixed = grids.learned_step(3), grids.integer(3)

        @jax.jit
        def descend(step):
            loss = lambda step: jnp.square(grid.project(w, step) - w).mean()  # noqa: E731
            return step - 0.5 * jax.grad(loss)(step)

        step = grid.fit(w)
        for _ in range(200):
            step = descend(step)
        learned, largest = (
            float(jnp.square(value - w).mean())
            for value in (grid.project(w, step), fixed.project(w, fixed.fit(w)))
        )
        assert learned < 0.7 * largest

    def test_a_step_that_crossed_zero_still_counts_by_its_size(self):
        w, grid = kernel(6), grids.learned_step(4)
        step = grid.fit(w)
        np.testing.assert_array_equal(grid.project(w, -step), grid.project(w, step))
        direction = kernel(7)
        (_, up), (_, down) = (gradients(grid, w, s, direction) for s in (step, -step))
        np.testing.assert_array_equal(up, -down)


class TestTernary:
    def test_the_threshold_is_nearly_the_best_one(self):
        """Li et al. 2016, section 2.2: 0.7 mean|w| approximates the optimum."""
        w = kernel(8, (4000, 1), scale=1.0).ravel().astype(np.float64)
        found = np.square(projected(grids.ternary(), w.astype(F32)[:, None]).ravel() - w).mean()
        errors = []
        for threshold in np.linspace(0.05, 2.5, 100):
            large = np.abs(w) > threshold
            errors.append(np.square(np.sign(w) * large * np.abs(w[large]).mean() - w).mean())
        assert min(errors) * 0.999 <= found <= min(errors) * 1.02

    def test_gradients_pass_to_every_weight(self):
        w, direction, grid = kernel(9), kernel(10), grids.ternary()
        to_w, to_params = gradients(grid, w, grid.fit(w), direction)
        np.testing.assert_allclose(to_w, direction, rtol=1e-6)
        signs = np.sign(projected(grid, w))
        np.testing.assert_allclose(to_params["scale"], (signs * direction).sum(), rtol=1e-4)
        assert to_params["threshold"] == 0


class TestTrainedTernary:
    def test_gradients_are_equations_7_and_8(self):
        w, direction = kernel(11), kernel(12)
        grid = grids.trained_ternary(0.2)
        params = {"positive": jnp.float32(0.31), "negative": jnp.float32(0.47)}
        edge = F32(0.2) * np.abs(w).max()
        up, down = w > edge, w < -edge
        to_w, to_params = gradients(grid, w, params, direction)
        factor = np.select([up, down], [F32(0.31), F32(0.47)], F32(1))
        np.testing.assert_allclose(to_w, factor * direction, rtol=1e-6)
        np.testing.assert_allclose(to_params["positive"], direction[up].sum(), rtol=1e-4)
        np.testing.assert_allclose(to_params["negative"], -direction[down].sum(), rtol=1e-4)

    def test_descent_on_both_sizes_finds_the_means_of_the_sides(self):
        rng = np.random.default_rng(13)
        w = jnp.asarray(np.concatenate([rng.normal(1, 0.1, 50), rng.normal(-3, 0.1, 50)]), F32)
        grid = grids.trained_ternary()
        params = {"positive": jnp.float32(2.0), "negative": jnp.float32(0.5)}

        @jax.jit
        def descend(params):
            slopes = jax.grad(lambda p: jnp.square(grid.project(w, p) - w).mean())(params)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, slopes)

        for _ in range(60):
            params = descend(params)
        np.testing.assert_allclose(params["positive"], w[:50].mean(), rtol=1e-3)
        np.testing.assert_allclose(params["negative"], -w[50:].mean(), rtol=1e-3)


class TestBinary:
    def test_the_gradient_is_that_of_section_3_1(self):
        w, direction = kernel(14, scale=1.0), kernel(15)
        grid = grids.binary()
        size, n = np.asarray(grid.fit(w)), 12
        to_w, to_size = gradients(grid, w, size, direction)
        factor = 1 / n + size[None, None, :] * (np.abs(w) <= 1)
        np.testing.assert_allclose(to_w, factor * direction, rtol=1e-5)
        expected = (np.sign(w) * direction).sum((0, 1))
        np.testing.assert_allclose(to_size, expected, rtol=1e-4, atol=1e-6)

    def test_the_size_is_the_best_one(self):
        """Rastegari et al. 2016, section 3.1: mean|w| minimises the squared error."""
        w, grid = kernel(16), grids.binary()
        size = grid.fit(w)
        best = np.square(np.asarray(grid.project(w, size)) - w).sum()
        for factor in (0.95, 1.05):
            assert np.square(np.asarray(grid.project(w, size * factor)) - w).sum() > best


class TestPowersOfTwo:
    def test_every_value_is_zero_or_a_power_of_two(self):
        values = np.unique(np.abs(projected(grids.power_of_two(5), kernel(17, (500, 4)))))
        assert values[0] == 0 and (np.frexp(values[1:])[0] == 0.5).all()
        assert np.unique(np.abs(projected(grids.power_of_two(5), kernel(17, (5000, 1))))).size == 9

    @pytest.mark.parametrize("bits", [2, 3, 4, 5])
    def test_levels_are_integers_times_the_scale(self, bits):
        w = jnp.linspace(-1, 1, 4001).reshape(-1, 1)
        grid = grids.additive_power_of_two(bits)
        codes = np.unique(np.abs(np.asarray(grid.codes(w, grid.fit(w), jnp.float32(0))[0])))
        largest = {2: 1, 3: 4, 4: 10, 5: 48}[bits]
        if bits > 2:
            np.testing.assert_allclose(codes, oracles.additive_levels(bits) * largest)
        assert codes.max() == largest and codes.size == 2 ** (bits - 1)

    def test_more_bits_help_sums_but_not_powers(self):
        """Li et al. 2020, section 2.1: powers of two have a rigid resolution at the ends."""
        w = kernel(18, (20000, 1), scale=1.0).clip(-3, 3)

        def error(grid):
            return float(np.square(projected(grid, w) - w).mean())

        power = [error(grids.power_of_two(bits)) for bits in (4, 6)]
        additive = [error(grids.additive_power_of_two(bits)) for bits in (4, 6)]
        assert power[1] > 0.8 * power[0]
        assert additive[1] < 0.3 * additive[0] and additive[1] < 0.3 * power[1]

    def test_sums_of_powers_fit_bell_shapes_better_than_even_steps(self):
        w = kernel(19, (20000, 1), scale=1.0)
        additive, even = (
            np.square(projected(grid, w) - w).mean()
            for grid in (grids.additive_power_of_two(4), grids.integer(4))
        )
        assert additive < even

    def test_the_gradient_to_the_scale_is_equation_8(self):
        w, direction = kernel(20, (40, 1)), kernel(21, (40, 1))
        grid = grids.additive_power_of_two(4)
        clip = 0.5 * float(np.abs(w).max())
        levels = oracles.additive_levels(4)
        r = np.float64(w).ravel() / clip
        value = oracles.nearest(np.concatenate([-levels, levels]), r.clip(-1, 1))
        terms = np.where(np.abs(r) > 1, np.sign(r), value - r)
        to_w, to_scale = gradients(grid, w, jnp.array([clip / 10], jnp.float32), direction)
        # The params are the smallest level, a tenth of the clipping threshold.
        np.testing.assert_allclose(to_scale, 10 * (terms * direction.ravel()).sum(), rtol=1e-4)
        np.testing.assert_array_equal(to_w.ravel() != 0, np.abs(r) <= 1)


class TestLogarithmic:
    def test_gradients_pass_the_rounding_alone(self):
        w, direction = kernel(22), kernel(23)
        grid = grids.logarithmic(4)
        step = np.asarray(grid.fit(w))
        value = projected(grid, w)
        r = np.sign(w) * np.log1p(np.abs(w)) / step[None, None, :]
        to_w, to_step = gradients(grid, w, step, direction)
        np.testing.assert_allclose(
            to_w, direction * (1 + np.abs(value)) / (1 + np.abs(w)), rtol=1e-4
        )
        terms = (1 + np.abs(value)) * (np.rint(r) - r) * direction
        np.testing.assert_allclose(to_step, terms.sum((0, 1)), rtol=1e-3, atol=1e-5)

    def test_small_weights_beside_large_ones_lose_less_than_with_even_steps(self):
        w = np.concatenate([kernel(24, (999, 1), scale=1.0), np.full((1, 1), 50, F32)])
        log, even = (
            np.square(projected(grid, w) - w)[:-1].mean()
            for grid in (grids.logarithmic(6), grids.integer(6))
        )
        assert log < 0.2 * even


class TestCodebook:
    def test_k_means_is_lloyd_s(self):
        w = kernel(25, (300,))
        found = grids.codebook(8, iterations=7).fit(jnp.asarray(w))
        np.testing.assert_allclose(found, oracles.k_means(np.float64(w), 8, 7), rtol=1e-5)

    def test_a_large_table_is_searched_to_the_same_effect(self):
        w = kernel(26, (3000,))
        grid = grids.codebook(64, iterations=3)
        centroids = grid.fit(jnp.asarray(w))
        expected = np.asarray(centroids)[
            np.abs(w[:, None] - np.asarray(centroids)[None, :]).argmin(1)
        ]
        np.testing.assert_array_equal(grid.project(jnp.asarray(w), centroids), expected)

    def test_a_centroid_gets_the_gradients_of_its_weights(self):
        """Han et al. 2016, equation 3; also after training has put centroids out of order."""
        w, direction = kernel(27), kernel(28)
        grid = grids.codebook(4)
        centroids = np.asarray(grid.fit(w))[[2, 0, 3, 1]]
        cluster = np.abs(w[..., None] - centroids.reshape(1, 1, 1, -1)).argmin(-1)
        to_w, to_centroids = gradients(grid, w, jnp.asarray(centroids), direction)
        expected = [direction[cluster == i].sum() for i in range(4)]
        np.testing.assert_allclose(to_centroids, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(to_w, direction)

    def test_shared_weights_lose_less_than_even_steps(self):
        w = kernel(29, (2000, 1))
        shared, even = (
            np.square(projected(grid, w) - w).mean()
            for grid in (grids.codebook(16), grids.integer(4, granularity=TENSOR))
        )
        assert shared < 0.8 * even

    def test_training_keeps_clusters_and_zeros(self):
        """Trained centroids: a regression gets better, with four values and zeros where pruned."""
        rng = np.random.default_rng(30)
        x = jnp.asarray(rng.normal(size=(64, 16)), jnp.float32)
        y = x @ jnp.asarray(rng.normal(size=(16, 1)), jnp.float32)
        pruned = np.arange(16)[:, None] % 2 == 0
        w = jnp.where(pruned, 0.0, jnp.asarray(rng.normal(size=(16, 1)), jnp.float32))
        grid = grids.keep_zeros(grids.codebook(4))

        def loss(params):
            return jnp.square(x @ grid.project(w, params) - y).mean()

        params = start = grid.fit(w)
        step = jax.jit(lambda p: p - 0.02 * jax.grad(loss)(p))
        for _ in range(20):
            params = step(params)
        value = np.asarray(grid.project(w, params))
        assert float(loss(params)) < 0.95 * float(loss(start))
        assert not value[pruned].any() and np.unique(value[~pruned]).size <= 4

    def test_pruned_weights_do_not_attract_centroids(self):
        w = jnp.asarray(np.concatenate([np.zeros(90), [1.0, 1.1, 2.0, 2.1]]), jnp.float32)
        centroids = grids.keep_zeros(grids.codebook(2)).fit(w)
        np.testing.assert_allclose(centroids, [1.05, 2.05], rtol=1e-6)


class TestCasts:
    @pytest.mark.parametrize("form", ["eager", "jit"])
    @pytest.mark.parametrize(
        ("grid", "dtype", "exponents"),
        [(grids.bfloat16(), jnp.bfloat16, (-110, 120)), (grids.float16(), np.float16, (-27, 15))],
    )
    def test_values_are_numpys(self, form, grid, dtype, exponents):
        rng = np.random.default_rng(31)
        w = (rng.normal(size=20000) * 2.0 ** rng.integers(*exponents, 20000)).astype(F32)
        # Ties, and the largest finite values.
        ties = np.float32([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 0, -0.0])
        w = np.concatenate([w, ties])
        w = w[np.abs(w) < 0.99 * float(jnp.finfo(dtype).max)]
        run = grid.project if form == "eager" else jax.jit(grid.project)
        np.testing.assert_array_equal(run(jnp.asarray(w), ()), w.astype(dtype).astype(F32))

    def test_the_gradient_passes(self):
        slope = jax.grad(lambda w: (grids.bfloat16().project(w, ()) ** 2).sum())(jnp.array([1.003]))
        np.testing.assert_array_equal(slope, [2.0])

    def test_beyond_the_largest_value_is_that_value(self):
        value = grids.float16().project(jnp.array([7e4, -1e30]), ())
        np.testing.assert_array_equal(value, [65504.0, -65504.0])
