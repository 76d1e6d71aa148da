"""Layers in sequence: two kernels between which every channel keeps to itself.

Equalization and bias absorption move a factor or a constant of a channel out of one layer and into
the next. `layer_pairs` finds where that is possible: it follows the output channels of each kernel
through the graph until a kernel reads them. It never guesses: an operation that it has no rule for
ends the way, and the result says which.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compressjax import graph as graphs
from compressjax.graph import Graph, Kernel, Literal, Op, Value
from compressjax.graph.channel_moves import reshape_blocks
from compressjax.graph.reorder import reorder
from compressjax.quant.placement.placer import clamp_bounds


@dataclasses.dataclass(frozen=True, eq=False)
class Bias:
    """A variable that is added to each channel, and to nothing else.

    Attributes:
      path: its path.
      index: `[C]`, where the number of each channel stands in the variable, flat.
      sign: 1, or -1 where it is subtracted.
    """

    path: str
    index: np.ndarray
    sign: int


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two kernels in sequence.

    Attributes:
      first: the kernel that makes the channels.
      second: the kernel that reads them.
      ops: the operations in between, in order.
      axes: for each of `ops`, the axis on which it reads the channels.
      biases: those of `ops` that add a variable to each channel, by name.
      clips: those of `ops` that clip at a positive number (ReLU6), by name, with that number.
      relus: names of those of `ops` that cut off what is negative.
      channel: `[I]`, the channel that each input position of `second` reads.
    """

    first: Kernel
    second: Kernel
    ops: tuple[Op, ...]
    axes: tuple[int, ...]
    biases: Mapping[str, Bias]
    clips: Mapping[str, float]
    relus: tuple[str, ...]
    channel: np.ndarray

    def __str__(self) -> str:
        clips = "".join(f", {name} clips at {at:g}" for name, at in self.clips.items())
        return f"{self.first.path} -> {self.second.path}{clips}"


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """What `layer_pairs` found.

    Attributes:
      found: the pairs, in the order of their first kernels.
      left: for the path of each kernel that is first in no pair, the reason.
    """

    found: tuple[Pair, ...]
    left: Mapping[str, str]

    def __str__(self) -> str:
        lines = [str(pair) for pair in self.found]
        return "\n".join([*lines, *(f"{path}: {why}" for path, why in self.left.items())])


def layer_pairs(fn: Callable[..., Any], variables: Any, *args: Any) -> Pairs:
    """Finds the layers whose channels can be rescaled together.

    A pair is a convolution or matrix product, then operations that treat each channel by itself and
    multiply through positive factors (biases, ReLU, pools, means, padding with zeros, reshapes,
    channel shuffles), then another one. A clip at a positive number, such as ReLU6, does not, but
    is let through and named.

    Args:
      fn: pure function `fn(variables, *args)` in evaluation mode, with batch norms folded.
      variables: nested dictionaries of arrays, or their shapes.
      *args: example inputs, or their shapes.

    Returns:
      The pairs, and why the other kernels have none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def fn(v, x):
      ...     return jax.nn.relu6(x @ v['a']['kernel'] + v['a']['bias'][None]) @ v['b']['kernel']
      >>> variables = {
      ...     'a': {'kernel': jnp.ones((3, 4)), 'bias': jnp.ones(4)},
      ...     'b': {'kernel': jnp.ones((4, 2))},
      ... }
      >>> print(layer_pairs(fn, variables, jnp.ones((1, 3))))
      a/kernel -> b/kernel, relu6_0 clips at 6
      b/kernel: its channels are an output of the function
    """
    shapes = graphs.template((variables, args))
    return find_pairs(graphs.trace(fn, shapes[0], *shapes[1], keep_custom=False))


def find_pairs(graph: Graph) -> Pairs:
    """Finds pairs in a graph; see `layer_pairs`.

    Args:
      graph: from `trace(..., keep_custom=False)`.

    Returns:
      The pairs; operations have the graph's names.
    """
    graph = reorder(graph)
    kernels = {op: kernel for op in graph.ops if (kernel := graphs.kernel_of(graph, op))}
    found, left = [], {}
    for op in graph.ops:
        if op.kind not in _CONTRACTIONS or graph.is_static(op.outputs[0]):
            continue
        if op not in kernels:
            left[op.name] = "its kernel is computed, or used more than once"
            continue
        walk = _Walk(graph, kernels[op])
        second = walk.to_kernel(kernels)
        if isinstance(second, str):
            left[kernels[op].path] = second
            continue
        found.append(
            Pair(
                kernels[op],
                second,
                tuple(walk.ops),
                tuple(walk.axes),
                walk.biases,
                walk.clips,
                tuple(walk.relus),
                _read(second, walk.axis, walk.channel),
            )
        )
    return Pairs(tuple(found), left)


def bias_behind(graph: Graph, kernel: Kernel) -> Bias | None:
    """Finds the bias that is added right behind a kernel.

    Args:
      graph: the graph.
      kernel: one of its kernels.

    Returns:
      The bias; `None` if something else follows, or the bias is not the kernel's own.
    """
    walk = _Walk(graph, kernel)
    walk.step()
    return next(iter(walk.biases.values()), None)


_CONTRACTIONS = frozenset({"conv_general_dilated", "dot_general"})
_ALIKE = frozenset(
    """convert_element_type copy copy_p stop_gradient optimization_barrier reduce_precision
    neg abs""".split()
)
_CLAMPS = frozenset({"relu", "relu6", "max", "min", "clamp"})
_REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min"})
_WINDOWS = frozenset({"reduce_window_max", "reduce_window_min", "reduce_window_sum"})


class _Walk:
    """Follows the output channels of a kernel: which axis they are on, and in which order."""

    def __init__(self, graph: Graph, kernel: Kernel) -> None:
        self.graph = graph
        self.value = kernel.op.outputs[0]
        self.axis = kernel.axis
        self.channel = np.arange(kernel.width)
        self.width = kernel.width
        self.ops: list[Op] = []
        self.axes: list[int] = []
        self.biases: dict[str, Bias] = {}
        self.clips: dict[str, float] = {}
        self.relus: list[str] = []

    def to_kernel(self, kernels: Mapping[Op, Kernel]) -> Kernel | str:
        """Goes on until a kernel reads the channels; otherwise returns why none does."""
        while True:
            reader = self._reader()
            if isinstance(reader, str):
                return reader
            second = kernels.get(reader)
            if second is not None and second.data is self.value:
                mixed = f"{reader.name} does not sum over the channels"
                return second if self.axis in second.features else mixed
            why = self.step()
            if why is not None:
                return why

    def step(self) -> str | None:
        """Goes past one operation; otherwise returns why it cannot."""
        op = self._reader()
        if isinstance(op, str):
            return op
        axis = self.axis
        why = self._pass(op)
        if why is not None:
            return f"{op.name}: {why}"
        self.ops.append(op)
        self.axes.append(axis)
        self.value = op.outputs[0]
        return None

    def _reader(self) -> Op | str:
        if self.value in self.graph.outputs:
            return "its channels are an output of the function"
        readers = self.graph.consumers.get(self.value, ())
        if len(readers) != 1:
            return f"its channels are read by {', '.join(op.name for op in readers)}"
        return readers[0]

    def _pass(self, op: Op) -> str | None:
        kind = op.kind
        if op.inputs.count(self.value) != 1 or len(op.outputs) != 1:
            return f"{kind} reads the channels twice, or puts out more than one value"
        if kind in _ALIKE:
            return None
        if kind in _CLAMPS:
            return self._clamp(op)
        if kind in ("add", "sub", "mul", "div"):
            return self._arithmetic(op)
        if kind in _REDUCTIONS:
            return self._drop(op.params["axes"], "goes over the channels")
        if kind == "squeeze":
            return self._drop(op.params["dimensions"], "drops the channels")
        if kind in _WINDOWS:
            apart = op.params["window_dimensions"][self.axis] == 1
            same = op.out_shape[self.axis] == self.value.shape[self.axis]
            return None if apart and same else "its window goes over the channels"
        if kind in ("pad", "slice") and op.out_shape[self.axis] != self.value.shape[self.axis]:
            return "adds or cuts channels"
        if kind == "pad":
            with_zero = isinstance(op.inputs[1], Literal) and op.inputs[1].value in _SCALELESS
            return None if with_zero else "pads with a number that is not zero"
        if kind == "slice":
            return None
        if kind == "transpose":
            self.axis = op.params["permutation"].index(self.axis)
            return None
        if kind == "broadcast_in_dim":
            size = self.value.shape[self.axis]
            self.axis = op.params["broadcast_dimensions"][self.axis]
            return None if op.out_shape[self.axis] == size else "repeats a channel"
        if kind == "rev":
            turned = self.axis in op.params["dimensions"]
            self.channel = self.channel[::-1] if turned else self.channel
            return None
        if kind == "take":
            along = op.params["axis"] == self.axis
            self.channel = self.channel[op.params["positions"]] if along else self.channel
            return None
        if kind == "reshape":
            return self._reshape(op)
        if kind in _CONTRACTIONS:
            return "its kernel is computed, or used more than once"
        return f"{kind} has no rule for scaled channels"

    def _clamp(self, op: Op) -> str | None:
        bounds = clamp_bounds(op, self.value)
        low, high = bounds if bounds is not None else (math.nan, None)
        if low not in (None, 0.0) or (high is not None and not high > 0.0):
            return f"{op.kind} bounds the channels by something else than zero and a number above"
        if low == 0.0:
            self.relus.append(op.name)
        if high is not None:
            self.clips[op.name] = high
        return None

    def _arithmetic(self, op: Op) -> str | None:
        side = op.inputs.index(self.value)
        other = op.inputs[1 - side]
        if not self.graph.is_static(other):
            return f"{op.kind} joins the channels with another value"
        if op.kind in ("mul", "div"):
            if op.kind == "div" and side == 1:
                return "divides by the channels"
            alike = not other.shape or other.shape[self.axis] == 1 or self._uniform(other)
            return None if alike else "has a factor for each channel: fold it (fold_batch_norm)"
        if op.kind == "sub" and side == 1:
            return "subtracts the channels from something"
        bias = self._bias(other, -1 if op.kind == "sub" else 1)
        if bias is None:
            return "adds what is no bias variable of its own"
        self.biases[op.name] = bias
        return None

    def _uniform(self, other: Value) -> bool:
        """Whether a factor was broadcast along the channel axis."""
        producer = self.graph.producers.get(other)
        if producer is None or producer.kind != "broadcast_in_dim":
            return False
        source, dims = producer.inputs[0], producer.params["broadcast_dimensions"]
        return all(to != self.axis or source.shape[i] == 1 for i, to in enumerate(dims))

    def _bias(self, other: Value, sign: int) -> Bias | None:
        source = graphs.channel_vector(self.graph, other, self.axis)
        if source is None or not np.array_equal(self.channel, np.arange(self.width)):
            return None
        path = self.graph.links.get(source)
        if path is None or math.prod(source.shape) != self.width:
            return None
        variable = self.graph.variables[path]
        own = math.prod(variable.shape) == self.width and graphs.readers(self.graph, variable) == 1
        if not own:
            return None
        return Bias(path, graphs.places(self.graph, source, variable).reshape(-1), sign)

    def _drop(self, axes: tuple[int, ...], why: str) -> str | None:
        if self.axis in axes:
            return why
        self.axis -= sum(axis < self.axis for axis in axes)
        return None

    def _reshape(self, op: Op) -> str | None:
        old = self.value.shape
        if op.params["dimensions"] is not None or 0 in old or old[self.axis] == 1:
            return "reshapes an empty or a single channel axis"
        blocks = reshape_blocks(old, op.out_shape)
        before, after = next(block for block in blocks if self.axis in block[0])
        if len(after) != 1:
            return "splits the channels into several axes"
        shape = [old[i] for i in before]
        along = [-1 if i == self.axis else 1 for i in before]
        self.channel = np.broadcast_to(self.channel.reshape(along), shape).reshape(-1)
        self.axis = after[0]
        return None


_SCALELESS = (0.0, math.inf, -math.inf)


def _read(kernel: Kernel, axis: int, channel: np.ndarray) -> np.ndarray:
    """The channel that each input position of a kernel reads, in the order of `Kernel.take`."""
    shape = [kernel.data.shape[i] for i in kernel.features]
    along = [-1 if i == axis else 1 for i in kernel.features]
    return np.broadcast_to(channel.reshape(along), shape).reshape(-1)
