"""Products of two activations: the lattice and its fixed point against LiteRT and big integers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressjax.quant import lattice
from compressjax.quant.lattice import fixed
from compressjax.quant.lattice.matmul import MAX_EXACT_TERMS
from tests.quant.test_lattice import (
    F32,
    assert_exact,
    draw_codes,
    draw_scale,
    draw_zero,
    floats,
    grid,
)
from tests.support import tflite_ops as ops

SCALES = st.floats(2.0**-20, 2.0**10, width=32)


def quantize_multiplier(numerator, denominator):
    """Mantissa and exponent from float64, as LiteRT's quantization_util.cc has them."""
    fraction, exponent = math.frexp(float(numerator) / float(denominator))
    mantissa = math.floor(fraction * 2**31 + 0.5)
    return (2**30, exponent + 1) if mantissa == 2**31 else (mantissa, exponent)


def multiplied(value, mantissa, exponent):
    """gemmlowp's two roundings, in integers of any size."""
    product = value * mantissa << max(exponent, 0)
    high = (abs(product) + 2**30 - (product < 0)) >> 31
    right = max(-exponent, 0)
    size = (high + (1 << right >> 1)) >> right
    return -size if value < 0 else size


class TestFixed:
    @settings(max_examples=300, deadline=None)
    @given(SCALES, SCALES)
    def test_multiplier_is_that_of_float64(self, numerator, denominator):
        found = jax.jit(fixed.multiplier_of)(jnp.float32(numerator), jnp.float32(denominator))
        expected = quantize_multiplier(numerator, denominator)
        assert (int(found.mantissa), int(found.exponent)) == expected

    @pytest.mark.parametrize("exponent", [-31, -20, -7, -1, 0, 1, 5])
    def test_product_is_rounded_twice(self, exponent):
        rng = np.random.default_rng(exponent + 40)
        bits = 31 - max(exponent, 0)
        values = np.concatenate(
            [
                rng.integers(-(2**bits) + 1, 2**bits, 300),
                rng.integers(-300, 300, 300),
                [0, 1, -1, 2 ** (bits - 1), -(2 ** (bits - 1)), 1 - 2**bits],
            ]
        ).astype(np.int32)
        for mantissa in (2**30, 2**31 - 1, int(rng.integers(2**30, 2**31)), 3 * 2**29):
            times = fixed.Multiplier(jnp.int32(mantissa), jnp.int32(exponent))
            expected = [multiplied(int(value), mantissa, exponent) for value in values]
            np.testing.assert_array_equal(jax.jit(fixed.multiply)(values, times), expected)


MATMULS = {
    "matrices": dict(a=(1, 7, 9), b=(1, 9, 5)),
    "batched": dict(a=(3, 8, 17), b=(3, 17, 6)),
    "heads": dict(a=(2, 4, 10, 8), b=(2, 4, 8, 10)),
    "adjoint": dict(a=(2, 3, 6, 11), b=(2, 3, 11, 7), adjoint=True),
    "rows and columns": dict(a=(40, 1, 33), b=(40, 33, 1)),
    "one term": dict(a=(2, 12, 1), b=(2, 1, 12)),
    "exact in one piece": dict(a=(2, 6, MAX_EXACT_TERMS), b=(2, MAX_EXACT_TERMS, 6)),
    "long": dict(a=(2, 6, 700), b=(2, 700, 6)),
}


def matmul(a, b, a_q, b_q, out_q):
    """A whole matrix product: its sums, and what follows them."""
    return lattice.matmul_rescale(lattice.matmul_sum(a, b, a_q, b_q), a_q, b_q, out_q)


def matmul_case(seed, a, b, adjoint=False, extreme=False, b_zero=None):
    """Draws two activations, and returns LiteRT's answer with the arguments of `matmul`."""
    rng = np.random.default_rng(seed)
    left, right = draw_codes(rng, *a), draw_codes(rng, *b)
    a_zero, zero = draw_zero(rng), int(rng.integers(-40, 41))
    b_zero = int(rng.choice([-9, -1, 1, 8])) if b_zero is None else b_zero
    if extreme:
        left, right, a_zero = np.full_like(left, 127), np.full_like(right, 127), -128
        left.flat[:: 7 + seed], right.flat[::5] = 126, 90
    a_scale, b_scale = draw_scale(rng, -6, -2), draw_scale(rng, -6, -2)
    sums = (left.astype(int) - a_zero) @ (right.astype(int) - b_zero)
    spread = np.abs(sums).max() / rng.choice([60, 127, 254])
    scale = F32(2.0 ** np.ceil(np.log2(spread * a_scale * b_scale))) * rng.choice(F32([1, 0.83]))
    stored = right.swapaxes(-1, -2).copy() if adjoint else right
    model = ops.batch_matmul(
        ops.Tensor(a, scale=a_scale, zero_point=a_zero),
        ops.Tensor(stored.shape, scale=b_scale, zero_point=b_zero),
        ops.Tensor(sums.shape, scale=scale, zero_point=zero),
        adjoint,
    )
    assert ops.delegated(model) == (b_zero == 0)
    grids = (grid(a_scale, a_zero), grid(b_scale, b_zero), grid(scale, zero))
    return ops.run(model, left, stored), (floats(left), floats(right), *grids)


class TestMatmul:
    @pytest.mark.parametrize("name", MATMULS)
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_litert(self, name, seed):
        expected, arguments = matmul_case(seed, **MATMULS[name])
        assert len(np.unique(expected)) > 4
        forms = ("eager", "jit", "constants") if (name, seed) == ("matrices", 0) else ("jit",)
        assert_exact(matmul, expected, *arguments, forms=forms)

    @pytest.mark.parametrize("b_zero", [None, 0])
    def test_many_products_equal_litert(self, b_zero):
        compared = 0
        for seed in range(40):
            expected, arguments = matmul_case(seed, (4, 40, 8), (4, 8, 40), b_zero=b_zero)
            assert_exact(matmul, expected, *arguments, forms=("jit",))
            compared += expected.size
        assert compared == 256_000

    @pytest.mark.parametrize("b_zero", [-128, 0])
    @pytest.mark.parametrize("name", ["exact in one piece", "long"])
    def test_is_exact_at_and_beyond_2_to_the_24(self, name, b_zero):
        expected, arguments = matmul_case(1, **MATMULS[name], extreme=True, b_zero=b_zero)
        a, b, a_q, b_q, _ = arguments
        exact = (np.asarray(a, np.int64) + 128) @ (np.asarray(b, np.int64) - b_zero)
        assert exact.max() > 2**22
        np.testing.assert_array_equal(lattice.matmul_sum(a, b, a_q, b_q).exact, exact)
        assert_exact(matmul, expected, *arguments, forms=("jit",))

    def test_multiplier_comes_from_the_float32_product_of_the_scales(self):
        # One sum for which a float64 product of the input scales would round to another code.
        rng = np.random.default_rng(5)
        left, told = np.full((1, 1, 600), 127, np.int8), 0
        left[0, 0, -1] = -127
        while told < 3:
            a, b = F32(rng.uniform(0.01, 0.02)), F32(rng.uniform(0.01, 0.02))
            scale = F32(float(a) * float(b) * 2**24 / 100)
            wide = quantize_multiplier(float(a) * float(b), scale)
            narrow = quantize_multiplier(a * b, scale)
            edges = [int((code + 0.5) / (float(a * b) / float(scale))) for code in range(20, 120)]
            sums = [s for e in edges for s in range(e - 3, e + 4)]
            sums = [s for s in sums if multiplied(s, *wide) != multiplied(s, *narrow)]
            if not sums:
                continue
            full, rest = divmod(sums[0], 255)
            right = np.full(600, -128)
            right[: full // 255] = 127
            right[full // 255] += full % 255
            right[-1] += rest
            right = right.astype(np.int8).reshape(1, 600, 1)
            model = ops.batch_matmul(
                ops.Tensor(left.shape, scale=a, zero_point=-128),
                ops.Tensor(right.shape, scale=b, zero_point=-128),
                ops.Tensor((1, 1, 1), scale=scale),
            )
            expected = ops.run(model, left, right)
            assert expected.item() == multiplied(sums[0], *narrow)
            grids = grid(a, -128), grid(b, -128), grid(scale, 0)
            assert_exact(matmul, expected, floats(left), floats(right), *grids, forms=("jit",))
            told += 1

    def test_gradients_are_those_of_the_real_product(self):
        _, (a, b, a_q, b_q, out_q) = matmul_case(0, **MATMULS["long"])
        out_q = out_q._replace(scale=out_q.scale * 4)

        def codes(a, b, a_scale):
            return matmul(a, b, a_q._replace(scale=a_scale), b_q, out_q).sum()

        def real(a, b, a_scale):
            product = (a - a_q.zero_point) * a_scale @ ((b - b_q.zero_point) * b_q.scale)
            return (product / out_q.scale).sum()

        found = jax.grad(codes, (0, 1, 2))(a, b, a_q.scale)
        for one, other in zip(found, jax.grad(real, (0, 1, 2))(a, b, a_q.scale), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)

    def test_bfloat16_holds_every_operand(self):
        codes = jnp.arange(-255.0, 256.0)
        np.testing.assert_array_equal(codes.astype(jnp.bfloat16).astype(jnp.float32), codes)

    def test_shapes_that_do_not_fit_are_named(self):
        with pytest.raises(ValueError, match=r"matmul of \(2, 3\) and \(2, 3\): expected"):
            lattice.matmul_sum(jnp.ones((2, 3)), jnp.ones((2, 3)), grid(1, 0), grid(1, 0))
