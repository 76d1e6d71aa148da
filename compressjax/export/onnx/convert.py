"""From a function or a quantized model to the bytes of an ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from compressjax import quant
from compressjax.export._require import require
from compressjax.export.onnx.steps import Constants, write
from compressjax.export.onnx.writer import Writer
from compressjax.quant.frozen import Frozen
from compressjax.quant.plan import Plan
from compressjax.quant.steps import operands

_OPSET, _IR_VERSION = 20, 9  # read by ONNX Runtime 1.17 and newer


def convert(fn_or_q: Any, variables: Any, *args: jax.Array) -> bytes:
    """Exports a model as the bytes of an ONNX model.

    The steps are those that `compressjax.quantize` places, written with operations of ONNX alone
    (operator set 20): a float model with its variables, a quantized one with the integers, scales
    and zero points of its frozen plan between QuantizeLinear and DequantizeLinear (QDQ), which
    runtimes fuse to integer kernels. Inputs are `input_0`, ..., outputs `output_0`, ..., float32;
    the tensor of each step has its name, with `/planar` behind it where channels come first. The
    same arguments give the same bytes.

    ONNX fixes what an integer operation means only up to rounding, so a runtime need not give
    the codes of `q.apply`: `intermediates` shows which it gives.

    Args:
        fn_or_q: `fn(variables, *args) -> array(s)`, or what `compressjax.quantize` returned.
        variables: its variables; for a quantized model those that `calibrate` returned.
        *args: example inputs, float32; their shapes are the shapes in the model.

    Returns:
        The model.

    Raises:
        TypeError: an input is not float32.
        ValueError: there is no example input, or an operation cannot be written; the message
            names it.

    Example:
        >>> from compressjax.export.onnx.runtime import ops
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables['params']['kernel'])
        >>> variables = {'params': {'kernel': jnp.eye(2)}}
        >>> ops(convert(apply, variables, jnp.ones((1, 2))))
        ['Gemm', 'Relu', 'Identity']
    """
    if not args:
        raise ValueError("export needs an example input: convert(fn, variables, x)")
    for position, arg in enumerate(args):
        if jnp.result_type(arg) != jnp.float32:
            raise TypeError(
                f"input {position} is {jnp.result_type(arg)}, expected float32: cast it before"
            )
    quantized = hasattr(fn_or_q, "freeze")
    q = fn_or_q if quantized else quant.quantize(fn_or_q)
    plan: Plan = q.plan(variables, *args)
    constants: Mapping[str, Constants]
    grids = None
    if quantized:
        frozen = q.freeze(variables, *args)
        assert isinstance(frozen, Frozen)  # what has a plan has steps
        if frozen.wide:
            raise ValueError(
                "the activations are int16, for which ONNX Runtime has no integer kernels: "
                "quantize with int8(), or export the model as a .tflite"
            )
        grids = frozen.quantization()
        constants = {step.name: step.constants for step in frozen.steps}
    else:
        reals = jax.device_get(operands(plan, variables))
        constants = {name: [x for x in operand if x is not None] for name, operand in reals.items()}
    shapes = {name: value.shape for name, value in plan.inputs.items()}
    shapes |= {step.name: step.shape for step in plan.steps}
    writer = Writer(shapes, grids)
    for name in plan.inputs:
        writer.enter(name)
    for step in plan.steps:
        write(writer, step, constants.get(step.name, ()))
    for position, name in enumerate(plan.outputs):
        writer.leave(name, f"output_{position}")
    return _model(writer, plan)


def _model(writer: Writer, plan: Plan) -> bytes:
    onnx, helper = require("onnx", extra="onnx"), require("onnx.helper", extra="onnx")

    def declared(name: str, value: str) -> Any:
        shape = [int(size) for size in writer.shapes[value]]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        writer.nodes,
        "main",
        [declared(name, name) for name in plan.inputs],
        [declared(f"output_{i}", name) for i, name in enumerate(plan.outputs)],
        writer.constants,
    )
    model = helper.make_model(
        graph,
        producer_name="compressjax",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
