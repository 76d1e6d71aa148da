"""Compares MNN with the model, at the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressjax.export import rows
from compressjax.export.agreement import agreement
from compressjax.export.mnn.runtime import Session
from compressjax.export.parity import Parity
from compressjax.export.runtime import quantize


def verify(model: bytes, fn_or_q: Any, variables: Any, batch: Any) -> Parity:
    """Compares an MNN model, run by MNN, with the model that its .tflite was exported from.

    Args:
        model: the MNN model.
        fn_or_q: `fn(variables, *args)`, or what `compressjax.quantize` returned.
        variables: its variables.
        batch: float32 `[N, ...]`, or a tuple with one such array per input.

    Returns:
        The comparison of the real outputs, and of a quantized model of their codes: MNN does not
        give those of the steps inside.

    Raises:
        TypeError: an input is not a float array.
        ValueError: the model is damaged, or takes other shapes.
    """
    session = Session(model)
    names: tuple[str, ...] = ()
    grids: dict[str, tuple[float, int]] = {}
    if hasattr(fn_or_q, "freeze"):
        inputs = batch if isinstance(batch, tuple) else (batch,)
        frozen = fn_or_q.freeze(variables, *(np.asarray(x)[:1] for x in inputs))
        names, grids = frozen.outputs, frozen.quantization()

    def compute(inputs: Any) -> Any:
        outputs = rows.run(session, inputs)
        codes = {
            name: quantize(output, *grids[name])
            for name, output in zip(names, outputs[: len(names)], strict=True)
        }
        return codes, outputs

    return agreement(compute, fn_or_q, variables, batch)
