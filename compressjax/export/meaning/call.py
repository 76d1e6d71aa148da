"""An operator of a file with what it is given: what every rule of this package takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.quant.lattice import Affine

Bounds = tuple[float | None, float | None]

# ActivationFunctionType and Padding of LiteRT's schema.
_CLAMPS: Mapping[int, Bounds] = {0: (None, None), 1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
_PADDINGS: Mapping[int, str] = {0: "SAME", 1: "VALID"}


class Call(NamedTuple):
    """An operator with what it is given.

    Attributes:
        inputs: float32 where a tensor has codes (integer-valued) or real values, else integers or
            booleans; `None` where an operand is left out.
        grids: of the inputs; a kernel's has one scale per channel, and no grid is `None`.
        axes: of the inputs: along which axis the scales of a grid lie.
        fixed: data of the inputs that are known before the model runs, else `None`.
        options: the operator's, as LiteRT's schema has them.
        shapes: of the outputs, at the batch size in the file; `None` where the file leaves a size
            open.
        out: the grid of the first output, `None` if it has none.
        dtype: of the first output: float32, int32 or bool.
    """

    inputs: Sequence[Any]
    grids: Sequence[Affine | None]
    axes: Sequence[int]
    fixed: Sequence[np.ndarray | None]
    options: Any
    shapes: Sequence[tuple[int | None, ...]]
    out: Affine | None
    dtype: Any

    def constant(self, position: int, what: str) -> np.ndarray:
        """Gives a constant operand, such as axes; one that is computed is refused."""
        value = self.fixed[position]
        if value is None:
            raise ValueError(f"its {what} are computed while the model runs, expected constants")
        return value

    def axis(self, position: int, rank: int) -> int:
        """Gives a constant operand that is one axis of `rank`, counted from the first."""
        return int(self.constant(position, "axis").item()) % rank

    def clamp(self) -> Bounds:
        """The bounds of the fused activation."""
        number = int(getattr(self.options, "fusedActivationFunction", 0))
        if number not in _CLAMPS:
            raise ValueError(f"its fused activation has the number {number}, expected a clamp")
        return _CLAMPS[number]

    def padding(self) -> str:
        """How windows meet the edges."""
        number = int(self.options.padding)
        if number not in _PADDINGS:
            raise ValueError(f"its padding has the number {number}, expected 0 (SAME) or 1 (VALID)")
        return _PADDINGS[number]

    def grid(self, position: int) -> Affine:
        """The grid of an input that has codes."""
        grid = self.grids[position]
        if grid is None:
            raise ValueError(f"its operand {position} is no int8 tensor with a scale")
        return grid

    def out_grid(self) -> Affine:
        """The grid of an output that has codes."""
        if self.out is None:
            raise ValueError("its result is no int8 tensor with a scale")
        return self.out

    def reduced(self) -> tuple[int, ...]:
        """The axes that an operator reduces."""
        rank = self.inputs[0].ndim
        return tuple(int(axis) % rank for axis in self.constant(1, "axes").ravel())


Rule = Callable[[Call], Any]


def same_rank(*arrays: Any) -> list[jax.Array]:
    """Gives the arrays of lower rank leading axes of size 1, as LiteRT broadcasts.

    Args:
        *arrays: of shapes that broadcast as in NumPy.

    Returns:
        The arrays, all of the highest rank.

    Example:
        >>> [x.shape for x in same_rank(jnp.ones((2, 3)), jnp.ones(3))]
        [(2, 3), (1, 3)]
    """
    rank = max(jnp.ndim(x) for x in arrays)
    return [jnp.reshape(x, (1,) * (rank - jnp.ndim(x)) + jnp.shape(x)) for x in arrays]
