"""The lattice's product of two activations: BATCH_MATMUL, as attention needs it.

Unlike the products with weights of `products`, both operands may have a zero point. XNNPACK takes
only a second operand whose zero point is 0; for any other the builtin kernel runs, which brings the
sums to the output's grid in 32-bit fixed point (`fixed`) instead of float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.lattice.fixed import multiplier_of, multiply
from compressjax.quant.lattice.grid import CODE_MAX, CODE_MIN, Affine, clamped_like, f32, ratio

# Two codes less their zero points have a product of at most 255 * 255.
MAX_EXACT_TERMS = 2**24 // (255 * 255)


class Sums(NamedTuple):
    """The sums of a product of codes.

    Attributes:
        exact: int32.
        approx: float32, the same sums, rounded past 2**24; differentiable.
    """

    exact: jax.Array
    approx: jax.Array


def matmul_sum(a: jax.Array, b: jax.Array, a_q: Affine, b_q: Affine) -> Sums:
    """Computes the int32 sums of BATCH_MATMUL; `matmul_rescale` does the rest.

    A reduction of more than 258 terms could pass 2**24, where float32 is no longer exact: it is cut
    into pieces that cannot, whose sums are added as int32.

    Args:
        a: codes [..., M, K].
        b: codes [..., K, N], with the leading axes of `a`.
        a_q: the grid of `a`.
        b_q: the grid of `b`.

    Returns:
        The sums of (a - zero point) * (b - zero point), [..., M, N].

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> one, two = (Affine(jnp.float32(1.0), jnp.float32(z)) for z in (0.0, 2.0))
        >>> matmul_sum(jnp.array([[1.0, 3.0]]), jnp.array([[4.0], [3.0]]), one, two).exact.tolist()
        [[5]]
    """
    if a.ndim < 2 or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"matmul of {a.shape} and {b.shape}: expected [..., M, K] and [..., K, N] with the "
            "same leading axes"
        )
    a, b = a - f32(a_q.zero_point), b - f32(b_q.zero_point)
    approx = jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
    if a.shape[-1] <= MAX_EXACT_TERMS:
        return Sums(lax.stop_gradient(approx).astype(jnp.int32), approx)
    return Sums(integer_matmul(lax.stop_gradient(a), lax.stop_gradient(b)), approx)


def integer_matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies matrices of integers of at most 255 in size, in pieces that float32 adds exactly.

    Args:
        a: integer-valued float32 [..., M, K].
        b: integer-valued float32 [..., K, N].

    Returns:
        int32 [..., M, N].

    Example:
        >>> integer_matmul(jnp.full((1, 600), 255.0), jnp.full((600, 1), 255.0)).tolist()
        [[39015000]]
    """
    length = a.shape[-1]
    parts = [
        jnp.matmul(
            lax.slice_in_dim(a, start, min(start + MAX_EXACT_TERMS, length), axis=-1),
            lax.slice_in_dim(b, start, min(start + MAX_EXACT_TERMS, length), axis=-2),
            precision=lax.Precision.HIGHEST,
        ).astype(jnp.int32)
        for start in range(0, length, MAX_EXACT_TERMS)
    ]
    return sum(parts[1:], parts[0])


def matmul_rescale(sums: Sums, a_q: Affine, b_q: Affine, out_q: Affine) -> jax.Array:
    """Brings the sums of BATCH_MATMUL to the output's grid, by the kernel that LiteRT picks.

    Where the zero point of `b` is 0 that is XNNPACK's: a sum times the float32 multiplier
    (a scale * b scale) / out scale, rounded half to even. Elsewhere it is the builtin kernel, whose
    multiplier is the quotient of the same float32 product as a 31-bit integer, and which rounds
    twice (`fixed.multiply`). Both were measured on x86-64, with no difference.

    Args:
        sums: from `matmul_sum`.
        a_q: the grid of the first operand.
        b_q: the grid of the second.
        out_q: the output's grid.

    Returns:
        Output codes, float32.

    Example:
        >>> half, one = (Affine(jnp.float32(s), jnp.float32(0.0)) for s in (0.5, 1.0))
        >>> sums = Sums(jnp.array([6, -6]), jnp.array([6.0, -6.0]))
        >>> matmul_rescale(sums, half, one, one).tolist()
        [3.0, -3.0]
    """
    product, out_scale = f32(a_q.scale) * f32(b_q.scale), f32(out_q.scale)
    multiplier, zero_point = ratio(product, out_scale), f32(out_q.zero_point)
    whole = lax.stop_gradient(sums.exact).astype(jnp.float32)
    fixed = multiply(sums.exact, multiplier_of(product, out_scale)).astype(jnp.float32)
    moved = jnp.where(f32(b_q.zero_point) == 0, jnp.round(whole * multiplier), fixed)
    exact = jnp.clip(moved + zero_point, CODE_MIN, CODE_MAX)
    steps = sums.approx * multiplier + zero_point
    return clamped_like(exact, steps, f32(CODE_MIN), f32(CODE_MAX))
