"""Checks what the operators of a .tflite are given: how many tensors, which options.

LiteRT's kernels check most of their operands when they are prepared; its delegate reads them
before, and ends the process where one is missing. `validate.py` checks what is the same for all
operators; this file knows what each of them takes. An operator that is not in its table is refused,
so that nothing reaches LiteRT unlooked at.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from compressjax.export._require import require

_ONE = """
ABS BITCAST CAST CEIL COMPLEX_ABS COS DENSIFY DEQUANTIZE ELU EXP FAKE_QUANT FLOOR GELU HARD_SWISH
IMAG L2_NORMALIZATION LEAKY_RELU LOCAL_RESPONSE_NORMALIZATION LOG LOG_SOFTMAX LOGICAL_NOT LOGISTIC
MATRIX_DIAG NEG QUANTIZE RANK REAL RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 ROUND RSQRT SHAPE SIGN SIN
SOFTMAX SPACE_TO_DEPTH DEPTH_TO_SPACE SQRT SQUARE SQUEEZE TANH WHERE ZEROS_LIKE AVERAGE_POOL_2D
L2_POOL_2D MAX_POOL_2D
""".split()
_TWO = """
ADD ARG_MAX ARG_MIN ATAN2 BATCH_MATMUL BITWISE_XOR BROADCAST_ARGS BROADCAST_TO CUMSUM DIV
EMBEDDING_LOOKUP EQUAL EXPAND_DIMS FILL FLOOR_DIV FLOOR_MOD GATHER GATHER_ND GREATER GREATER_EQUAL
LESS LESS_EQUAL LOGICAL_AND LOGICAL_OR MATRIX_SET_DIAG MAXIMUM MEAN MINIMUM MIRROR_PAD MUL NOT_EQUAL
PAD POW PRELU REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD RESIZE_BILINEAR
RESIZE_NEAREST_NEIGHBOR REVERSE_SEQUENCE REVERSE_V2 RFFT2D RIGHT_SHIFT SEGMENT_SUM
SQUARED_DIFFERENCE SUB SUM TILE TRANSPOSE
""".split()
_THREE = """
BATCH_TO_SPACE_ND DYNAMIC_UPDATE_SLICE PADV2 RANGE SCATTER_ND SELECT SELECT_V2 SLICE
SPACE_TO_BATCH_ND UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_MIN UNSORTED_SEGMENT_PROD
UNSORTED_SEGMENT_SUM
""".split()
_CONTROL_FLOW = {"IF", "WHILE", "CALL", "CALL_ONCE", "VAR_HANDLE"}


class _Form(NamedTuple):
    """What an operator takes.

    Attributes:
        least: inputs that it has to have.
        most: inputs.
        outputs: how many it writes; `None` where its options say so.
        bias: which of its inputs may be left out by the number -1, if there is one.
    """

    least: int
    most: int
    outputs: int | None = 1
    bias: int | None = None


_MANY = 1 << 16
_FORMS: Mapping[str, _Form] = {
    **{name: _Form(1, 1) for name in _ONE},
    **{name: _Form(2, 2) for name in _TWO},
    **{name: _Form(3, 3) for name in _THREE},
    "RESHAPE": _Form(1, 2),
    "CONV_2D": _Form(2, 3, bias=2),
    "DEPTHWISE_CONV_2D": _Form(3, 3, bias=2),  # with two, its delegate reads past them
    "CONV_3D": _Form(2, 3, bias=2),
    "FULLY_CONNECTED": _Form(2, 3, bias=2),
    "TRANSPOSE_CONV": _Form(3, 4, bias=3),
    "CONV_3D_TRANSPOSE": _Form(3, 4, bias=3),
    "STRIDED_SLICE": _Form(4, 4),
    "ONE_HOT": _Form(4, 4),
    "SPARSE_TO_DENSE": _Form(4, 4),
    "TOPK_V2": _Form(2, 2, 2),
    "UNIQUE": _Form(1, 1, 2),
    "SPLIT": _Form(2, 2, None),
    "SPLIT_V": _Form(3, 3, None),
    "UNPACK": _Form(1, 1, None),
    "ADD_N": _Form(1, _MANY),
    "CONCATENATION": _Form(1, _MANY),
    "PACK": _Form(1, _MANY),
}
# Which input has the type of the result, where it is not the first.
_DATA: Mapping[str, int] = {
    **dict.fromkeys(("FILL", "SCATTER_ND", "SELECT", "SELECT_V2", "SPLIT"), 1),
    **dict.fromkeys(("ONE_HOT", "SPARSE_TO_DENSE", "TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"), 2),
}
# What changes types, or takes one of several.
_OTHER_TYPE = frozenset(
    """
    ARG_MAX ARG_MIN BITCAST CAST COMPLEX_ABS DENSIFY DEQUANTIZE EMBEDDING_LOOKUP EQUAL FAKE_QUANT
    GREATER GREATER_EQUAL IMAG LESS LESS_EQUAL NOT_EQUAL QUANTIZE RANK REAL RFFT2D SHAPE WHERE
    """.split()
)
# Options without which LiteRT would read zeros, and their numbers that have to be positive.
_POOL = ("strideH", "strideW", "filterHeight", "filterWidth")
_OPTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "CONV_2D": ("Conv2DOptions", ("strideH", "strideW", "dilationHFactor", "dilationWFactor")),
    "DEPTHWISE_CONV_2D": (
        "DepthwiseConv2DOptions",
        ("strideH", "strideW", "dilationHFactor", "dilationWFactor"),
    ),
    "CONV_3D": ("Conv3DOptions", ("strideD", "strideH", "strideW")),
    "CONV_3D_TRANSPOSE": ("Conv3DOptions", ("strideD", "strideH", "strideW")),
    "TRANSPOSE_CONV": ("TransposeConvOptions", ("strideH", "strideW")),
    "AVERAGE_POOL_2D": ("Pool2DOptions", _POOL),
    "L2_POOL_2D": ("Pool2DOptions", _POOL),
    "MAX_POOL_2D": ("Pool2DOptions", _POOL),
    "SPACE_TO_DEPTH": ("SpaceToDepthOptions", ("blockSize",)),
    "DEPTH_TO_SPACE": ("DepthToSpaceOptions", ("blockSize",)),
    "SOFTMAX": ("SoftmaxOptions", ()),
    "CONCATENATION": ("ConcatenationOptions", ()),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ()),
}


def name(code: Any) -> str:
    """Names an operation as LiteRT does.

    Args:
        code: an `OperatorCodeT` of LiteRT's schema.

    Returns:
        A name such as `CONV_2D`, `CUSTOM:` with the name of a custom operation, or `BUILTIN_` with
        the number of one that this version of LiteRT does not know.

    Example:
        >>> schema = require('ai_edge_litert.schema_py_generated')
        >>> name(schema.OperatorCodeT(builtinCode=3))
        'CONV_2D'
    """
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    found = _numbered("BuiltinOperator").get(number, f"BUILTIN_{number}")
    custom = code.customCode.decode() if isinstance(code.customCode, bytes) else code.customCode
    return f"CUSTOM:{custom or ''}" if found == "CUSTOM" else found


def check(name: str, operator: Any, where: str) -> None:
    """Refuses an operator that is not given what it takes.

    Args:
        name: LiteRT's name of the operation; that of a custom one starts with `CUSTOM`.
        operator: an `OperatorT` of LiteRT's schema.
        where: which operator it is, for messages.

    Raises:
        ValueError: it has too few or too many tensors, or not its own options; or this reader
            does not know the operation.

    Example:
        >>> schema = require('ai_edge_litert.schema_py_generated')
        >>> operator = schema.OperatorT(inputs=[0], outputs=[1])
        >>> check('RELU', operator, 'operator 0')
        >>> check('ADD', operator, 'operator 0')
        Traceback (most recent call last):
        ...
        ValueError: damaged .tflite: operator 0 is ADD with the inputs [0], expected 2
    """
    if name.startswith("CUSTOM"):
        return
    if name in _CONTROL_FLOW:
        raise ValueError(f"unsupported .tflite: {where} is {name}: control flow is not followed")
    form = _FORMS.get(name)
    if form is None:
        raise ValueError(
            f"unsupported .tflite: {where} is {name}, which this reader does not know. LiteRT may "
            "run the file all the same; to have it read here, replace the operation and export it "
            "again"
        )
    inputs = [int(i) for i in ([] if operator.inputs is None else operator.inputs)]
    outputs = [] if operator.outputs is None else operator.outputs
    left_out = {place for place, tensor in enumerate(inputs) if tensor < 0}
    if not form.least <= len(inputs) <= form.most or left_out - {form.bias}:
        expected = str(form.least)
        if form.most != form.least:
            expected += " or more" if form.most == _MANY else f" to {form.most}"
        raise ValueError(
            f"damaged .tflite: {where} is {name} with the inputs {inputs}, expected {expected}"
        )
    if len(outputs) != (form.outputs or len(outputs)) or not len(outputs):
        raise ValueError(
            f"damaged .tflite: {where} is {name} with {len(outputs)} outputs, expected "
            f"{form.outputs or 'some'}"
        )
    _check_options(name, operator, where)


def check_types(name: str, operator: Any, tensors: list[Any], where: str) -> None:
    """Refuses an operator that would write values of another type than its result has.

    Some kernels of LiteRT do not compare the two, and write past a result of smaller items.

    Args:
        name: LiteRT's name of the operation.
        operator: an `OperatorT` that passed `check`.
        tensors: those of its subgraph.
        where: which operator it is, for messages.

    Raises:
        ValueError: the types differ.
    """
    if name in _OTHER_TYPE or name.startswith("CUSTOM"):
        return
    source, result = operator.inputs[_DATA.get(name, 0)], operator.outputs[0]
    kinds = [_numbered("TensorType").get(tensors[int(i)].type) for i in (source, result)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"damaged .tflite: {where} is {name} of {kinds[0]} and gives {kinds[1]}, expected the "
            "same type"
        )


def _check_options(name: str, operator: Any, where: str) -> None:
    number = operator.builtinOptionsType
    found = _numbered("BuiltinOptions").get(number, f"options of the unknown type {number}")
    known = number in _numbered("BuiltinOptions")
    wanted, positive = _OPTIONS.get(name, (found if known else "none", ()))
    if found != wanted or (wanted != "NONE" and operator.builtinOptions is None):
        raise ValueError(f"damaged .tflite: {where} is {name} with {found}, expected {wanted}")
    for field in positive:
        value = getattr(operator.builtinOptions, field)
        if value < 1:
            raise ValueError(f"damaged .tflite: {where} is {name} with {field} = {value}")


@functools.cache
def _numbered(enumeration: str) -> Mapping[int, str]:
    schema = require("ai_edge_litert.schema_py_generated")
    return {number: name for name, number in vars(getattr(schema, enumeration)).items()}
