"""What a layer costs at each number of bits: bytes, or bit operations.

The third kind of cost, latency, is measured and not computed: any table `{layer: {bits: seconds}}`
takes the place of these.
"""

from collections.abc import Callable, Mapping
from typing import Any

from compressjax import graph, tree
from compressjax.quant.grids import Grid

Select = str | tuple[str, ...]


def size(
    variables: Any, grids: Mapping[int, Grid], *, select: Select = "**/kernel"
) -> dict[str, dict[int, float]]:
    """Counts the bytes of each kernel at each number of bits.

    Args:
      variables: the network's variables, arrays or shapes.
      grids: the grid for each number of bits. Its storage bits count, its scales and codebooks, and
        biases, do not.
      select: globs on the kernels' paths.

    Returns:
      Bytes for each kernel at each number of bits.

    Raises:
      ValueError: if a glob matches nothing.

    Example:
      >>> from compressjax.quant import grids
      >>> import numpy as np
      >>> size({'kernel': np.ones((3, 8))}, {b: grids.integer(b) for b in (4, 8)})
      {'kernel': {4: 12.0, 8: 24.0}}
    """
    leaves = tree.paths(variables)
    return {
        path: {bits: leaves[path].size * grid.bits / 8 for bits, grid in grids.items()}
        for path in tree.match(select, leaves, what="select")
    }


def operations(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    grids: Mapping[int, Grid],
    activations: int = 8,
    select: Select = "**/kernel",
) -> dict[str, dict[int, float]]:
    """Counts the bit operations of each kernel at each number of bits.

    Multiply-accumulates times the bits of a weight times the bits of an activation (Yao et al.
    2021, "HAWQ-V3: Dyadic Neural Network Quantization", section 3.4).

    Args:
      fn: pure function `fn(variables, *args)`.
      variables: its variables, arrays or shapes.
      *args: an example; with a batch of one the counts are those of one example.
      grids: the grid for each number of bits.
      activations: bits of the activations.
      select: globs on the kernels' paths.

    Returns:
      Bit operations for each kernel at each number of bits.

    Raises:
      ValueError: if a glob matches nothing, or no convolution or matrix product reads a kernel
        directly.

    Example:
      >>> from compressjax.quant import grids
      >>> import numpy as np
      >>> def fn(variables, x):
      ...     return x @ variables['kernel']
      >>> operations(fn, {'kernel': np.ones((3, 8))}, np.ones((1, 3)),
      ...            grids={b: grids.integer(b) for b in (4, 8)})
      {'kernel': {4: 768.0, 8: 1536.0}}
    """
    macs: dict[str, int] = {}
    for op in graph.trace(fn, variables, *args).ops:
        for path in op.variables:
            macs[path] = macs.get(path, 0) + op.macs
    layers = tree.match(select, tree.paths(variables), what="select")
    for path in layers:
        if not macs.get(path):
            raise ValueError(
                f"no convolution or matrix product reads {path!r} directly, so its bit operations "
                "cannot be counted; leave it out of select"
            )
    return {
        path: {bits: float(macs[path] * grid.bits * activations) for bits, grid in grids.items()}
        for path in layers
    }
