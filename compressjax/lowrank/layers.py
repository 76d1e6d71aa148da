"""Layers that can be factorized: contractions with a kernel, in one layout for all of them.

Decompositions work on `[*window, inputs, outputs]`, whatever the function does with a variable
before it multiplies with it. A `Use` is one contraction: it brings the variable into that layout,
and runs factors in the contraction's place. `graph.kernels` is the neighbour for transforms that
rescale weights where they stand; it takes only kernels with one axis of outputs and one reader.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import graph as graphs
from compressjax.graph import Graph, Op, Value
from compressjax.lowrank.factors import Array, Factor, product


@dataclasses.dataclass(frozen=True)
class Layer:
    """The shapes of one layer, as decompositions see it.

    Attributes:
      path: path of the kernel.
      window: taps along each spatial axis; none for a matrix product.
      inputs: input channels of a group.
      outputs: output channels of a group.
      groups: groups of channels that are convolved apart.
      calls: `(sizes before, sizes after)` along the spatial axes of each use, with the number of
        other positions in front of both: batch, or rows of a matrix product.
    """

    path: str
    window: tuple[int, ...]
    inputs: int
    outputs: int
    groups: int
    calls: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @property
    def taps(self) -> int:
        """Positions of the window."""
        return math.prod(self.window)

    def macs(self, factors: Sequence[Factor]) -> int:
        """Multiply-accumulates of all uses with these factors, batch included."""
        total = 0
        for before, after in self.calls:
            done: set[int] = set()
            for factor in factors:
                done.update(factor.axes)
                sizes = [(after if i in done else before)[i + 1] for i in range(len(self.window))]
                total += before[0] * math.prod(sizes) * math.prod(factor.shape) * self.groups
        return total

    @property
    def whole(self) -> Factor:
        """The layer as it is, as its only factor."""
        shape = (*self.window, self.inputs, self.outputs)
        return Factor("", shape, tuple(range(len(self.window))), 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One contraction of data with a variable.

    Attributes:
      graph: the graph.
      op: the contraction.
      path: path of the variable.
      side: which operand the variable becomes.
    """

    graph: Graph
    op: Op
    path: str
    side: int

    @property
    def data(self) -> Value:
        """The other operand."""
        return self.op.inputs[1 - self.side]

    @property
    def is_conv(self) -> bool:
        """Whether this is a convolution."""
        return self.op.kind == "conv_general_dilated"

    @functools.cached_property
    def _contracting(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of a matrix product, the axes that are summed over: of the data, of the kernel."""
        axes = self.op.params["dimension_numbers"][0]
        return tuple(axes[1 - self.side]), tuple(axes[self.side])

    @functools.cached_property
    def _free(self) -> tuple[int, ...]:
        """Of a matrix product, the axes of outputs of the kernel."""
        rank = len(self.op.inputs[self.side].shape)
        return tuple(i for i in range(rank) if i not in self._contracting[1])

    @functools.cached_property
    def layer(self) -> Layer:
        """The shapes of the layer, if this were its only use."""
        kernel, data = self.op.inputs[self.side].shape, self.data.shape
        if not self.is_conv:
            rows = math.prod(data) // math.prod(data[i] for i in self._contracting[0])
            inputs = math.prod(kernel[i] for i in self._contracting[1])
            outputs = math.prod(kernel[i] for i in self._free)
            return Layer(self.path, (), inputs, outputs, 1, (((rows,), (rows,)),))
        params = self.op.params
        numbers, groups = params["dimension_numbers"], params["feature_group_count"]
        out, into, *taps = numbers.rhs_spec
        before = tuple(data[i] for i in (numbers.lhs_spec[0], *numbers.lhs_spec[2:]))
        after = tuple(self.op.out_shape[i] for i in (numbers.out_spec[0], *numbers.out_spec[2:]))
        window = tuple(kernel[i] for i in taps)
        return Layer(
            self.path, window, kernel[into], kernel[out] // groups, groups, ((before, after),)
        )

    def weights(self, variable: np.ndarray) -> np.ndarray:
        """Brings the variable into the layout `[groups, *window, inputs, outputs]`, float64."""
        where = self.op.inputs[self.side]
        operand = graphs.places(self.graph, where, self.graph.variables[self.path])
        values = np.asarray(variable, np.float64).reshape(-1)[operand]
        layer = self.layer
        if not self.is_conv:
            order = (*self._contracting[1], *self._free)
            return values.transpose(order).reshape(1, layer.inputs, layer.outputs)
        out, into, *taps = self.op.params["dimension_numbers"].rhs_spec
        ordered = values.transpose((*taps, into, out))
        split = ordered.reshape(*layer.window, layer.inputs, layer.groups, layer.outputs)
        return np.moveaxis(split, -2, 0)

    def stored(self, factors: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Gives factors `[groups, *window, inputs, outputs]` the shapes of variables.

        A convolution's become `[*window, inputs, groups * outputs]`; the first and the last one of
        a matrix product get the kernel's own axes of inputs and of outputs.
        """
        if self.is_conv:
            moved = [np.moveaxis(factor, 0, -2) for factor in factors]
            return [x.reshape(*x.shape[:-2], -1) for x in moved]
        kernel = self.op.inputs[self.side].shape
        first, *middle, last = (factor[0] for factor in factors)
        first = first.reshape(*(kernel[i] for i in self._contracting[1]), -1)
        return [first, *middle, last.reshape(-1, *(kernel[i] for i in self._free))]

    def merged(self, plan: Sequence[Factor], factors: Sequence[Array]) -> Array:
        """Multiplies factors, as `stored` shapes them, back into the variable: float, its shape."""
        layer, operand = self.layer, self.op.inputs[self.side].shape
        if self.is_conv:
            split = [x.reshape(*x.shape[:-1], layer.groups, -1) for x in factors]
            axes = range(len(layer.window) + 1)
            whole = product(plan, [x.transpose(x.ndim - 2, *axes, x.ndim - 1) for x in split])
            moved = whole.transpose(*(i + 1 for i in axes), 0, whole.ndim - 1)
            ordered = moved.reshape(*layer.window, layer.inputs, -1)
            out, into, *taps = self.op.params["dimension_numbers"].rhs_spec
            order = (*taps, into, out)
        else:
            first, *middle, last = factors
            flat = [first.reshape(layer.inputs, -1), *middle, last.reshape(-1, layer.outputs)]
            order = (*self._contracting[1], *self._free)
            ordered = product(plan, flat).reshape([operand[i] for i in order])
        moved = ordered.transpose(*(int(i) for i in np.argsort(order)))
        variable = self.graph.variables[self.path]
        where = graphs.places(self.graph, self.op.inputs[self.side], variable)
        return moved.reshape(-1)[np.argsort(where.ravel())].reshape(variable.shape)

    def inputs(self, data: jax.Array) -> jax.Array:
        """Brings what the contraction reads into `[rows, groups, inputs]`."""
        if self.is_conv:
            spec = self.op.params["dimension_numbers"].lhs_spec
            return jnp.moveaxis(data, spec[1], -1).reshape(-1, self.layer.groups, self.layer.inputs)
        axes = self._contracting[0]
        moved = jnp.moveaxis(data, axes, range(data.ndim - len(axes), data.ndim))
        return moved.reshape(-1, 1, self.layer.inputs)

    def outputs(self, output: jax.Array) -> jax.Array:
        """Brings what the contraction puts out into `[rows, groups, outputs]`."""
        if self.is_conv:
            output = jnp.moveaxis(output, self.op.params["dimension_numbers"].out_spec[1], -1)
        elif self.side == 0:  # the kernel's axes come first
            free = len(self._free)
            output = jnp.moveaxis(output, range(free), range(output.ndim - free, output.ndim))
        return output.reshape(-1, self.layer.groups, self.layer.outputs)

    def patches(self, data: jax.Array) -> jax.Array:
        """Brings all that each output is computed from into `[rows, groups, taps * inputs]`.

        Taps come first, as in `weights`; padding is zeros.
        """
        if not self.is_conv:
            return self.inputs(data)
        params, layer = self.op.params, self.layer
        found = jax.lax.conv_general_dilated_patches(
            data.transpose(params["dimension_numbers"].lhs_spec),
            layer.window,
            params["window_strides"],
            params["padding"],
            lhs_dilation=params["lhs_dilation"],
            rhs_dilation=params["rhs_dilation"],
            precision=jax.lax.Precision.HIGHEST,
        )
        split = found.reshape(
            data.shape[params["dimension_numbers"].lhs_spec[0]],
            layer.groups,
            layer.inputs,
            layer.taps,
            -1,
        )
        return split.transpose(0, 4, 1, 3, 2).reshape(-1, layer.groups, layer.taps * layer.inputs)

    def run(
        self, plan: Sequence[Factor], factors: Sequence[jax.Array], data: jax.Array
    ) -> jax.Array:
        """Runs factors in the contraction's place.

        Args:
          plan: what each factor does.
          factors: their variables, as `stored` shapes them.
          data: what the contraction reads.

        Returns:
          An array of the shape and dtype of the contraction's output.
        """
        dtype = self.op.inputs[self.side].dtype
        factors = [jnp.asarray(factor).astype(dtype) for factor in factors]
        run = self._run_conv if self.is_conv else self._run_dot
        return run(plan, factors, data).astype(self.op.outputs[0].dtype)

    def _run_conv(
        self, plan: Sequence[Factor], factors: Sequence[jax.Array], x: jax.Array
    ) -> jax.Array:
        params, layer = self.op.params, self.layer
        numbers = params["dimension_numbers"]
        axes = range(len(layer.window))
        spec = (len(axes) + 1, len(axes), *axes)
        for step, (factor, weights) in enumerate(zip(plan, factors, strict=True)):
            last = step == len(plan) - 1
            own = [i in factor.axes for i in axes]
            x = jax.lax.conv_general_dilated(
                x,
                weights,
                window_strides=_where(own, params["window_strides"], 1),
                padding=_where(own, params["padding"], (0, 0)),
                lhs_dilation=_where(own, params["lhs_dilation"], 1),
                rhs_dilation=_where(own, params["rhs_dilation"], 1),
                dimension_numbers=jax.lax.ConvDimensionNumbers(
                    numbers.lhs_spec, spec, numbers.out_spec if last else numbers.lhs_spec
                ),
                feature_group_count=layer.groups * factor.groups,
                precision=params["precision"],
                preferred_element_type=params["preferred_element_type"],
            ).astype(self.op.outputs[0].dtype if last else x.dtype)
        return x

    def _run_dot(
        self, plan: Sequence[Factor], factors: Sequence[jax.Array], x: jax.Array
    ) -> jax.Array:
        del plan  # every factor of a matrix product is a matrix product
        params, free = self.op.params, len(self._free)
        contracting = self._contracting[0]
        dtype = x.dtype
        for weights in factors:
            inner = tuple(range(len(contracting)))
            x = jax.lax.dot_general(
                x.astype(dtype),
                weights,
                ((contracting, inner), ((), ())),
                precision=params["precision"],
                preferred_element_type=params["preferred_element_type"],
            )
            contracting = (x.ndim - 1,)
        if self.side == 0:  # the kernel's axes come first
            x = jnp.moveaxis(x, range(x.ndim - free, x.ndim), range(free))
        return x


def _where(own: Sequence[bool], given: Sequence, otherwise: object) -> tuple:
    return tuple(value if mine else otherwise for mine, value in zip(own, given, strict=True))


def find(graph: Graph) -> tuple[dict[str, tuple[Use, ...]], dict[str, str]]:
    """Finds the kernels that can be factorized, and why others cannot.

    Args:
      graph: from `trace`.

    Returns:
      The uses of each kernel that can be, by path; and for each other variable that a convolution
      or matrix product computes with, the reason.

    Example:
      >>> fn = lambda v, x: x @ v['a'] + (x * v['b']) @ v['b'].T
      >>> variables = {'a': np.ones((3, 1), 'f'), 'b': np.ones((1, 3), 'f')}
      >>> uses, stays = find(graphs.trace(fn, variables, np.ones((1, 3), 'f')))
      >>> list(uses), stays
      (['a'], {'b': 'mul computes with it too'})
    """
    found: dict[str, list[Use]] = {}
    stays: dict[str, str] = {}
    for op in graph.ops:
        for path in () if op.outputs[0] in graph.links else op.variables:
            use = _use(graph, op, path)
            if isinstance(use, str):
                stays.setdefault(path, use)
            else:
                found.setdefault(path, []).append(use)
    uses: dict[str, tuple[Use, ...]] = {}
    for path, mine in found.items():
        shapes = {dataclasses.replace(use.layer, calls=()) for use in mine}
        same = {use.weights(np.arange(_size(graph, path))).tobytes() for use in mine[1:] and mine}
        if len(shapes) > 1 or len(same) > 1:
            stays.setdefault(path, "it is used in two layouts")
        elif path not in stays:
            uses[path] = tuple(mine)
    contracted = set(found) | {
        path for op in graph.ops if op.macs or op.body is not None for path in op.variables
    }
    return uses, {path: why for path, why in stays.items() if path in contracted}


def _size(graph: Graph, path: str) -> int:
    return math.prod(graph.variables[path].shape)


def _use(graph: Graph, op: Op, path: str) -> Use | str:
    """This use of a variable, or why it stands in the way."""
    if op.kind == "scan":
        return "it is used in a scan, which is one operation"
    if op.kind not in ("conv_general_dilated", "dot_general"):
        return f"{op.kind} computes with it too"
    sides = [i for i, value in enumerate(op.inputs) if graph.links.get(value) == path]
    if len(sides) > 1 or all(graph.is_static(value) for value in op.inputs):
        return f"{op.name} multiplies variables with each other"
    (side,) = sides
    if _size(graph, path) != math.prod(op.inputs[side].shape):
        return f"{op.name} repeats its elements"
    if op.kind == "dot_general":
        batched = bool(op.params["dimension_numbers"][1][side])
    else:
        batched = side == 0 or op.params["batch_group_count"] != 1
    if batched:
        return f"{op.name} uses a part of it for each example"
    return Use(graph, op, path, side)
