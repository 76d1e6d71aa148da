"""Takes a .tflite apart: its operators with their rules, its tensors, its grids.

`flatbuffer.py` reads the bytes as LiteRT's schema; here they become what `load.py` runs, and what
it could not run is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.export import flatbuffer, meaning, sparse
from compressjax.export._require import require

_ENDS = ("QUANTIZE", "DEQUANTIZE")
# Bits of the codes of each type, as kernels compute on them.
_BITS: Mapping[str, int] = {"INT8": 8, "INT4": 8, "UINT8": 8, "INT16": 16}
# What a tensor of the file is in JAX: codes are float32, and wide integers have 32 bits.
_DTYPES: Mapping[str, Any] = {
    "FLOAT32": jnp.float32, "FLOAT16": jnp.float32, "INT8": jnp.float32, "INT4": jnp.float32,
    "INT16": jnp.float32, "UINT8": jnp.int32, "INT32": jnp.int32, "INT64": jnp.int32,
    "BOOL": jnp.bool_,
}  # fmt: skip
_STORED: Mapping[str, Any] = {"INT8": jnp.int8, "INT16": jnp.int16}


class Node(NamedTuple):
    """An operator of the file.

    Attributes:
        kind: LiteRT's name of the operation.
        inputs: tensors by number; -1 where an operand is left out.
        outputs: tensors by number.
        options: as LiteRT's schema has them.
        rule: what it computes; `None` of SHAPE, which asks for a shape alone.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any
    rule: meaning.Rule | None


class File(NamedTuple):
    """What a file says of its tensors, by number.

    Attributes:
        names: each one once.
        shapes: at the batch of the file; `None` where a computed size is open.
        dtypes: in JAX.
        axes: along which axis the scales of a grid lie.
        codes: int8 and int16 tensors that are given or computed, in order, with their types.
        reals: float tensors that are computed from the inputs and are no outputs, in order.
        inputs: the file's, in the order of the exported function.
        outputs: the same.
        fixed: data of the constants.
        params: names of the constants that are variables.
        batch: rows of the first input.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[Any, ...]
    axes: tuple[int, ...]
    codes: Mapping[int, Any]
    reals: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fixed: Mapping[int, np.ndarray]
    params: Mapping[int, str]
    batch: int


def describe(data: bytes) -> tuple[File, tuple[Node, ...], dict[str, Any]]:
    """Takes a file apart.

    Args:
        data: the .tflite.

    Returns:
        Its tensors, its operators in the order they run, and its grids by tensor name: `scale`,
        float32 `[]` or `[O]`, and `zero_point`, float32 `[]`, of codes from -128 to 127.

    Raises:
        ValueError: the file is damaged, or has what cannot be rebuilt; the message names it.
    """
    unpacked = flatbuffer.read(data)
    graph = unpacked.subgraphs[0]
    kinds = _kinds(graph)
    names = flatbuffer.tensor_names(graph)
    fixed = {
        number: values
        for number, tensor in enumerate(graph.tensors)
        if (values := sparse.dense(unpacked, tensor)) is not None
    }
    nodes = []
    for place, op in enumerate(graph.operators):
        kind = flatbuffer.op_name(unpacked, op)
        inputs, outputs = tuple(map(int, op.inputs)), tuple(map(int, op.outputs))
        if kind == "DENSIFY":
            fixed[outputs[0]] = fixed[inputs[0]]  # its result is a constant
            continue
        where = f"operator {place}, {kind} of {names[outputs[0]]!r},"
        rule = _rule(kind, inputs, outputs, kinds, graph, where)
        nodes.append(Node(kind, inputs, outputs, op.builtinOptions, rule))
    grids = {
        names[number]: _grid(tensor, names[number], kinds[number])
        for number, tensor in enumerate(graph.tensors)
        if _coded(tensor, kinds[number])
    }
    for node in nodes:
        tensors = [i for i in (*node.outputs, *node.inputs) if i >= 0]
        bits = _BITS.get(kinds[node.outputs[0]], 0)
        _check_grids(node, [grids.get(names[i]) for i in tensors], bits, names[node.outputs[0]])
    return _file(unpacked, graph, names, kinds, nodes, fixed), tuple(nodes), grids


def _file(
    unpacked: Any,
    graph: Any,
    names: Sequence[str],
    kinds: Sequence[str],
    nodes: Sequence[Node],
    fixed: Mapping[int, np.ndarray],
) -> File:
    inputs = tuple(_in_order(unpacked, graph.inputs, "inputs"))
    shape = graph.tensors[inputs[0]].shape if inputs else None
    if shape is None or not len(shape):
        raise ValueError("the model has no input with a batch axis")
    outputs = tuple(_in_order(unpacked, graph.outputs, "outputs"))
    made, given = [i for node in nodes for i in node.outputs], {*inputs}
    for node in nodes:
        given |= {*node.outputs} if given & {*node.inputs} else set()
    coded = [_coded(tensor, kind) for tensor, kind in zip(graph.tensors, kinds, strict=True)]
    used = {i for node in nodes for i in node.inputs} | {int(i) for i in graph.outputs}
    return File(
        names=tuple(names),
        shapes=tuple(_shape(tensor, i in inputs) for i, tensor in enumerate(graph.tensors)),
        dtypes=tuple(
            jnp.float32 if code else _DTYPES.get(kind, jnp.float32)
            for code, kind in zip(coded, kinds, strict=True)
        ),
        axes=tuple(
            0 if tensor.quantization is None else tensor.quantization.quantizedDimension
            for tensor in graph.tensors
        ),
        codes={i: _STORED[kinds[i]] for i in (*inputs, *made) if kinds[i] in _STORED},
        reals=tuple(i for i in made if kinds[i] == "FLOAT32" and i in given and i not in outputs),
        inputs=inputs,
        outputs=outputs,
        fixed=fixed,
        params={
            i: names[i]
            for i in sorted(used & set(fixed))
            if coded[i]
            or kinds[i] in ("FLOAT32", "FLOAT16")
            or _is_bias(graph.tensors[i], kinds[i])
        },
        batch=int(shape[0]),
    )


def _rule(
    kind: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    kinds: Sequence[str],
    graph: Any,
    where: str,
) -> meaning.Rule | None:
    """The rule of an operator; refuses those that are not known, on types that they do not take."""
    if kind not in meaning.KNOWN:
        raise ValueError(
            f"{where} is not known here: load reads {', '.join(sorted(meaning.KNOWN))}"
        )
    for tensor in (i for i in (*inputs, *outputs) if i >= 0):
        if kinds[tensor] not in _DTYPES:
            raise ValueError(
                f"{where} has a tensor that is {kinds[tensor]}, expected {', '.join(_DTYPES)}"
            )
        if (
            kinds[tensor] == "UINT8"
            and _coded(graph.tensors[tensor], "UINT8")
            and kind not in _ENDS
        ):
            raise ValueError(f"{where} computes on uint8: load reads models that are int8 inside")
    if kind == "SHAPE":
        return None
    known = [_coded(graph.tensors[i], kinds[i]) if i >= 0 else False for i in inputs]
    made = outputs[0]
    bits = {_BITS[kinds[i]] for i, coded in zip(inputs, known, strict=True) if coded}
    if _coded(graph.tensors[made], kinds[made]):
        bits = {_BITS[kinds[made]]} | (bits if kind == "QUANTIZE" else set())
    elif kinds[made] in ("FLOAT32", "FLOAT16"):
        bits = set()
    mixed = len(bits) > 1
    kernel_coded = len(known) > 1 and known[1]
    rule = (
        None if mixed else meaning.find(kind, bits=max(bits, default=0), kernel_coded=kernel_coded)
    )
    if rule is None:
        raise ValueError(
            f"{where} computes {kinds[made]} from {[kinds[i] for i in inputs if i >= 0]}, and is "
            "not known here on these types"
        )
    return rule


def _check_grids(
    node: Node, grids: Sequence[Mapping[str, Any] | None], bits: int, name: str
) -> None:
    """Refuses grids that LiteRT's specification does not allow, the output's first."""
    known, where = [grid for grid in grids if grid is not None], f"{node.kind} of {name!r}"
    fixed = meaning.FIXED.get(bits, {})
    if not known or (node.kind not in meaning.ONE_GRID and node.kind not in fixed):
        return
    pairs = [(grid["scale"].tolist(), float(grid["zero_point"])) for grid in known]
    if node.kind in fixed:
        wanted = fixed[node.kind][1]
        if pairs[0] != (np.float32(wanted[0]).item(), wanted[1]):
            raise ValueError(f"{where} puts out the grid {pairs[0]}, LiteRT fixes it to {wanted}")
    elif any(pair != pairs[0] for pair in pairs):
        raise ValueError(f"{where} has the grids {pairs}, LiteRT wants one for all its tensors")


def _kinds(graph: Any) -> list[str]:
    types = vars(require("ai_edge_litert.schema_py_generated").TensorType)
    names = {number: name for name, number in types.items()}
    return [names.get(tensor.type, "of no known type") for tensor in graph.tensors]


def _coded(tensor: Any, kind: str) -> bool:
    """Whether a tensor holds codes; bytes without a scale are integers."""
    grid = tensor.quantization
    scaled = grid is not None and grid.scale is not None and len(grid.scale) > 0
    return kind in ("INT8", "INT4", "INT16") or (kind == "UINT8" and scaled)


def _is_bias(tensor: Any, kind: str) -> bool:
    grid = tensor.quantization
    return kind in ("INT32", "INT64") and grid is not None and grid.scale is not None


def _shape(tensor: Any, given: bool) -> tuple[int | None, ...]:
    """The shape of a tensor; what the file leaves open is so only in those that are computed."""
    if tensor.shape is None:
        return ()
    signature = tensor.shapeSignature
    if given or signature is None or len(signature) != len(tensor.shape):
        return tuple(int(size) for size in tensor.shape)
    pairs = zip(tensor.shape, signature, strict=True)
    return tuple(None if wide < 0 else int(size) for size, wide in pairs)


def _grid(tensor: Any, name: str, kind: str) -> dict[str, jax.Array]:
    quantization = tensor.quantization
    scale = None if quantization is None else quantization.scale
    if scale is None or not len(scale):
        raise ValueError(f"tensor {name!r} is {kind.lower()} and has no scale")
    points = quantization.zeroPoint
    if len(scale) > 1:
        if points is not None and np.any(points):
            raise ValueError(f"tensor {name!r} has zero points per channel, expected 0")
        return {"scale": jnp.asarray(scale, jnp.float32), "zero_point": jnp.float32(0)}
    point = 0 if points is None or not len(points) else points[0]
    point -= 128 if kind == "UINT8" else 0  # its codes are those of int8, counted from 0
    return {"scale": jnp.float32(scale[0]), "zero_point": jnp.float32(point)}


def _in_order(unpacked: Any, tensors: Sequence[int], side: str) -> list[int]:
    """Sorts by the number in the signature's names, `input_0`, `input_1`, where all have one."""
    signatures = unpacked.signatureDefs or []
    entries = (getattr(signatures[0], side) or []) if signatures else []
    names = {int(entry.tensorIndex): flatbuffer.text(entry.name) for entry in entries}
    numbers = [names.get(int(i), "").rpartition("_")[2] for i in tensors]
    if not all(number.isdecimal() for number in numbers):
        return [int(i) for i in tensors]
    return [int(i) for _, i in sorted(zip(map(int, numbers), tensors, strict=True))]
