"""Numbers of more than 32 bits in 32-bit integers, against Python's own."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.quant import lattice
from compressjax.quant.lattice import fixed, total

RNG = np.random.default_rng(0)
COUNT = 4000


def _floats():
    values = np.exp(RNG.normal(size=COUNT) * 5).astype(np.float32)
    values[:200] = 2.0 ** RNG.integers(-20, 20, 200)
    return values


def _integers(bits):
    """Of all sizes up to `bits`, of both signs."""
    sizes = RNG.integers(0, bits - 1, COUNT)
    return RNG.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), COUNT) >> sizes


def _total(values):
    words = (values >> 32).astype(np.int32), (values & 0xFFFFFFFF).astype(np.uint32)
    return total.Total(*map(jnp.asarray, words), jnp.asarray(values, jnp.float32))


def test_a_quotient_is_that_of_float64():
    first, second, below = _floats(), _floats(), _floats()
    below[100:300] = first[100:300]
    high, low, exponent = jax.device_get(jax.jit(fixed.quotient)(first, second, below))
    assert (high >= 2**30).all() and (high < 2**31).all() and (low < 2**22).all()
    found = np.ldexp((high.astype(np.int64) << 22) + low, exponent - 53)
    expected = first.astype(np.float64) * second.astype(np.float64) / below.astype(np.float64)
    np.testing.assert_array_equal(found, expected)


def test_a_multiplier_is_that_of_float64_in_31_bits():
    above, below, times = _floats(), _floats(), _floats()
    mantissa, exponent = jax.device_get(jax.jit(fixed.multiplier_of)(above, below, times))
    real = above.astype(np.float64) * times.astype(np.float64) / below.astype(np.float64)
    fraction, power = np.frexp(real)
    expected = np.floor(fraction * 2.0**31 + 0.5)
    np.testing.assert_array_equal(np.ldexp(mantissa.astype(np.float64), exponent),
                                  np.ldexp(expected, power))  # fmt: skip


def test_an_int64_is_multiplied_by_15_bits():
    values = _integers(47)
    mantissa = RNG.integers(2**30, 2**31, COUNT)
    mantissa[:50] = 0x7FFF0000 + RNG.integers(-3, 3, 50)
    exponent = RNG.integers(-31, 8, COUNT)
    short = np.where(mantissa < 0x7FFF0000, (mantissa + 2**15) >> 16, 0x7FFF)
    fits = np.abs(values * (short / 2.0**15) * 2.0**exponent) < 2**31 - 2
    times = fixed.Multiplier(jnp.asarray(mantissa, jnp.int32), jnp.asarray(exponent, jnp.int32))
    found = np.asarray(jax.jit(total.multiply)(_total(values), times))
    expected = [
        (int(value) * int(by) + (1 << (14 - int(power)))) >> (15 - int(power))
        for value, by, power in zip(values, short, exponent, strict=True)
    ]
    assert fits.sum() > COUNT / 2
    np.testing.assert_array_equal(found[fits], np.array(expected, object)[fits].astype(np.int64))


def test_an_int64_is_multiplied_by_a_float64_with_halves_away_from_zero():
    values = _integers(47)
    values[:1000] = RNG.integers(-(2**20), 2**20, 1000)
    first, second = _floats(), np.ones(COUNT, np.float32)
    size = np.abs(values) * first.astype(np.float64)
    below = (np.maximum(size, 1) / 2 ** RNG.uniform(0, 17, COUNT)).astype(np.float32)
    first[:1000], below[:1000] = 1.0, 2.0 ** RNG.integers(5, 12, 1000)  # many halves
    found = np.asarray(
        jax.jit(total.multiply_float)(_total(values), fixed.quotient(first, second, below))
    )
    product = values * (first.astype(np.float64) / below.astype(np.float64))
    whole = np.floor(np.abs(product))
    expected = np.sign(product) * (whole + (np.abs(product) - whole >= 0.5))
    np.testing.assert_array_equal(found, expected)


def test_a_float64_product_next_to_a_half_is_rounded_as_float64_is():
    """Exactly it would be under the half; as a float64 it is the half."""
    factor = np.nextafter(0.5, 0.0) * 3 / 3
    mantissa = int(fractions.Fraction(factor) * 2**54)
    times = fixed.Quotient(jnp.uint32(mantissa >> 22), jnp.uint32(mantissa & (2**22 - 1)),
                           jnp.int32(-1))  # fmt: skip
    for value in (1, 3, 5, 101, 32765):
        found = total.multiply_float(_total(np.array([value])), times)
        product = float(value) * factor
        assert int(found[0]) == int(product) + (product - int(product) >= 0.5)
        exact = fractions.Fraction(value) * fractions.Fraction(factor)
        assert exact < fractions.Fraction(value, 2)


@pytest.mark.parametrize("bias", [False, True])
def test_sums_are_exact_where_float32_and_int32_are_not(bias):
    x = RNG.integers(-32768, 32768, (3, 5000)).astype(np.float32)
    w = RNG.integers(-127, 128, (5000, 4)).astype(np.float32)
    x[0], w[:, 0] = 32767, 127
    offset = np.array([2.0**38, -(2.0**38), 12345.0, -1.0], np.float32) if bias else None
    form = lattice.dot(x, w, dimension_numbers=(((1,), (0,)), ((), ())))
    found = jax.device_get(jax.jit(lambda x, w: total.total(form, x, w, offset))(x, w))
    expected = x.astype(np.int64) @ w.astype(np.int64)
    expected = expected + (0 if offset is None else offset.astype(np.int64))
    np.testing.assert_array_equal((found.high.astype(np.int64) << 32) + found.low, expected)
    np.testing.assert_allclose(found.approx, expected, rtol=1e-6)
    assert np.abs(expected).max() > 2**32


def test_products_of_two_activations_are_exact():
    a, b = (RNG.integers(-32768, 32768, size).astype(np.float32)
            for size in ((2, 3, 700), (2, 700, 4)))  # fmt: skip
    a[0, 0], b[0, :, 0] = -32768, -32768
    found = jax.device_get(jax.jit(total.matmul)(a, b))
    expected = np.matmul(a.astype(np.int64), b.astype(np.int64))
    np.testing.assert_array_equal((found.high.astype(np.int64) << 32) + found.low, expected)


def test_sums_too_long_are_refused():
    x, w = jnp.ones((1, 2**16 + 1)), jnp.ones((2**16 + 1, 1))
    form = lattice.dot(x, w, dimension_numbers=(((1,), (0,)), ((), ())))
    with pytest.raises(ValueError, match="65537 products of 16 by 8 bits"):
        total.total(form, x, w, None)
    with pytest.raises(ValueError, match="65537 products of 16 bits"):
        total.matmul(x, w)


def test_the_gradient_is_that_of_the_real_sum():
    x, w = jnp.array([[300.0, -2.0]]), jnp.array([[3.0], [4.0]])
    form = lattice.dot(x, w, dimension_numbers=(((1,), (0,)), ((), ())))

    def first(x, w, bias):
        return total.total(form, x, w, bias).approx[0, 0]

    slopes = jax.grad(first, (0, 1, 2))(x, w, jnp.array([7.0]))
    np.testing.assert_array_equal(slopes[0], [[3.0, 4.0]])
    np.testing.assert_array_equal(slopes[1], [[300.0], [-2.0]])
    np.testing.assert_array_equal(slopes[2], [1.0])
