"""Converts with `litert-converter`: StableHLO text straight to LiteRT, without TensorFlow.

It reads what `jax.jit(...).lower` writes, so every JAX function goes in as it is. Quantization is
marked with the composite operation `quant.fake_quant`, which the converter turns into int8
tensors. `jax2tf.py` is the other way to the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.export._require import require
from compressjax.export.provisional import compute, evaluate
from compressjax.quant.frozen import Codes, Frozen, FrozenStep

SIGNATURE = "serving_default"


def convert(
    fn: Callable[..., Sequence[jax.Array]], specs: Sequence[tuple[str, jax.ShapeDtypeStruct]]
) -> bytes:
    """Converts a float function.

    Args:
        fn: pure function from arrays to a sequence of arrays.
        specs: name, shape and dtype of each input.

    Returns:
        The .tflite, with the signature `serving_default` and outputs `output_0`, ...

    Raises:
        ValueError: the converter has no LiteRT operation for a part of the function.
    """
    return _convert(fn, specs, static=False)


def convert_plan(plan: Frozen) -> bytes:
    """Converts a labelled plan to int8 operations.

    Args:
        plan: a plan made by `provisional.label`.

    Returns:
        The .tflite, with labels in place of numbers.

    Raises:
        ValueError: the converter refuses a step.
    """

    def run(step: FrozenStep, values: Sequence[jax.Array]) -> jax.Array:
        return compute(step, values, [_constant(codes) for codes in step.constants])

    def whole(*inputs: jax.Array) -> list[jax.Array]:
        return evaluate(plan, inputs, _quantize, run)

    specs = [(name, jax.ShapeDtypeStruct(shape, jnp.float32)) for name, shape, _, _ in plan.inputs]
    return _convert(whole, specs, static=True)


def _convert(
    fn: Callable[..., Sequence[jax.Array]],
    specs: Sequence[tuple[str, jax.ShapeDtypeStruct]],
    *,
    static: bool,
) -> bytes:
    api = require("litert_converter.converter_api_ext")
    ir = require("litert_converter.mlir.ir")
    passes = require("litert_converter.mlir.passmanager")
    lowered = jax.jit(fn, keep_unused=True).lower(*(spec for _, spec in specs))
    outputs = [f"output_{i}" for i in range(len(jax.tree.leaves(lowered.out_info)))]
    context = ir.Context()
    api.prepare_mlir_context(context)
    config = api.ConvertToTFLConfig()
    if static:
        config.qdq_conversion_mode = "STATIC"
        config.strict_qdq_mode = True
    try:
        module = ir.Module.parse(lowered.as_text(), context)
        api.set_signature(module.operation, SIGNATURE, [name for name, _ in specs], outputs)
        manager = passes.PassManager("builtin.module", context)
        api.run_convert_to_tfl_passes(module, manager, config)
        return api.export_flatbuffer_to_bytes(module.operation)
    except (ir.MLIRError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"litert-converter refused the model: {error}\n"
            "Replace the operation it names, or export with via='jax2tf'."
        ) from error


def _quantize(
    value: jax.Array, scale: float | np.ndarray, zero_point: int, axis: int | None = None
) -> jax.Array:
    """Marks a value as int8 with the composite that the converter knows."""
    scales = np.asarray(scale, np.float32).reshape(-1)
    attributes: dict[str, Any] = {
        "scale": scales,
        "zero_point": np.full(scales.shape, zero_point, np.int64),
        "dtype": "i8",
        "narrow_range": False,
    }
    if axis is not None:
        attributes["quantization_dimension"] = axis

    def identity(x: jax.Array, **_: Any) -> jax.Array:
        return x

    return jax.lax.composite(identity, name="quant.fake_quant")(value, **attributes)


def _constant(codes: Codes) -> jax.Array:
    value = jnp.asarray(codes.dequantize())
    if codes.codes.dtype == np.int32:  # a bias: the converter derives its grid
        return value
    return _quantize(value, codes.scale, codes.zero_point, codes.axis)
