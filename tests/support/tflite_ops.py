"""Builds one-operator int8 .tflite files and runs them, as the oracle of the lattice's tests.

A converter chooses scales, fuses and reorders; here every scale, zero point and code is the
test's own, so what LiteRT answers is its arithmetic and nothing else. The flatbuffer is written
with the object API of LiteRT's own schema.
"""

import dataclasses
from collections.abc import Sequence

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

TYPES = {
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int16): schema.TensorType.INT16,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int64): schema.TensorType.INT64,
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}
ACTIVATIONS = {
    "none": schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
    "relu_n1_to_1": schema.ActivationFunctionType.RELU_N1_TO_1,
}
PADDINGS = {"SAME": schema.Padding.SAME, "VALID": schema.Padding.VALID}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the file: a constant if it has data, else filled at run time."""

    shape: tuple[int, ...]
    dtype: type = np.int8
    scale: float | np.ndarray | None = None
    zero_point: int = 0
    axis: int = 0
    data: np.ndarray | None = None


def constant(data: np.ndarray, scale=None, zero_point: int = 0, axis: int = 0) -> Tensor:
    """Makes a constant tensor of `data`, with its own dtype and shape."""
    return Tensor(data.shape, data.dtype.type, scale, zero_point, axis, data)


def options(kind: str, **values) -> tuple[int, object]:
    """Makes the options table `kind` (e.g. 'Conv2DOptions') with the given fields set."""
    table = getattr(schema, kind + "T")()
    for name, value in values.items():
        if not hasattr(table, name):
            raise AttributeError(f"{kind} has no field {name}")
        setattr(table, name, value)
    return getattr(schema.BuiltinOptions, kind), table


def build(
    operator: str,
    inputs: Sequence[Tensor],
    output: Tensor,
    op_options: tuple[int, object] | None = None,
    version: int = 1,
) -> bytes:
    """Builds a model of one builtin operator; inputs without data become the model's inputs."""
    buffers, tensors = [schema.BufferT()], []
    for index, tensor in enumerate([*inputs, output]):
        record = schema.TensorT()
        record.shape = list(tensor.shape)
        record.type = TYPES[np.dtype(tensor.dtype)]
        record.name = f"tensor_{index}"
        record.quantization = schema.QuantizationParametersT()
        if tensor.scale is not None:
            scales = np.atleast_1d(np.asarray(tensor.scale, np.float32))
            record.quantization.scale = scales
            record.quantization.zeroPoint = np.full(scales.shape, tensor.zero_point, np.int64)
            record.quantization.quantizedDimension = tensor.axis
        if tensor.data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)
            record.buffer = len(buffers)
            buffers.append(buffer)
        tensors.append(record)
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, operator)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = version
    record = schema.OperatorT()
    record.inputs, record.outputs = list(range(len(inputs))), [len(inputs)]
    if op_options is not None:
        record.builtinOptionsType, record.builtinOptions = op_options
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = tensors, [record]
    graph.inputs = [i for i, tensor in enumerate(inputs) if tensor.data is None]
    graph.outputs = [len(inputs)]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def run(model: bytes, *arrays: np.ndarray, delegate: bool = True) -> np.ndarray:
    """Runs a model; with `delegate` on LiteRT's default kernels, else on the builtin ones."""
    kind = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(
        model_content=model, experimental_op_resolver_type=kind, num_threads=1
    )
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def delegated(model: bytes) -> bool:
    """Says whether the default delegate (XNNPACK) takes the model's operator."""
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    return any(op["op_name"] == "DELEGATE" for op in interpreter._get_ops_details())


def binary(operator: str, a: Tensor, b: Tensor, output: Tensor, activation: str = "none") -> bytes:
    """Builds ADD, SUB or MUL."""
    kind = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions"}[operator]
    fused = options(kind, fusedActivationFunction=ACTIVATIONS[activation])
    return build(operator, [a, b], output, fused, version=2)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    strides: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    padding: str = "VALID",
    activation: str = "none",
    depth_multiplier: int | None = None,
) -> bytes:
    """Builds CONV_2D (weight OHWI), or DEPTHWISE_CONV_2D (1HWO) where a multiplier is given."""
    values = {
        "padding": PADDINGS[padding],
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilation[0],
        "dilationWFactor": dilation[1],
        "fusedActivationFunction": ACTIVATIONS[activation],
    }
    if depth_multiplier is None:
        table = options("Conv2DOptions", **values)
        return build("CONV_2D", [x, weight, bias], output, table, version=3)
    table = options("DepthwiseConv2DOptions", depthMultiplier=depth_multiplier, **values)
    return build("DEPTHWISE_CONV_2D", [x, weight, bias], output, table, version=3)


def fully_connected(
    x: Tensor, weight: Tensor, bias: Tensor, output: Tensor, activation: str = "none"
) -> bytes:
    """Builds FULLY_CONNECTED (weight OI)."""
    table = options("FullyConnectedOptions", fusedActivationFunction=ACTIVATIONS[activation])
    return build("FULLY_CONNECTED", [x, weight, bias], output, table, version=4)


def transpose_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    strides: tuple[int, int],
    padding: str,
    activation: str = "none",
) -> bytes:
    """Builds TRANSPOSE_CONV (weight OHWI)."""
    table = options(
        "TransposeConvOptions",
        padding=PADDINGS[padding],
        strideH=strides[0],
        strideW=strides[1],
        fusedActivationFunction=ACTIVATIONS[activation],
    )
    shape = constant(np.asarray(output.shape, np.int32))
    return build("TRANSPOSE_CONV", [shape, weight, x, bias], output, table, version=4)


def batch_matmul(a: Tensor, b: Tensor, output: Tensor, adjoint: bool = False) -> bytes:
    """Builds BATCH_MATMUL; with `adjoint` the last two axes of `b` are swapped."""
    table = options("BatchMatMulOptions", adjX=False, adjY=adjoint)
    return build("BATCH_MATMUL", [a, b], output, table, version=2)


def pool(
    operator: str,
    x: Tensor,
    output: Tensor,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: str = "VALID",
    activation: str = "none",
) -> bytes:
    """Builds MAX_POOL_2D or AVERAGE_POOL_2D."""
    table = options(
        "Pool2DOptions",
        padding=PADDINGS[padding],
        filterHeight=window[0],
        filterWidth=window[1],
        strideH=strides[0],
        strideW=strides[1],
        fusedActivationFunction=ACTIVATIONS[activation],
    )
    return build(operator, [x], output, table, version=2)


def reduce(operator: str, x: Tensor, axes: Sequence[int], output: Tensor, keep: bool) -> bytes:
    """Builds MEAN, SUM, REDUCE_MAX or REDUCE_MIN."""
    table = options("ReducerOptions", keepDims=keep)
    return build(operator, [x, constant(np.asarray(axes, np.int32))], output, table, version=2)


def unary(operator: str, x: Tensor, output: Tensor, version: int = 2) -> bytes:
    """Builds QUANTIZE, LOGISTIC, TANH, SOFTMAX (beta 1), HARD_SWISH, RELU or RELU6."""
    table = options("SoftmaxOptions", beta=1.0) if operator == "SOFTMAX" else None
    return build(operator, [x], output, table, version)
