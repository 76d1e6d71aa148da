"""The one way to a .tflite, float or int8, through either converter.

A quantized model goes as labels through a converter and gets its numbers back afterwards
(`provisional.py`, `rewrite.py`); a float function goes through as it is, and where only its kernels
are quantized they are stored afterwards (`weights.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.export import jax2tf, litert
from compressjax.export.int4 import pack_int4
from compressjax.export.pointwise import pixels_convolved
from compressjax.export.provisional import label
from compressjax.export.rewrite import rewrite
from compressjax.export.serving import stablehlo
from compressjax.export.sparse import sparsify
from compressjax.export.transposed import cut_apart
from compressjax.export.weights import store
from compressjax.quant.kernels import FrozenKernels

Via = Literal["jax2tf", "litert", "stablehlo"]
_CONVERTERS = {"jax2tf": jax2tf, "litert": litert}


def tflite(
    fn_or_q: Any,
    variables: Any,
    *args: jax.Array,
    via: Via = "jax2tf",
    int8_io: bool = False,
    int4: bool = False,
    sparse: bool = False,
) -> bytes:
    """Exports a model as the bytes of a .tflite.

    A function becomes a float32 model. A quantized model (anything with `freeze`) becomes an int8
    model whose integers are those of its frozen plan: scales, zero points, weight codes and
    biases are written into the file tensor by tensor, and each tensor carries its step's name.
    Where its spec leaves activations float (`weight_only`, `dynamic`), only kernels are integers,
    or half-precision floats.
    The signature is `serving_default`, with inputs `input_0`, ... and outputs `output_0`, ...
    The same arguments give the same bytes.

    Args:
        fn_or_q: `fn(variables, *args) -> array(s)`, or what `compressjax.quantize` returns.
        variables: its variables; for a quantized model those that `calibrate` returned.
        *args: example inputs, float32; their shapes are the shapes in the file.
        via: `jax2tf` (TensorFlow's converter) or `litert` (litert-converter, no TensorFlow); or
            `stablehlo`, for a `jax.export` artifact in place of a .tflite (`serving.py`).
        int8_io: int8 inputs and outputs instead of float ones (quantized models only).
        int4: store weights of at most 4 bits in half a byte where LiteRT computes the same with
            them (quantized models only; `int4.py`).
        sparse: store pruned weights without their zeros where that makes the file smaller
            (`sparse.py`); the results stay the same to the bit, the speed does not improve.

    Returns:
        The file.

    Raises:
        TypeError: an input or output is not float32.
        ValueError: `via` is unknown, `int8_io` or `int4` is asked of a float model, there is no
            example input, or the converter refuses an operation.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export import flatbuffer
        >>> def apply(variables, x):
        ...     return jnp.maximum(x @ variables['params']['kernel'], 0)
        >>> variables = {'params': {'kernel': jnp.eye(2)}}
        >>> flatbuffer.ops(tflite(apply, variables, jnp.ones((1, 2)), via='litert'))
        ['FULLY_CONNECTED']
    """
    if via not in (*_CONVERTERS, "stablehlo"):
        known = [*sorted(_CONVERTERS), "stablehlo"]
        raise ValueError(f"via={via!r} is unknown: choose one of {known}")
    if not args:
        raise ValueError("export needs an example input: tflite(fn, variables, x)")
    if via == "stablehlo":
        if int8_io or int4 or sparse:
            raise ValueError(
                "int8_io, int4 and sparse are forms of a .tflite; via='stablehlo' has none"
            )
        return stablehlo(fn_or_q, variables, *args)
    for position, arg in enumerate(args):
        if jnp.result_type(arg) != jnp.float32:
            raise TypeError(
                f"input {position} is {jnp.result_type(arg)}, expected float32: cast it before"
            )
    converter = _CONVERTERS[via]
    plan = fn_or_q.freeze(variables, *args) if hasattr(fn_or_q, "freeze") else None
    if isinstance(plan, FrozenKernels):
        if int8_io:
            raise ValueError(
                "int8_io=True needs integer activations, this model's are float: use quant.int8()"
            )
        model = store(_float(converter, plan.fn, args), plan, int4=int4)
        return sparsify(model) if sparse else model
    if plan is not None:
        labelled = label(plan)
        model = rewrite(converter.convert_plan(labelled), plan, labelled, int8_io=int8_io)
        if int4 and sparse:  # whichever a weight gets first, the other one leaves it
            return min(pack_int4(sparsify(model)), sparsify(pack_int4(model)), key=len)
        model = sparsify(model) if sparse else model
        return pack_int4(model) if int4 else model
    if int8_io or int4:
        form = "int8_io" if int8_io else "int4"
        raise ValueError(f"{form}=True needs a quantized model: compressjax.quantize it first")
    model = _float(converter, functools.partial(fn_or_q, variables), args)
    return sparsify(model) if sparse else model


def _float(converter: Any, fn: Callable[..., Any], args: tuple[jax.Array, ...]) -> bytes:
    """Converts a function of the inputs alone, which must put out floats."""
    specs = [
        (f"input_{i}", jax.ShapeDtypeStruct(np.shape(arg), jnp.float32))
        for i, arg in enumerate(args)
    ]

    def whole(*inputs: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(fn(*inputs))

    for position, out in enumerate(jax.eval_shape(whole, *(spec for _, spec in specs))):
        if out.dtype != jnp.float32:
            raise TypeError(
                f"output {position} of the model is {out.dtype} {list(out.shape)}, expected "
                "float32: export the function before argmax or casts"
            )
    shapes = [spec for _, spec in specs]
    return converter.convert(pixels_convolved(cut_apart(whole, shapes), shapes), specs)
