"""Compares ONNX Runtime with the model, step by step."""

from __future__ import annotations

from typing import Any

from compressjax.export import rows
from compressjax.export.agreement import Compute, agreement
from compressjax.export.onnx.runtime import Session, intermediates
from compressjax.export.parity import Parity


def verify(model: bytes, fn_or_q: Any, variables: Any, batch: Any) -> Parity:
    """Compares an ONNX model, run by ONNX Runtime, with the model that it was exported from.

    Args:
        model: the ONNX model.
        fn_or_q: `fn(variables, *args)`, or what `compressjax.quantize` returned.
        variables: its variables.
        batch: float32 `[N, ...]`, or a tuple with one such array per input.

    Returns:
        The comparison; of a quantized model, of the codes of every step.

    Raises:
        TypeError: an input is not a float array.
        ValueError: the model is damaged, or takes other shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.onnx.convert import convert
        >>> def apply(variables, x):
        ...     return 2 * x
        >>> verify(convert(apply, {}, jnp.ones((1, 2))), apply, {}, jnp.ones((4, 2))).max_abs
        0.0
    """
    session, quantized = Session(model), hasattr(fn_or_q, "intermediates")

    def compute(inputs: Any) -> Any:
        codes = intermediates(model, *inputs) if quantized else {}
        return codes, rows.run(session, inputs)

    runtime: Compute = compute
    return agreement(runtime, fn_or_q, variables, batch)
