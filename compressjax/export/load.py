"""Rebuilds a network from an int8 .tflite: the other way of `tflite.py`.

Scales, weights and graph are read from the file, ours or anyone's, and run on the lattice. So a
file can be checked and evaluated on an accelerator without anything of the training that made it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.export import flatbuffer, meaning, sparse
from compressjax.export._require import require
from compressjax.quant import lattice
from compressjax.quant.lattice import Affine

_ENDS = ("QUANTIZE", "DEQUANTIZE")


class Node(NamedTuple):
    """An operator of the file.

    Attributes:
        kind: LiteRT's name of the operation.
        inputs: tensors by number; -1 where an operand is left out.
        outputs: tensors by number.
        options: as LiteRT's schema has them.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A network that was read from a file.

    Attributes:
        variables: `{'params': {tensor: codes}, 'quant': {tensor: {'scale', 'zero_point'}}}`: the
            weights (int8) and biases (int32) by the names of their tensors, and every grid.
        inputs: shape of each input in the file; a call may have any number of rows.
        nodes: the operators, in the order they run.
    """

    variables: dict[str, Any]
    inputs: tuple[tuple[int, ...], ...]
    nodes: tuple[Node, ...]
    _file: _File = dataclasses.field(repr=False)

    def apply(self, variables: Any, *inputs: jax.Array) -> Any:
        """Computes what LiteRT's default kernels put out for the file.

        Args:
            variables: of this network.
            *inputs: float32 `[N, ...]`, one per input; the file may have another `N`.

        Returns:
            The real outputs, `[N, ...]`; a tuple if there are several.

        Raises:
            ValueError: there are too few or too many inputs, or they have other shapes.
        """
        values, rows = self._run(variables, inputs)
        outputs = [self._real(i, values[i], variables) for i in self._file.outputs]
        cut = tuple(_cut(x, rows, self._file.batch) for x in outputs)
        return cut[0] if len(cut) == 1 else cut

    def intermediates(self, variables: Any, *inputs: jax.Array) -> dict[str, jax.Array]:
        """Computes the codes of every int8 tensor, by the tensor's name; arguments as `apply`."""
        values, rows = self._run(variables, inputs)
        return {
            self._file.names[i]: _cut(values[i], rows, self._file.batch).astype(jnp.int8)
            for i in self._file.codes
        }

    def _real(self, tensor: int, value: jax.Array, variables: Any) -> jax.Array:
        grid = _grids(self._file, variables).get(tensor)
        return value if grid is None else lattice.dequantize(value, grid)

    def _run(self, variables: Any, inputs: Sequence[Any]) -> tuple[dict[int, jax.Array], int]:
        """Every tensor, slice by slice: [slices, *shape in the file]; and the number of rows."""
        if len(inputs) != len(self.inputs):
            raise ValueError(f"the model takes {len(self.inputs)} inputs, found {len(inputs)}")
        sliced, counts = [], set()
        for position, (value, shape) in enumerate(zip(inputs, self.inputs, strict=True)):
            x = jnp.asarray(value, jnp.float32)
            if not shape or x.ndim != len(shape) or x.shape[1:] != shape[1:] or not len(x):
                raise ValueError(
                    f"input {position} has shape {list(x.shape)}, the model takes "
                    f"{['N', *shape[1:]]}"
                )
            missing = -len(x) % shape[0]
            x = jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]) if missing else x
            counts.add((len(x) // shape[0], len(value)))
            sliced.append(x.reshape(-1, *shape))
        if len(counts) > 1:
            raise ValueError(
                f"the inputs have different numbers of rows: {[len(x) for x in inputs]}"
            )
        values = jax.vmap(lambda *xs: _evaluate(self._file, self.nodes, variables, xs))(*sliced)
        return values, len(inputs[0])


class _File(NamedTuple):
    """What else `Loaded` needs of a file; tensors by number."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    codes: tuple[int, ...]  # int8 tensors that are computed
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fixed: Mapping[int, np.ndarray]
    params: Mapping[int, str]
    batch: int


def load(model: flatbuffer.File) -> Loaded:
    """Reads an int8 .tflite as a network that runs in JAX.

    Args:
        model: the file, as bytes or as a path; int8 inside, with float, int8 or uint8 inputs and
            outputs.
            Give it before images, softmax or top-k are put into it (`ends.py`): those are float.

    Returns:
        The network: pure functions of its variables, which jit, vmap and shard as any others. Its
        values are those of LiteRT's default kernels, bit for bit; `verify` says so for a file.

    Raises:
        OSError: the path cannot be read.
        ValueError: the file is damaged, or has an operator that is no int8 operator of LiteRT's
            or that is not known here; the message names it and its tensor.

    Example:
        >>> import compressjax as cj
        >>> q = cj.quantize(lambda v, x: x @ v['params']['kernel'])
        >>> x = jnp.array([[1.0, 0.5]])
        >>> qv = q.calibrate({'params': {'kernel': jnp.eye(2)}}, [x])
        >>> network = load(cj.export.tflite(q, qv, x, via='litert'))
        >>> bool((network.apply(network.variables, x) == q.apply(qv, x)).all())
        True
    """
    unpacked = flatbuffer.read(flatbuffer.content(model))
    graph = unpacked.subgraphs[0]
    nodes = tuple(
        Node(
            flatbuffer.op_name(unpacked, op),
            tuple(map(int, op.inputs)),
            tuple(map(int, op.outputs)),
            op.builtinOptions,
        )
        for op in graph.operators
    )
    _check(nodes, graph)
    file, grids = _described(unpacked, graph, nodes)
    nodes = tuple(node for node in nodes if node.kind != "DENSIFY")  # its result is a constant
    params = {name: jnp.asarray(file.fixed[tensor]) for tensor, name in file.params.items()}
    variables = {"params": params, "quant": grids}
    network = Loaded(variables, tuple(file.shapes[i] for i in file.inputs), nodes, file)
    examples = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in network.inputs]
    jax.eval_shape(network.intermediates, variables, *examples)  # refuses here, not when it runs
    return network


def _check(nodes: Sequence[Node], graph: Any) -> None:
    """Refuses operators that are not known, and types that the lattice does not have."""
    types = vars(require("ai_edge_litert.schema_py_generated").TensorType)
    known = {types[name] for name in ("FLOAT32", "INT8", "INT4", "INT32", "UINT8")}
    names = {number: name for name, number in types.items()}
    for place, node in enumerate(nodes):
        where = f"operator {place}, {_where(node, graph)},"
        if node.kind not in (*meaning.RULES, "DENSIFY"):
            raise ValueError(
                f"{where} is not known here: load reads int8 files without float ends, whose "
                f"operators are {', '.join(sorted(meaning.RULES))}"
            )
        for tensor in (i for i in (*node.inputs, *node.outputs) if i >= 0):
            if graph.tensors[tensor].type not in known:
                kind = names.get(graph.tensors[tensor].type, "of no known type")
                raise ValueError(f"{where} has a tensor that is {kind}, expected int8")
            if graph.tensors[tensor].type == types["UINT8"] and node.kind not in _ENDS:
                raise ValueError(
                    f"{where} computes on uint8: load reads models that are int8 inside"
                )
        made = graph.tensors[node.outputs[0]].type
        if (made == types["FLOAT32"]) != (node.kind == "DEQUANTIZE"):
            raise ValueError(
                f"{where} puts out {names[made]}: load reads models that are int8 inside; use run "
                "for a float one"
            )


def _where(node: Node, graph: Any) -> str:
    return f"{node.kind} of {flatbuffer.text(graph.tensors[node.outputs[0]].name)!r}"


def _described(unpacked: Any, graph: Any, nodes: Sequence[Node]) -> tuple[_File, dict[str, Any]]:
    """Takes apart the tensors of a file."""
    types = require("ai_edge_litert.schema_py_generated").TensorType
    names, grids = _names(graph), dict[str, Any]()
    fixed = {
        number: data
        for number, tensor in enumerate(graph.tensors)
        if (data := sparse.dense(unpacked, tensor)) is not None
    }
    fixed |= {node.outputs[0]: fixed[node.inputs[0]] for node in nodes if node.kind == "DENSIFY"}
    nodes = [node for node in nodes if node.kind != "DENSIFY"]
    for number, tensor in enumerate(graph.tensors):
        if tensor.type in (types.INT8, types.INT4, types.UINT8):
            grids[names[number]] = _grid(tensor, names[number])
            if tensor.type == types.UINT8:  # its codes are those of int8, counted from 0
                grids[names[number]]["zero_point"] -= 128
    for node in nodes:
        _check_grids(node, [grids.get(names[i]) for i in (*node.outputs, *node.inputs) if i >= 0],
                     _where(node, graph))  # fmt: skip
    made = [i for node in nodes for i in node.outputs]
    inputs = tuple(_in_order(unpacked, graph.inputs, "inputs"))
    shape = graph.tensors[inputs[0]].shape if inputs else None
    if shape is None or not len(shape) or not inputs:
        raise ValueError("the model has no input with a batch axis")
    params = {
        i: names[i] for node in nodes for i in node.inputs if _is_param(graph, types, fixed, i)
    }
    codes = [i for i in (*inputs, *made) if graph.tensors[i].type == types.INT8]
    file = _File(
        names=tuple(names),
        shapes=tuple(
            () if tensor.shape is None else tuple(int(n) for n in tensor.shape)
            for tensor in graph.tensors
        ),
        codes=tuple(codes),
        inputs=inputs,
        outputs=tuple(_in_order(unpacked, graph.outputs, "outputs")),
        fixed=fixed,
        params=params,
        batch=int(shape[0]),
    )
    return file, grids


def _check_grids(node: Node, grids: Sequence[Mapping[str, Any] | None], where: str) -> None:
    """Refuses grids that LiteRT's specification does not allow, the output's first."""
    known = [grid for grid in grids if grid is not None]
    if node.kind not in (*meaning.MOVES, *meaning.FIXED) or not known:
        return
    pairs = [(float(grid["scale"]), int(grid["zero_point"])) for grid in known]
    if node.kind in meaning.FIXED:
        wanted = meaning.FIXED[node.kind][1]
        if pairs[0] != (np.float32(wanted[0]), wanted[1]):
            raise ValueError(f"{where} puts out the grid {pairs[0]}, LiteRT fixes it to {wanted}")
    elif len(set(pairs)) > 1:
        raise ValueError(f"{where} has the grids {pairs}, LiteRT wants one for all its tensors")


def _is_param(graph: Any, types: Any, fixed: Mapping[int, np.ndarray], tensor: int) -> bool:
    """Whether an operand is a constant with codes: weights, biases, and constants of additions."""
    if tensor not in fixed:
        return False
    kind, quantization = graph.tensors[tensor].type, graph.tensors[tensor].quantization
    bias = kind == types.INT32 and quantization is not None and quantization.scale is not None
    return kind in (types.INT8, types.INT4) or bias


def _names(graph: Any) -> list[str]:
    """A name for each tensor; those that have none or another's get their number."""
    seen: set[str] = set()
    names = []
    for number, tensor in enumerate(graph.tensors):
        name = flatbuffer.text(tensor.name)
        names.append(f"{name}:{number}" if name in seen or not name else name)
        seen.add(name)
    return names


def _grid(tensor: Any, name: str) -> dict[str, jax.Array]:
    quantization = tensor.quantization
    scale = None if quantization is None else quantization.scale
    if scale is None or not len(scale):
        raise ValueError(f"tensor {name!r} is int8 and has no scale")
    points = quantization.zeroPoint
    if len(scale) > 1:
        if points is not None and np.any(points):
            raise ValueError(f"tensor {name!r} has zero points per channel, expected 0")
        return {"scale": jnp.asarray(scale, jnp.float32), "zero_point": jnp.float32(0)}
    point = 0 if points is None or not len(points) else points[0]
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


def _grids(file: _File, variables: Any) -> dict[int, Affine]:
    stored = variables["quant"]
    return {
        i: Affine(stored[name]["scale"], stored[name]["zero_point"])
        for i, name in enumerate(file.names)
        if name in stored
    }


def _evaluate(
    file: _File, nodes: Sequence[Node], variables: Any, inputs: Sequence[jax.Array]
) -> dict[int, jax.Array]:
    """Runs the operators at the batch size of the file."""
    grids, values = _grids(file, variables), dict[int, jax.Array]()
    for tensor, name in file.params.items():
        values[tensor] = variables["params"][name].astype(jnp.float32)
    for tensor, x in zip(file.inputs, inputs, strict=True):
        values[tensor] = lattice.quantize(x, grids[tensor]) if tensor in grids else x
    for node in nodes:
        call = meaning.Call(
            [values.get(i) for i in node.inputs],
            [grids.get(i) for i in node.inputs],
            [file.fixed.get(i) for i in node.inputs],
            node.options,
            [file.shapes[i] for i in node.outputs],
            grids.get(node.outputs[0]),
        )
        where = f"{node.kind} of {file.names[node.outputs[0]]!r}"
        try:
            made = meaning.RULES[node.kind](call)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{where} cannot be rebuilt: {error}") from error
        outputs = made if isinstance(made, tuple) else (made,)
        if [x.shape for x in outputs] != list(call.shapes):
            raise ValueError(
                f"{where} puts out {[list(x.shape) for x in outputs]}, the file says "
                f"{[list(shape) for shape in call.shapes]}"
            )
        values.update(zip(node.outputs, outputs, strict=True))
    return {i: values[i] for i in {*file.codes, *file.outputs}}


def _cut(values: jax.Array, rows: int, batch: int) -> jax.Array:
    """Joins slices [S, B, ...] and drops what filled the last one."""
    joined = values.reshape(values.shape[0] * values.shape[1], *values.shape[2:])
    return joined[: rows * values.shape[1] // batch]
