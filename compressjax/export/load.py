"""Rebuilds a network from a .tflite: the other way of `tflite.py`.

Weights, scales and graph are read from the file, ours or anyone's, and run in JAX: what is int8 on
the lattice, what is float in float32. So a file can be checked, evaluated on an accelerator and, if
it is float, trained on without anything of the training that made it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.export import described, flatbuffer, meaning
from compressjax.export.described import File, Node
from compressjax.quant import lattice
from compressjax.quant.lattice import Affine

_NARROW = (-128.0, 127.0)
_LARGEST_BIAS = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A network that was read from a file.

    Attributes:
        variables: `{'params': {tensor: values}, 'quant': {tensor: {'scale', 'zero_point'}}}`: the
            constants by the names of their tensors, as the file has them (float32, float16, int8
            codes, int32 biases), and every grid.
        inputs: shape of each input in the file; a call may have any number of rows.
        nodes: the operators, in the order they run.
    """

    variables: dict[str, Any]
    inputs: tuple[tuple[int, ...], ...]
    nodes: tuple[Node, ...]
    _file: File = dataclasses.field(repr=False)

    @property
    def codes(self) -> tuple[str, ...]:
        """Names of the int8 and int16 tensors that are given or computed; none in a float file."""
        return tuple(self._file.names[i] for i in self._file.codes)

    @property
    def computed(self) -> tuple[int, ...]:
        """Numbers of the tensors that `intermediates` gives, in its order."""
        order = [*self._file.inputs, *(i for node in self.nodes for i in node.outputs)]
        return tuple(i for i in order if i in self._file.codes or i in self._file.reals)

    @property
    def tolerance(self) -> float:
        """How far real values may lie from LiteRT's, as a part of a tensor's largest magnitude.

        0 where all is computed on codes: bit for bit. 1e-5 where sums of float32 depend on their
        order, and 0.02 where layers round their inputs to the range these have (dynamic-range): a
        value next to a tie may then lie one code of 255 away, and what follows with it.
        """
        rules = [
            node.rule
            for node in self.nodes
            if node.rule is not None and self._file.dtypes[node.outputs[0]] == jnp.float32
        ]
        return max((meaning.tolerance(rule) for rule in rules), default=0.0)

    def apply(self, variables: Any, *inputs: jax.Array) -> Any:
        """Computes what LiteRT's default kernels put out for the file.

        Args:
            variables: of this network.
            *inputs: float32 `[N, ...]`, one per input, or integers where the file has them without
                a scale; the file may have another `N`.

        Returns:
            The outputs, `[N, ...]`, real values where the file has codes; a tuple if there are
            several.

        Raises:
            ValueError: there are too few or too many inputs, or they have other shapes.
        """
        values, rows = self._run(variables, inputs)
        outputs = [self._real(i, values[i], variables) for i in self._file.outputs]
        cut = tuple(_cut(x, rows, self._file.batch) for x in outputs)
        return cut[0] if len(cut) == 1 else cut

    def intermediates(self, variables: Any, *inputs: jax.Array) -> dict[str, jax.Array]:
        """Computes what is inside, by the tensors' names; arguments as `apply`.

        Returns:
            The codes of every int8 and int16 tensor, and the values of the float ones that follow
            from the inputs.
        """
        values, rows = self._run(variables, inputs)
        cut = {i: _cut(values[i], rows, self._file.batch) for i in self.computed}
        return {
            self._file.names[i]: x.astype(self._file.codes.get(i, x.dtype)) for i, x in cut.items()
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
            x = jnp.asarray(value, self._file.dtypes[self._file.inputs[position]])
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


def load(model: flatbuffer.File) -> Loaded:
    """Reads a .tflite as a network that runs in JAX.

    Args:
        model: the file, as bytes or as a path: int8, int16x8, float32, float16, weights alone in
            int8 or int4, or dynamic-range; with float or integer ends, and with what `ends.py`
            puts before and behind a model.

    Returns:
        The network: pure functions of its variables, which jit, vmap, shard and, on float
        constants, differentiate as any others. What it computes on codes are the values of LiteRT's
        default kernels bit for bit; what it computes on real values are theirs within float32's
        rounding. `verify` says so for a file.

    Raises:
        OSError: the path cannot be read.
        ValueError: the file is damaged, or has an operator or a type that is not known here; the
            message names it and its tensor.

    Example:
        >>> import compressjax as cj
        >>> q = cj.quantize(lambda v, x: x @ v['params']['kernel'])
        >>> x = jnp.array([[1.0, 0.5]])
        >>> qv = q.calibrate({'params': {'kernel': jnp.eye(2)}}, [x])
        >>> network = load(cj.export.tflite(q, qv, x, via='litert'))
        >>> bool((network.apply(network.variables, x) == q.apply(qv, x)).all())
        True
    """
    file, nodes, grids = described.describe(flatbuffer.content(model))
    params = {name: _stored(file, i, name in grids) for i, name in file.params.items()}
    inputs = tuple(tuple(int(n or 1) for n in file.shapes[i]) for i in file.inputs)
    network = Loaded({"params": params, "quant": grids}, inputs, nodes, file)
    examples = [
        jax.ShapeDtypeStruct(shape, file.dtypes[i])
        for i, shape in zip(file.inputs, inputs, strict=True)
    ]
    jax.eval_shape(network.apply, network.variables, *examples)  # refuses here, not when it runs
    return network


def _stored(file: File, tensor: int, coded: bool) -> jax.Array:
    values = file.fixed[tensor]
    if coded and values.dtype == np.uint8:
        values = (values.astype(np.int16) - 128).astype(np.int8)
    if values.dtype == np.int64 and np.abs(values).max(initial=0) > _LARGEST_BIAS:
        raise ValueError(
            f"tensor {file.names[tensor]!r} is a bias of over 31 bits: load keeps biases in int32"
        )
    return jnp.asarray(_narrow(values))


def _grids(file: File, variables: Any) -> dict[int, Affine]:
    stored = variables["quant"]
    return {
        i: Affine(stored[name]["scale"], stored[name]["zero_point"])
        for i, name in enumerate(file.names)
        if name in stored
    }


def _evaluate(
    file: File, nodes: Sequence[Node], variables: Any, inputs: Sequence[jax.Array]
) -> dict[int, jax.Array]:
    """Runs the operators at the batch size of the file."""
    grids, known = _grids(file, variables), dict(file.fixed)
    values: dict[int, Any] = {i: _narrow(x) for i, x in known.items() if i not in file.params}
    for tensor, name in file.params.items():
        value = variables["params"][name]
        values[tensor] = value if value.dtype == jnp.int32 else value.astype(jnp.float32)
    for tensor, x in zip(file.inputs, inputs, strict=True):
        if tensor in grids:
            wide = file.codes.get(tensor) == jnp.int16
            limits = lattice.wide.CODES if wide else _NARROW
            x = lattice.quantize(x, grids[tensor], limits)
        values[tensor] = x
    for node in nodes:
        if node.rule is None:
            made: Any = np.asarray(values[node.inputs[0]].shape, np.int32)
            known[node.outputs[0]] = values[node.outputs[0]] = made
            continue
        call = _call(file, node, grids, known, values)
        places = [i for i in node.inputs if i >= 0]
        if all(i in known and i not in file.params for i in places):  # sizes, worked out now
            with jax.ensure_compile_time_eval():
                outputs = [np.asarray(x) for x in _outputs(file, node, call)]
            known.update(zip(node.outputs, outputs, strict=True))
        else:
            outputs = _outputs(file, node, call)
        values.update(zip(node.outputs, outputs, strict=True))
    return {i: jnp.asarray(values[i]) for i in {*file.codes, *file.reals, *file.outputs}}


def _call(
    file: File,
    node: Node,
    grids: Mapping[int, Affine],
    known: Mapping[int, np.ndarray],
    values: Mapping[int, Any],
) -> meaning.Call:
    return meaning.Call(
        [values.get(i) for i in node.inputs],
        [grids.get(i) for i in node.inputs],
        [file.axes[i] if i >= 0 else 0 for i in node.inputs],
        [known.get(i) for i in node.inputs],
        node.options,
        [file.shapes[i] for i in node.outputs],
        grids.get(node.outputs[0]),
        file.dtypes[node.outputs[0]],
    )


def _outputs(file: File, node: Node, call: meaning.Call) -> list[Any]:
    where = f"{node.kind} of {file.names[node.outputs[0]]!r}"
    assert node.rule is not None
    try:
        made = node.rule(call)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{where} cannot be rebuilt: {error}") from error
    outputs = list(made) if isinstance(made, tuple) else [made]
    if not all(map(_fits, [x.shape for x in outputs], call.shapes)):
        raise ValueError(
            f"{where} puts out {[list(x.shape) for x in outputs]}, the file says "
            f"{[list(shape) for shape in call.shapes]}"
        )
    return outputs


def _fits(found: Sequence[int], said: Sequence[int | None]) -> bool:
    return len(found) == len(said) and all(
        wanted in (size, None) for size, wanted in zip(found, said, strict=True)
    )


def _narrow(values: np.ndarray) -> np.ndarray:
    """Integers of 32 bits, as JAX has them."""
    if values.dtype != np.int64:
        return values
    limits = np.iinfo(np.int32)
    return values.clip(limits.min, limits.max).astype(np.int32)


def _cut(values: jax.Array, rows: int, batch: int) -> jax.Array:
    """Joins slices [S, B, ...] and drops what filled the last one."""
    if values.ndim == 1:  # a scalar of each slice
        return values if len(values) > 1 else values[0]
    joined = values.reshape(values.shape[0] * values.shape[1], *values.shape[2:])
    return joined[: rows * values.shape[1] // batch]
