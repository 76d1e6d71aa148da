"""Converts with `jax2tf` and TensorFlow's TFLiteConverter, the most travelled way to a phone.

TensorFlow cannot read the composite that `litert.py` uses, so here a plan becomes one TensorFlow
function in which each step is a jax2tf-converted segment, with TensorFlow's own fake quantization
between them. TensorFlow is imported inside the functions: nothing else in the library needs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.export._require import require
from compressjax.export.provisional import compute, evaluate
from compressjax.quant.frozen import Frozen, FrozenStep

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
    with quiet_tensorflow() as tf:
        jax2tf = require("jax.experimental.jax2tf")
        return _convert(tf, jax2tf.convert(fn, with_gradient=False), specs, quantized=False)


def convert_plan(plan: Frozen) -> bytes:
    """Converts a labelled plan to int8 operations.

    Args:
        plan: a plan made by `provisional.label`.

    Returns:
        The .tflite, with labels in place of numbers.

    Raises:
        ValueError: the converter refuses a step.
    """
    with quiet_tensorflow() as tf:
        jax2tf = require("jax.experimental.jax2tf")

        def quantize(value: Any, scale: float, zero_point: int) -> Any:
            low, high = scale * (-128 - zero_point), scale * (127 - zero_point)
            return tf.quantization.fake_quant_with_min_max_args(value, min=low, max=high)

        def run(step: FrozenStep, values: Sequence[Any]) -> Any:
            if step.kind == "mean":  # jax2tf leaves a sum and a product, which LiteRT runs as two
                params = step.params
                return tf.reduce_mean(values[0], params["axes"], keepdims=params["keepdims"])
            if step.kind == "softmax":
                return tf.nn.softmax(values[0], axis=-1)
            constants = [codes.dequantize() for codes in step.constants]

            def segment(*arrays: jax.Array) -> jax.Array:
                return compute(step, arrays, constants)

            return jax2tf.convert(segment, with_gradient=False)(*values)

        def whole(*inputs: Any) -> list[Any]:
            return evaluate(plan, inputs, quantize, run)

        specs = [
            (name, jax.ShapeDtypeStruct(shape, jnp.float32)) for name, shape, _, _ in plan.inputs
        ]
        return _convert(tf, whole, specs, quantized=True)


def _convert(
    tf: ModuleType,
    fn: Callable[..., Any],
    specs: Sequence[tuple[str, jax.ShapeDtypeStruct]],
    *,
    quantized: bool,
) -> bytes:
    signature = [tf.TensorSpec(s.shape, np.dtype(s.dtype), name=name) for name, s in specs]

    class Exported(tf.Module):  # type: ignore[name-defined]
        """Holds the function: the converter takes the signature from its module."""

        @tf.function(input_signature=signature, autograph=False)
        def serve(self, *inputs: Any) -> dict[str, Any]:
            return {f"output_{i}": value for i, value in enumerate(fn(*inputs))}

    module = Exported()
    concrete = module.serve.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    if quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    try:
        return converter.convert()
    except Exception as error:
        if type(error).__name__ != "ConverterError":
            raise
        raise ValueError(
            f"TensorFlow's converter refused the model: {error}\n"
            "Replace the operation it names, or export with via='litert'."
        ) from error


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[ModuleType]:
    """Imports TensorFlow with its logger at errors, and restores the logger afterwards.

    Yields:
        The module.
    """
    tf = require("tensorflow")
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield tf
    finally:
        logger.setLevel(level)
