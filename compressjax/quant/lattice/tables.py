"""Functions that LiteRT tabulates with the grids of both ends: exp, log, gelu, elu, square roots.

Unlike those of `functions`, whose output grids are fixed, each of these has 256 values that follow
from two grids, so the table is made inside the traced function and ranges can still move. LiteRT
fills its tables with the C library's single-precision functions. XLA's own are some units in the
last place away from those and differ between eager execution and jit, so the tables are evaluated
in double precision (`jax.enable_x64` around 256 values) and rounded to single wherever LiteRT
rounds (`single`); that gives glibc's values, which are the correctly rounded ones but for a few in
a million. Another C library may put an entry that lies within 1e-5 steps of a tie one step away.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax.quant.lattice.fixed_point import (
    inverse_roots,
    multiply,
    quantized_multiplier,
)
from compressjax.quant.lattice.grid import (
    CODE_MAX,
    CODE_MIN,
    Affine,
    clamped_like,
    dequantize,
    f32,
    ratio,
)

_Function = Callable[[jax.Array], jax.Array]
_HALF_ROOT = np.float32(math.sqrt(0.5))
_ROOT_2_OVER_PI = np.float32(math.sqrt(2 / math.pi))
_CUBE = np.float32(0.044715)
_FINE = np.float32(2.0**-8)
_COARSE = np.float32(2.0**7)


def exp(x: jax.Array, x_q: Affine, out_q: Affine) -> jax.Array:
    """Computes EXP by the builtin kernel's table: XNNPACK declines it for int8.

    Each entry is expf(real) times the reciprocal of the output's scale, rounded half away from
    zero; exact as long as that is below 2**31.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.

    Returns:
        Output codes, float32.

    Example:
        >>> grid = Affine(f32(0.5), f32(0.0))
        >>> exp(jnp.array([0.0, 2.0, 100.0]), grid, grid).tolist()
        [2.0, 5.0, 127.0]
    """
    return _away(x, x_q, out_q, lambda real: single(jnp.exp(real)), jnp.exp)


def log(x: jax.Array, x_q: Affine, out_q: Affine) -> jax.Array:
    """Computes LOG by the builtin kernel's table: XNNPACK declines it for int8.

    Each entry is logf(real) times the reciprocal of the output's scale, rounded half away from
    zero. What is not positive gives the lowest code, without a gradient.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.

    Returns:
        Output codes, float32.

    Example:
        >>> grid = Affine(f32(0.5), f32(0.0))
        >>> log(jnp.array([-1.0, 2.0, 100.0]), grid, grid).tolist()
        [-128.0, 0.0, 8.0]
    """

    def function(real: jax.Array) -> jax.Array:
        return jnp.where(real > 0, single(jnp.log(jnp.where(real > 0, real, 1.0))), -jnp.inf)

    return _away(x, x_q, out_q, function, lambda real: where_positive(jnp.log, real, -jnp.inf))


def gelu(x: jax.Array, x_q: Affine, out_q: Affine, *, approximate: bool) -> jax.Array:
    """Computes GELU (Hendrycks & Gimpel 2016, 1606.08415) by the builtin kernel's table.

    XNNPACK declines it for int8. Each entry is evaluated in single precision, as
    0.5 x erfc(-x sqrt(1/2)) or as 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x x x))), times the
    reciprocal of the output's scale, rounded half away from zero.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.
        approximate: whether the second form is meant.

    Returns:
        Output codes, float32.

    Example:
        >>> grid = Affine(f32(0.05), f32(0.0))
        >>> gelu(jnp.array([-100.0, -20.0, 100.0]), grid, grid, approximate=True).tolist()
        [0.0, -3.0, 100.0]
    """

    def smooth(real: jax.Array) -> jax.Array:
        return jax.nn.gelu(real, approximate=approximate)

    return _away(x, x_q, out_q, single_tanh_gelu if approximate else single_gelu, smooth)


def single_gelu(real: jax.Array) -> jax.Array:
    """Evaluates 0.5 x erfc(-x sqrt(1/2)), rounded to single precision at every step.

    Args:
        real: float64 of any shape, values of single precision.

    Returns:
        The same.

    Example:
        >>> with jax.enable_x64(True):
        ...     float(single_gelu(jnp.float64(1.0)))
        0.8413447141647339
    """
    tail = single(lax.erfc(single(real * -np.float64(_HALF_ROOT))))
    return single(real * 0.5 * tail)


def single_tanh_gelu(real: jax.Array) -> jax.Array:
    """Evaluates 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x x x))), like `single_gelu`.

    Args:
        real: float64 of any shape, values of single precision.

    Returns:
        The same.

    Example:
        >>> with jax.enable_x64(True):
        ...     round(float(single_tanh_gelu(jnp.float64(1.0))), 6)
        0.841192
    """
    cube = single(single(single(np.float64(_CUBE) * real) * real) * real)
    inner = single(np.float64(_ROOT_2_OVER_PI) * single(real + cube))
    return single(real * 0.5 * single(1.0 + single(jnp.tanh(inner))))


def elu(x: jax.Array, x_q: Affine, out_q: Affine) -> jax.Array:
    """Computes ELU (Clevert et al. 2015, 1511.07289; alpha 1) by XNNPACK's table.

    Each entry is expm1f(real), or the real value itself where that is positive, times the
    reciprocal of the output's scale, plus the zero point, rounded half to even.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.

    Returns:
        Output codes, float32.

    Example:
        >>> grid = Affine(f32(0.05), f32(0.0))
        >>> elu(jnp.array([-100.0, -20.0, 100.0]), grid, grid).tolist()
        [-20.0, -13.0, 100.0]
    """
    with jax.enable_x64(True):
        real, inverse, zero = _table_operands(x_q, out_q)
        negative = single(jnp.expm1(jnp.minimum(real, 0.0)))
        steps = single(jnp.where(real < 0, negative, real) * inverse)
        table = jnp.round(single(steps + zero)).clip(CODE_MIN, CODE_MAX).astype(jnp.float32)
    return _stored(x, x_q, out_q, table, jax.nn.elu)


def sqrt(x: jax.Array, x_q: Affine, out_q: Affine) -> jax.Array:
    """Computes SQRT by the builtin kernel: XNNPACK declines it for int8.

    sqrtf(real) / output scale is cut towards zero, not rounded. LiteRT fails at run time on a
    negative value, so the zero point of `x` has to be -128; here it gives 0.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.

    Returns:
        Output codes, float32.

    Example:
        >>> grid = Affine(f32(0.05), f32(-128.0))
        >>> sqrt(jnp.array([-128.0, -108.0, 127.0]), grid, grid).tolist()
        [-128.0, -108.0, -57.0]
    """
    with jax.enable_x64(True):
        real, _, zero = _table_operands(x_q, out_q)
        root = single(jnp.sqrt(jnp.maximum(real, 0.0)))
        steps = jnp.trunc(single(root / f32(out_q.scale).astype(jnp.float64)))
        table = (steps + zero).clip(CODE_MIN, CODE_MAX).astype(jnp.float32)
    return _stored(x, x_q, out_q, table, lambda real: where_positive(jnp.sqrt, real, 0.0))


def rsqrt(x: jax.Array, x_q: Affine, out_q: Affine) -> jax.Array:
    """Computes RSQRT by the builtin kernel's fixed point: XNNPACK declines it for int8.

    Each of the integers 1 to 255 (code minus zero point) has a root of 20 fractional bits by five
    Newton steps; that is multiplied by 1 / (sqrtf(x scale) * output scale) with 31 bits, halves
    rounded away from zero. Zero gives code 127. LiteRT fails at run time on a negative value, so
    the zero point of `x` has to be -128; here a negative value counts as zero.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.

    Returns:
        Output codes, float32.

    Example:
        >>> grid = Affine(f32(0.05), f32(-128.0))
        >>> rsqrt(jnp.array([-128.0, -108.0, 127.0]), grid, grid).tolist()
        [127.0, -108.0, -122.0]
    """
    with jax.enable_x64(True):
        root = single(jnp.sqrt(lax.stop_gradient(f32(x_q.scale)).astype(jnp.float64)))
        scale = single(root * lax.stop_gradient(f32(out_q.scale)).astype(jnp.float64))
        mantissa, exponent = quantized_multiplier(1.0 / scale)
        moved = multiply(jnp.asarray(inverse_roots()), mantissa, exponent - 20)
        whole = _all_codes() - lax.stop_gradient(f32(x_q.zero_point)).astype(jnp.int64)
        found = jnp.take(moved, whole, mode="clip") + f32(out_q.zero_point).astype(jnp.int64)
        table = jnp.where(whole <= 0, CODE_MAX, found.clip(CODE_MIN, CODE_MAX)).astype(jnp.float32)
    return _stored(x, x_q, out_q, table, lambda real: where_positive(lax.rsqrt, real, jnp.inf))


def leaky_relu(x: jax.Array, x_q: Affine, out_q: Affine, slope: float) -> jax.Array:
    """Computes LEAKY_RELU (Maas et al. 2013); with slope -1, the absolute value.

    XNNPACK multiplies by rint(256 * r), adds a half and shifts right by 8, where r is x scale /
    output scale, times `slope` below zero. It takes both r in size from 2**-8 to 2**7; else the
    builtin kernel multiplies in 32-bit fixed point and rounds halves away from zero.

    Args:
        x: codes of any shape.
        x_q: the grid of `x`.
        out_q: the output's grid.
        slope: the factor below zero.

    Returns:
        Output codes, float32.

    Example:
        >>> grid = Affine(f32(0.05), f32(0.0))
        >>> leaky_relu(jnp.array([-100.0, 0.0, 100.0]), grid, grid, 0.1).tolist()
        [-10.0, 0.0, 100.0]
    """
    above = lax.stop_gradient(ratio(x_q.scale, out_q.scale))
    below = above * np.float32(slope)
    taken = (above >= _FINE) & (above <= _COARSE)
    taken &= (jnp.abs(below) >= _FINE) & (below <= _COARSE) & (below >= _FINE - _COARSE)
    whole = _all_codes().astype(jnp.float32) - lax.stop_gradient(f32(x_q.zero_point))
    times = jnp.round(256.0 * jnp.where(whole >= 0, above, below))
    shifted = jnp.floor((whole * times + 128.0) / 256.0)
    with jax.enable_x64(True):
        x_scale, out_scale = (
            lax.stop_gradient(f32(q.scale)).astype(jnp.float64) for q in (x_q, out_q)
        )
        integers = whole.astype(jnp.int64)
        right, left = (
            multiply(integers, *quantized_multiplier(single(scale / out_scale)))
            for scale in (x_scale, single(x_scale * np.float64(np.float32(slope))))
        )
        fixed = jnp.where(integers >= 0, right, left).astype(jnp.float32)
    steps = jnp.where(taken, shifted, fixed) + lax.stop_gradient(f32(out_q.zero_point))
    table = jnp.clip(steps, CODE_MIN, CODE_MAX)
    return _stored(x, x_q, out_q, table, lambda real: jax.nn.leaky_relu(real, slope))


def single(value: jax.Array) -> jax.Array:
    """Rounds a float64 to what a float32 holds, in a way that no compiler leaves out.

    Of one sum, product or quotient of single-precision values the result is the same as if it had
    been computed in single precision: 53 bits are more than twice 24 plus two.

    Args:
        value: float64 of any shape.

    Returns:
        float64.

    Example:
        >>> with jax.enable_x64(True):
        ...     float(single(jnp.float64(0.1))) == float(np.float32(0.1))
        True
    """
    return lax.reduce_precision(value, exponent_bits=8, mantissa_bits=23)


def _all_codes() -> jax.Array:
    return jnp.arange(int(CODE_MIN), int(CODE_MAX) + 1)


def _table_operands(x_q: Affine, out_q: Affine) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The 256 real values, 1 / output scale and the output's zero point, singles in float64."""
    x_scale, x_zero, scale, zero = (
        lax.stop_gradient(f32(value)).astype(jnp.float64) for value in (*x_q, *out_q)
    )
    real = single((_all_codes().astype(jnp.float64) - x_zero) * x_scale)
    return real, single(1.0 / scale), zero


def _away(
    x: jax.Array, x_q: Affine, out_q: Affine, function: _Function, smooth: _Function
) -> jax.Array:
    """A table whose entries are rounded half away from zero."""
    with jax.enable_x64(True):
        real, inverse, zero = _table_operands(x_q, out_q)
        steps = single(function(real) * inverse)
        rounded = jnp.trunc(steps + jnp.copysign(0.5, steps))
        table = (rounded + zero).clip(CODE_MIN, CODE_MAX).astype(jnp.float32)
    return _stored(x, x_q, out_q, table, smooth)


def _stored(
    x: jax.Array, x_q: Affine, out_q: Affine, table: jax.Array, smooth: _Function
) -> jax.Array:
    """Looks codes up, with the gradient of the function on reals where it was not clamped."""
    index = (lax.stop_gradient(x) - CODE_MIN).astype(jnp.int32)
    exact = jnp.take(lax.stop_gradient(table), index, mode="clip")
    steps = smooth(dequantize(x, x_q)) / f32(out_q.scale) + f32(out_q.zero_point)
    return clamped_like(exact, steps, f32(CODE_MIN), f32(CODE_MAX))


def where_positive(function: _Function, real: jax.Array, otherwise: float) -> jax.Array:
    """A function of the positive values alone, whose gradient is finite.

    Args:
        function: of an array.
        real: float of any shape.
        otherwise: what others give.

    Returns:
        In the shape of `real`.

    Example:
        >>> where_positive(jnp.log, jnp.array([-1.0, 1.0]), -9.0).tolist()
        [-9.0, 0.0]
    """
    positive = real > 0
    return jnp.where(positive, function(jnp.where(positive, real, 1.0)), otherwise)
