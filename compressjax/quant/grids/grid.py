"""What a number format for weights is: the interface that every module beside this one fills in.

A grid is a set of representable values, given as pure functions: `fit` chooses its free numbers
(scales, centroids) from the weights, `project` puts weights on it, `codes` writes them as int8
where LiteRT could store them. `compressjax.quant.ranges` does the same for activations, whose
grids are always int8 and come from what was observed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any


class Grid(NamedTuple):
    """A number format for weights, as pure functions of kernels `[..., O]`, float32.

    Attributes:
      name: what reports and errors call it, such as `'int4 per channel'`.
      bits: bits of storage per weight; scales, codebooks and masks are not counted.
      fit: `fit(w, keep=None) -> params`, a pytree of float32 arrays (scales, centroids) that suits
        the weights `w`; with the boolean mask `keep`, only the kept ones. No gradient passes.
      project: `project(w, params) -> values` on the grid, in the shape of `w`. Its gradient is
        straight-through to `w` and the paper's rule to `params`.
      codes: `codes(w, params, least) -> (codes, scale)`: integer-valued float32 codes in
        [-127, 127], in the shape of `w`, and a scale, `[]` or `[O]`, with
        `codes * scale == project(w, params)` wherever the scale is not below `least` (`[]` or
        `[O]`). Elsewhere the scale is `least` and the codes are rounded to it. Gradients pass as
        in `project`. `None` where no int8 tensor of LiteRT's holds this grid.
      around: `around(w, params) -> (below, above)`, the representable values on either side of each
        weight; equal where the weight is representable or beyond the last value.
      learned: whether `params` are meant to be stored and trained; otherwise they are fitted anew
        to the weights of every step.
    """

    name: str
    bits: float
    fit: Callable[..., Params]
    project: Callable[[jax.Array, Params], jax.Array]
    codes: Callable[[jax.Array, Params, jax.Array], tuple[jax.Array, jax.Array]] | None
    around: Callable[[jax.Array, Params], tuple[jax.Array, jax.Array]]
    learned: bool = False
