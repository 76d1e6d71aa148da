"""Compares another runtime with the model, in the numbers that `verify` gives for LiteRT.

`verify.py` reads .tflite files, on LiteRT's two sets of kernels; here only the results of a runtime
are known, whatever it is, so ONNX Runtime and MNN stand in the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from compressjax.export.parity import Parity, Tally

Rows = Sequence[np.ndarray]
Compute = Callable[[Rows], tuple[Mapping[str, np.ndarray], Sequence[np.ndarray]]]


def agreement(
    compute: Compute, fn_or_q: Any, variables: Any, batch: Any, *, slice_size: int = 64
) -> Parity:
    """Compares what a runtime computes with what the model computes.

    Args:
        compute: `compute(rows) -> (codes by step, outputs)` of the runtime; the codes may be those
            of some steps alone, or none.
        fn_or_q: `fn(variables, *args)`, or what `compressjax.quantize` returned.
        variables: its variables.
        batch: float32 `[N, ...]`, or a tuple with one such array per input.
        slice_size: rows computed at once, which bounds the memory.

    Returns:
        The comparison: steps in the model's order, then the real outputs.

    Raises:
        ValueError: the batch is empty, or the runtime puts out other shapes.

    Example:
        >>> double = lambda variables, x: 2 * x
        >>> agreement(lambda rows: ({}, [rows[0] + rows[0]]), double, {}, np.ones((3, 2))).max_abs
        0.0
    """
    inputs = [np.asarray(x, np.float32) for x in (batch if isinstance(batch, tuple) else (batch,))]
    total = len(inputs[0])
    if not total:
        raise ValueError("a comparison needs at least one row, found an empty batch")
    quantized = hasattr(fn_or_q, "intermediates")

    @jax.jit
    def expect(variables: Any, rows: Rows) -> tuple[Mapping[str, jax.Array], list[jax.Array]]:
        steps = fn_or_q.intermediates(variables, *rows) if quantized else {}
        outputs = (fn_or_q.apply if quantized else fn_or_q)(variables, *rows)
        return steps, jax.tree.leaves(outputs)

    tally, size = Tally(), min(slice_size, total)
    for start in range(0, total, size):
        places = np.minimum(np.arange(start, start + size), total - 1)
        rows, count = [x[places] for x in inputs], min(size, total - start)
        steps, outputs = jax.device_get(expect(variables, rows))
        codes, found = compute(rows)
        if [x.shape for x in found] != [x.shape for x in outputs]:
            raise ValueError(
                f"the runtime puts out {[x.shape for x in found]} for {size} rows, the model "
                f"{[x.shape for x in outputs]}"
            )
        for name in (name for name in steps if name in codes):
            tally.add(name, codes[name][:count], steps[name][:count])
        tally.add_outputs([x[:count] for x in found], [x[:count] for x in outputs], count)
    return tally.result()
