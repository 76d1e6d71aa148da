"""One and two bits: weights of one size (binary), or of one size and zero (ternary).

Thresholds decide, not the nearest value, and each paper has a gradient of its own.
"""

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.grids.granularity import Granularity, per_channel, per_tensor
from compressjax.quant.grids.grid import Grid
from compressjax.quant.grids.scaled import mean_size, reach, scaled
from compressjax.quant.lattice.grid import ratio, saturate, straight_through

Params = dict[str, jax.Array]


def ternary(*, granularity: Granularity | None = None) -> Grid:
    """Makes the grid of -a, 0 and a: ternary weight networks (Li et al. 2016, 1605.04711).

    Weights of a size above `0.7 mean|w|` become +-a, the mean size of those weights (equations 5
    and 6); the gradient passes to every weight as it is (section 2.3).

    Args:
      granularity: which weights share a size; the whole kernel by default, as in the paper.

    Returns:
      The grid; its params are a dictionary of `scale` (a) and `threshold`.

    Example:
      >>> grid = ternary()
      >>> w = jnp.array([[1.0, 0.5], [-2.0, 0.1]])
      >>> grid.project(w, grid.fit(w)).tolist()
      [[1.5, 0.0], [-1.5, 0.0]]
    """
    granularity = per_tensor() if granularity is None else granularity

    def fit(w: jax.Array, keep: jax.Array | None = None) -> Params:
        threshold = 0.7 * mean_size(granularity, w, keep)
        large = jnp.abs(w) > granularity.spread(threshold, w.shape)
        return {"scale": mean_size(granularity, w, large), "threshold": threshold}

    def code(w: jax.Array, params: Params, scale: jax.Array) -> jax.Array:
        large = jnp.abs(w) > granularity.spread(params["threshold"], w.shape)
        size = _resized(granularity, params["scale"], w, scale)
        exact = jnp.where(large, jnp.sign(w) * size, 0.0)
        return straight_through(lax.stop_gradient(exact), ratio(w, lax.stop_gradient(scale)))

    def around(w: jax.Array, params: Params, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        size = _resized(granularity, params["scale"], w, scale)
        below = jnp.where(w >= scale, 1.0, jnp.where(w < 0, -1.0, 0.0))
        above = jnp.where(w <= -scale, -1.0, jnp.where(w > 0, 1.0, 0.0))
        return below * size, above * size

    return scaled(
        "ternary",
        2,
        granularity,
        fit=fit,
        scale=lambda params, w: params["scale"],
        code=code,
        around=around,
        largest=1.0,
    )


def binary(*, granularity: Granularity | None = None) -> Grid:
    """Makes the grid of -a and a: binary weights of XNOR-Net (Rastegari et al. 2016, 1603.05279).

    A weight becomes its sign times the mean size of its group (equation 6). The gradient of a
    weight is multiplied by `1 / n + a [|w| <= 1]`, n weights to a group (section 3.1).

    Args:
      granularity: which weights share a size; each output channel by default, as in the paper.

    Returns:
      The grid; its params are the sizes, one for each group. Zero counts as positive: wrap the grid
      in `keep_zeros` where weights are pruned.

    Example:
      >>> grid = binary()
      >>> w = jnp.array([[1.0, 0.5], [-2.0, 0.25]])
      >>> grid.project(w, grid.fit(w)).tolist()
      [[1.5, 0.375], [-1.5, 0.375]]
    """
    granularity = per_channel() if granularity is None else granularity

    def code(w: jax.Array, params: jax.Array, scale: jax.Array) -> jax.Array:
        size = _resized(granularity, params, w, scale)
        exact = jnp.where(w < 0, -size, size)
        share = params.size / w.size
        slope = ratio(w * share, lax.stop_gradient(scale)) + saturate(w, -1.0, 1.0)
        return straight_through(lax.stop_gradient(exact), slope)

    def around(w: jax.Array, params: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        size = _resized(granularity, params, w, scale)
        return size * jnp.where(w >= scale, 1.0, -1.0), size * jnp.where(w <= -scale, -1.0, 1.0)

    return scaled(
        "binary",
        1,
        granularity,
        fit=lambda w, keep=None: mean_size(granularity, w, keep),
        scale=lambda size, w: size,
        code=code,
        around=around,
        largest=1.0,
    )


def trained_ternary(threshold: float = 0.05, *, granularity: Granularity | None = None) -> Grid:
    """Makes the grid of -W_n, 0 and W_p, both trained: TTQ (Zhu et al. 2017, 1612.01064).

    Weights above `threshold * max|w|` become W_p, those below its negative -W_n (equations 6 and
    9). The gradients: each size gets the sum over its weights (equation 7, where that of W_n
    lacks the minus of equation 6; here, as in the authors' code, it has it), and a weight gets the
    gradient times W_p, 1 or W_n, by its side (equation 8). Sizes start at the mean of their side.
    LiteRT's int8 has one size for both signs, so this grid is simulated.

    Args:
      threshold: t, in (0, 1).
      granularity: which weights share sizes; the whole kernel by default, as in the paper.

    Returns:
      The grid, to be learned: its params are a dictionary of `positive` and `negative`.

    Raises:
      ValueError: if `threshold` is outside (0, 1).

    Example:
      >>> grid = trained_ternary(0.3)
      >>> w = jnp.array([[1.0, 0.5], [-2.0, 0.1]])
      >>> params = {'positive': jnp.float32(0.9), 'negative': jnp.float32(1.5)}
      >>> grid.project(w, params).round(2)
      Array([[ 0.9,  0. ],
             [-1.5,  0. ]], dtype=float32)
    """
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"threshold is {threshold}, expected a number in (0, 1)")
    granularity = per_tensor() if granularity is None else granularity

    def sides(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        edge = granularity.spread(threshold * reach(granularity, w), w.shape)
        return w > edge, w < -edge

    def fit(w: jax.Array, keep: jax.Array | None = None) -> Params:
        del keep  # Zeros are on neither side.
        positive, negative = sides(w)
        return {
            "positive": mean_size(granularity, w, positive),
            "negative": mean_size(granularity, w, negative),
        }

    def project(w: jax.Array, params: Params) -> jax.Array:
        positive, negative = sides(w)
        up = granularity.spread(params["positive"], w.shape)
        down = granularity.spread(params["negative"], w.shape)
        exact = jnp.where(positive, up, jnp.where(negative, -down, 0.0))
        slope = jnp.where(positive, up, jnp.where(negative, down, 1.0))
        return straight_through(lax.stop_gradient(exact), exact + lax.stop_gradient(slope) * w)

    def around(w: jax.Array, params: Params) -> tuple[jax.Array, jax.Array]:
        up = granularity.spread(params["positive"], w.shape)
        down = granularity.spread(params["negative"], w.shape)
        below = jnp.where(w >= up, up, jnp.where(w < 0, -down, 0.0))
        above = jnp.where(w <= -down, -down, jnp.where(w > 0, up, 0.0))
        return below, above

    name = f"trained ternary {granularity.name}"
    return Grid(name, 2, fit, project, None, around, learned=True)


def _resized(
    granularity: Granularity, size: jax.Array, w: jax.Array, scale: jax.Array
) -> jax.Array:
    """The code of a size at a scale that may have been raised above it: one, or zero."""
    return jnp.round(ratio(granularity.spread(size, w.shape), scale))
