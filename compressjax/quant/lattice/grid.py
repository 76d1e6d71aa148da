"""The grid under every lattice operator: codes, rounding, clamping, and their gradients.

The other modules of this package map codes to codes; this one says what a code is, how a value
becomes one, and how a derivative passes a rounding. It also holds the two tricks that keep jit's
bits those of eager execution: XLA divides by a constant through its reciprocal and merges chained
multiplications by constants (`opaque` hides a value from both), and its CPU backend contracts
`a * b + c` into one operation with one rounding instead of two (`rounded_product` prevents it).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

CODE_MIN, CODE_MAX = -128.0, 127.0


class Affine(NamedTuple):
    """A quantized tensor's grid: real = scale * (code - zero_point).

    Attributes:
        scale: float32, [] or, for the weights of a layer, [O].
        zero_point: float32 with an integer value in [-128, 127], [].
    """

    scale: jax.Array
    zero_point: jax.Array


@jax.custom_jvp
def ste_round(x: jax.Array) -> jax.Array:
    """Rounds half to even with the gradient of the identity (Bengio et al. 2013, 1308.3432).

    Args:
        x: float array of any shape.

    Returns:
        The rounded values, in the shape and dtype of `x`.

    Example:
        >>> ste_round(jnp.array([0.5, 1.5, -0.7])).tolist()
        [0.0, 2.0, -1.0]
        >>> float(jax.grad(ste_round)(0.3))
        1.0
    """
    return jnp.round(x)


@ste_round.defjvp
def _ste_round_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return ste_round(*primals), tangents[0]


@jax.custom_jvp
def straight_through(exact: jax.Array, approx: jax.Array) -> jax.Array:
    """Returns `exact`, differentiated as if it were `approx`.

    Args:
        exact: the values wanted, float array of any shape.
        approx: a differentiable array of the same shape and dtype; under jit only its
            derivative is computed.

    Returns:
        `exact`.

    Example:
        >>> float(jax.grad(lambda x: straight_through(jnp.floor(x), 2.0 * x))(0.3))
        2.0
    """
    del approx
    return exact


@straight_through.defjvp
def _straight_through_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return straight_through(*primals), tangents[1]


def quantize(
    x: jax.Array, q: Affine, codes: tuple[float, float] = (CODE_MIN, CODE_MAX)
) -> jax.Array:
    """Maps real values to codes as LiteRT's QUANTIZE does.

    XNNPACK multiplies by the float32 reciprocal of the scale, rounds half to even, adds the
    zero point and saturates; so does the builtin kernel for int16. The gradient passes where the
    rounded code is in range.

    Args:
        x: float32 array of any shape.
        q: the grid, per tensor.
        codes: the least and the greatest code.

    Returns:
        Codes, float32, in the shape of `x`.

    Example:
        >>> grid = Affine(jnp.float32(0.5), jnp.float32(1.0))
        >>> quantize(jnp.array([0.0, 0.75, 1000.0]), grid).tolist()
        [1.0, 3.0, 127.0]
    """
    code = opaque(x, x) * (1.0 / opaque(f32(q.scale), f32(q.zero_point)))
    return saturate(ste_round(code) + f32(q.zero_point), *codes)


def dequantize(codes: jax.Array, q: Affine) -> jax.Array:
    """Maps codes to real values: scale * (code - zero_point), as XNNPACK's DEQUANTIZE.

    Args:
        codes: float32 codes of any shape.
        q: the grid, per tensor.

    Returns:
        float32 real values in the shape of `codes`.

    Example:
        >>> dequantize(jnp.array([1.0, 3.0]), Affine(jnp.float32(0.5), jnp.float32(1.0))).tolist()
        [0.0, 1.0]
    """
    return (codes - f32(q.zero_point)) * f32(q.scale)


def bias_codes(b: jax.Array, in_scale: jax.Array, w_scale: jax.Array) -> jax.Array:
    """Rounds a bias to its int32 grid: round(b / (in_scale * w_scale)), half to even.

    All three operations are float32, so NumPy gives the same codes:
    `np.rint(b / (in_scale * w_scale))` with float32 operands. The codes are exact in an int32
    as long as |b| < 2**31 * in_scale * w_scale: floor tiny weight scales so that this holds.

    Args:
        b: float32 bias, [O].
        in_scale: the input's scale, [].
        w_scale: the weights' scale, [] or [O].

    Returns:
        Integer-valued float32 codes, [O]; the gradient is that of the division.

    Example:
        >>> bias_codes(jnp.array([0.3, -0.1]), jnp.float32(0.5), jnp.float32(0.25)).tolist()
        [2.0, -1.0]
    """
    return ste_round(b / opaque(f32(in_scale) * f32(w_scale), b))


def bounds(out: Affine, lo: float | None, hi: float | None) -> tuple[jax.Array, jax.Array]:
    """Computes the codes between which a fused activation clamps, as XNNPACK does.

    Each bound is round(real / scale + zero_point) in float32, half to even, in [-128, 127].

    Args:
        out: the output's grid, per tensor.
        lo: least real value (0 for relu), or None.
        hi: greatest real value (6 for relu6), or None.

    Returns:
        (code_lo, code_hi), float32 scalars.

    Example:
        >>> grid = Affine(jnp.float32(0.05), jnp.float32(-128.0))
        >>> [float(bound) for bound in bounds(grid, 0.0, 6.0)]
        [-128.0, -8.0]
    """

    def code(value: float) -> jax.Array:
        steps = jnp.float32(value) / f32(out.scale) + f32(out.zero_point)
        return saturate(ste_round(steps), CODE_MIN, CODE_MAX)

    return (
        jnp.float32(CODE_MIN) if lo is None else code(lo),
        jnp.float32(CODE_MAX) if hi is None else code(hi),
    )


def builtin_bounds(
    out: Affine,
    lo: float | None,
    hi: float | None,
    codes: tuple[float, float] = (CODE_MIN, CODE_MAX),
) -> tuple[jax.Array, jax.Array]:
    """Computes the clamp of a fused activation as LiteRT's builtin kernels do.

    Unlike `bounds`, real / scale is rounded half away from zero before the zero point is added.

    Args:
        out: the output's grid, per tensor.
        lo: least real value, or None.
        hi: greatest real value, or None.
        codes: the least and the greatest code.

    Returns:
        (code_lo, code_hi), float32 scalars.

    Example:
        >>> grid = Affine(jnp.float32(4.0), jnp.float32(1.0))
        >>> [float(bound) for bound in builtin_bounds(grid, 0.0, 6.0)]
        [1.0, 3.0]
    """

    def code(value: float) -> jax.Array:
        return jnp.clip(away(jnp.float32(value) / f32(out.scale)) + f32(out.zero_point), *codes)

    return (
        f32(codes[0]) if lo is None else code(lo),
        f32(codes[1]) if hi is None else code(hi),
    )


def away(x: jax.Array) -> jax.Array:
    """Rounds halves away from zero, as C's `round` does; not differentiated.

    Args:
        x: float32 of any shape.

    Returns:
        Integers, float32.

    Example:
        >>> away(jnp.array([0.5, 1.5, -2.5, 0.49999997])).tolist()
        [1.0, 2.0, -3.0, 0.0]
    """
    return jnp.trunc(x) + jnp.trunc(2.0 * (x - jnp.trunc(x)))


def store(steps: jax.Array, out_q: Affine, code_lo: jax.Array, code_hi: jax.Array) -> jax.Array:
    """Rounds a value in steps of the output's grid half to even, shifts it and clamps it.

    The gradient passes where code_lo < steps + zero_point <= code_hi, before rounding, so a
    fused relu has relu's own gradient.

    Args:
        steps: real value / output scale, float32 of any shape.
        out_q: the output's grid; only its zero point is used.
        code_lo: least code, [].
        code_hi: greatest code, [].

    Returns:
        Codes in [code_lo, code_hi], float32, in the shape of `steps`.

    Example:
        >>> grid = Affine(jnp.float32(1.0), jnp.float32(3.0))
        >>> store(jnp.array([0.5, 2.6, -9.0]), grid, jnp.float32(3.0), jnp.float32(5.0)).tolist()
        [3.0, 5.0, 3.0]
    """
    zero_point = f32(out_q.zero_point)
    exact = jnp.clip(jnp.round(steps) + zero_point, code_lo, code_hi)
    return clamped_like(exact, steps + zero_point, code_lo, code_hi)


def clamped_like(
    exact: jax.Array, raw: jax.Array, code_lo: jax.Array, code_hi: jax.Array
) -> jax.Array:
    """Returns `exact` with the gradient of `raw` clamped to (code_lo, code_hi].

    Args:
        exact: the codes, float32 of any shape.
        raw: the differentiable value before rounding, in the shape of `exact`.
        code_lo: least code, [].
        code_hi: greatest code, [].

    Returns:
        `exact`.

    Example:
        >>> lo, hi = jnp.float32(0.0), jnp.float32(9.0)
        >>> jax.grad(lambda x: clamped_like(jnp.round(x), 2 * x, lo, hi))(3.2).item()
        2.0
    """
    approx = jnp.where(raw <= code_lo, code_lo, jnp.where(raw > code_hi, code_hi, raw))
    return straight_through(lax.stop_gradient(exact), approx)


def saturate(codes: jax.Array, lo: jax.typing.ArrayLike, hi: jax.typing.ArrayLike) -> jax.Array:
    """Clamps to [lo, hi]; unlike `jnp.clip`, a code equal to a bound keeps its gradient.

    Args:
        codes: float32 of any shape.
        lo: least code.
        hi: greatest code.

    Returns:
        The clamped codes.

    Example:
        >>> jax.grad(lambda x: saturate(x, 0.0, 1.0))(1.0).item()
        1.0
    """
    return jnp.where(codes < lo, lo, jnp.where(codes > hi, hi, codes))


def f32(value: jax.typing.ArrayLike) -> jax.Array:
    """Converts a number or an array to float32.

    Args:
        value: a number or an array.

    Returns:
        The float32 array.

    Example:
        >>> f32(1).dtype
        dtype('float32')
    """
    return jnp.asarray(value, jnp.float32)


def to_int(codes: jax.typing.ArrayLike) -> jax.Array:
    """Gives codes as int32; no gradient passes.

    Args:
        codes: integer-valued numbers of any shape.

    Returns:
        int32.

    Example:
        >>> to_int(jnp.array([-3.0])).dtype
        dtype('int32')
    """
    return lax.stop_gradient(f32(codes)).astype(jnp.int32)


def along(vector: jax.Array, axis: int, ndim: int) -> jax.Array:
    """Reshapes a vector so that it broadcasts along one axis.

    Args:
        vector: [O], or anything of one value.
        axis: the axis it shall run along.
        ndim: the rank of the array it meets.

    Returns:
        The vector in rank `ndim`.

    Example:
        >>> along(jnp.ones(3), 1, 4).shape
        (1, 3, 1, 1)
    """
    shape = [1] * ndim
    shape[axis] = vector.size
    return vector.reshape(shape)


def opaque(value: jax.Array, witness: jax.Array) -> jax.Array:
    """Returns `value` as something that a compiler cannot take for a constant or a product.

    It is selected by a comparison of `witness` with itself, which only NaN fails, so no compiler
    may fold it. Optimization barriers do not serve: XLA's CPU backend drops them early.

    Args:
        value: float array.
        witness: float array that broadcasts with `value`, not a constant where it matters.

    Returns:
        `value`, broadcast against `witness`; NaN where `witness` is NaN.

    Example:
        >>> float(opaque(jnp.float32(0.3), jnp.float32(2.0)) == jnp.float32(0.3))
        1.0
    """
    return jnp.where(witness == witness, value, jnp.nan)


def ratio(numerator: jax.typing.ArrayLike, denominator: jax.typing.ArrayLike) -> jax.Array:
    """Divides in float32, correctly rounded even by a compile-time constant.

    Args:
        numerator: float32.
        denominator: float32, broadcasts with `numerator`.

    Returns:
        The quotient.

    Example:
        >>> float(ratio(jnp.float32(1.0), jnp.float32(4.0)))
        0.25
    """
    return f32(numerator) / opaque(f32(denominator), f32(numerator))


def rounded_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies so that a following addition cannot swallow the product's own rounding.

    The sign is applied by a selection after the product, which compilers do not contract into a
    fused multiply-add.

    Args:
        a: float32.
        b: float32, broadcasts with `a`.

    Returns:
        a * b, rounded to float32.

    Example:
        >>> float(rounded_product(jnp.float32(-3.0), jnp.float32(0.5)))
        -1.5
    """
    size = jnp.abs(a) * b
    return jnp.where(a < 0, -size, size)
