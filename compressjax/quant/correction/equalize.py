"""Cross-layer equalization: the weight ranges of all channels of a layer made alike, without data.

A factor can be moved from a channel of one layer into the next one wherever everything in between
multiplies through. Ill-scaled channels, which depthwise layers have once batch norm is folded, are
what one scale for each kernel cannot represent; equalization removes them and leaves the function
as it is. `absorb` is the neighbour that moves constants instead of factors.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from compressjax import graph as graphs
from compressjax import tree
from compressjax.graph import Graph, Op, Value
from compressjax.quant.correction.measure import Spread, all_finite, measure, peek
from compressjax.quant.correction.pairs import Pair, find_pairs
from compressjax.quant.placement.placer import clamp_bounds

# Sweeps end when no scale moves by more than this part of itself, or after so many.
_TOLERANCE = 1e-3
_SWEEPS = 100


class Tie(NamedTuple):
    """One pair of kernels.

    Attributes:
      first: number of the kernel that makes the channels.
      second: number of the kernel that reads them.
      channel: `[G * I]`, the channel that each input position of the second kernel reads.
      low: `[C]`, the least logarithm that the scale of each channel may have.
      high: `[C]`, the largest.
    """

    first: int
    second: int
    channel: np.ndarray
    low: Any
    high: Any


def log_scales(log_kernels: Sequence[jax.Array], ties: Sequence[Tie]) -> list[jax.Array]:
    """Solves for the scales of all pairs together (Nagel et al., 2019, equations 9 to 11).

    For one pair, `s = sqrt(r1 / r2)` makes the range of a channel's weights in the first kernel,
    `r1 / s`, equal to that in the second, `r2 * s`, and the product of the two precisions the
    largest there is. All pairs are swept in order until nothing moves.

    Args:
      log_kernels: the logarithm of each kernel's largest absolute weights, `[I, G, O]` as
        `graph.Kernel.take` gives them, without taps; -inf for zero.
      ties: the pairs.

    Returns:
      For each pair, `log(s)`, `[C]`; 0 for a channel that has no weights in one of the two.

    Example:
      >>> kernels = [jnp.log(jnp.array([[[1.0, 8.0]]])), jnp.log(jnp.array([[[1.0]], [[2.0]]]))]
      >>> free = Tie(0, 1, np.arange(2), jnp.full(2, -jnp.inf), jnp.full(2, jnp.inf))
      >>> jnp.exp(log_scales(kernels, [free])[0]).round(3)
      Array([1., 2.], dtype=float32)
    """
    into = {tie.second: i for i, tie in enumerate(ties)}
    out_of = {tie.first: i for i, tie in enumerate(ties)}

    def sweep(scales: Sequence[jax.Array]) -> list[jax.Array]:
        scales = list(scales)
        for i, tie in enumerate(ties):
            made, read = log_kernels[tie.first], log_kernels[tie.second]
            if tie.first in into:
                before = into[tie.first]
                made = made + _by_input(scales[before][ties[before].channel], made)
            if tie.second in out_of:
                read = read - _by_output(scales[out_of[tie.second]], read)
            r1, r2 = made.max(0).reshape(-1), read.max(2).T.reshape(-1)
            if not np.array_equal(tie.channel, np.arange(r1.size)):
                r2 = jax.ops.segment_max(r2, tie.channel, r1.size)
            alive = jnp.isfinite(r1) & jnp.isfinite(r2)
            scales[i] = jnp.clip(jnp.where(alive, 0.5 * (r1 - r2), 0.0), tie.low, tie.high)
        return scales

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        count, scales, _ = state
        new = sweep(scales)
        moved = [jnp.abs(a - b).max() for a, b in zip(new, scales, strict=True)]
        return count + 1, new, jnp.stack(moved).max()

    if not ties:
        return []
    dtype = log_kernels[0].dtype
    start = [jnp.zeros(jnp.shape(tie.low), dtype) for tie in ties]
    state = (0, start, jnp.asarray(jnp.inf, dtype))
    return lax.while_loop(lambda s: (s[0] < _SWEEPS) & (s[2] > _TOLERANCE), step, state)[1]


def _by_input(vector: jax.Array, weights: jax.Array) -> jax.Array:
    """One number an input position, `[G * I]`, beside weights `[..., I, G, O]`."""
    *taps, inputs, groups, _ = weights.shape
    return vector.reshape(groups, inputs).T.reshape(*(1 for _ in taps), inputs, groups, 1)


def _by_output(vector: jax.Array, weights: jax.Array) -> jax.Array:
    """One number an output channel, `[G * O]`, beside weights `[..., I, G, O]`."""
    *rest, groups, outputs = weights.shape
    return vector.reshape(*(1 for _ in rest), groups, outputs)


def equalize(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    batches: Iterable[Any] | None = None,
    remove_clips: bool = False,
) -> tuple[Callable[..., Any], Any]:
    """Makes the weight ranges of the channels of successive layers equal (Nagel et al., 2019, 4.1).

    Which layers those are, `layer_pairs` says; all others stay as they are. The function is the
    same up to float rounding. That holds through ReLU, but a clip from above (ReLU6) meets a scaled
    channel elsewhere, so layers with a clip in between are left alone unless one of these is given:

    - `batches`. The clip stays. A channel that was seen at it keeps its scale, and the others are
      scaled up to where the largest value seen reaches it: the function is the same on the batches.
    - `remove_clips`, what the paper does: the clips between equalized layers become ReLU. Needs no
      data, but gives another function: where channels do reach their clips, it can be further from
      the original than int8 without equalization.

    So pass batches where there are any, and look at the float outputs after `remove_clips`.

    Args:
      fn: pure function `fn(variables, *args)` in evaluation mode, with batch norms folded.
      variables: nested dictionaries of arrays.
      *args: example inputs; the result takes any batch size.
      batches: calibration inputs, each an array or a tuple of arguments; no labels.
      remove_clips: whether to remove clips; not together with `batches`.

    Returns:
      The function (`fn` itself if no clip is removed) and its variables, of the same paths, shapes
      and dtypes.

    Raises:
      ValueError: if the variables do not fit the function, weights or measured values are not
        finite, there are no batches, or both ways with clips are asked for.

    Example:
      >>> fn = lambda v, x: jax.nn.relu(x @ v['a']) @ v['b']
      >>> variables = {'a': jnp.array([[1.0, 16.0]]), 'b': jnp.array([[1.0], [1.0]])}
      >>> same, new = equalize(fn, variables, jnp.ones((1, 1)))
      >>> new['a'], new['b'].T, float(same(new, jnp.ones((1, 1)))[0, 0])
      (Array([[1., 4.]], dtype=float32), Array([[1., 4.]], dtype=float32), 17.0)
    """
    if batches is not None and remove_clips:
        raise ValueError(
            "equalize was given batches and remove_clips=True, expected one of them: with batches "
            "clips stay, and need not be removed"
        )
    shapes = graphs.template(variables)
    graph = graphs.trace(fn, shapes, *graphs.template(args), keep_custom=False)
    pairs = find_pairs(graph).found
    if batches is None and not remove_clips:
        pairs = tuple(pair for pair in pairs if not pair.clips)
    _check_finite(pairs, tree.paths(variables))
    spreads = None
    if batches is not None:
        _, arguments = peek(batches)
        spreads = measure(fn, variables, arguments, _clipped_values)
    new = jax.jit(lambda leaves: _rescaled(pairs, leaves, spreads))(tree.paths(variables))
    clips = {name for pair in pairs for name in pair.clips}
    if not (remove_clips and clips):
        return fn, tree.replace(variables, new)
    retrace = graphs.Retrace(fn, lambda graph: _without_clips(graph, clips), keep_custom=False)

    def apply(variables: Any, *args: Any) -> Any:
        return graphs.interpret(retrace(shapes, *args), variables, *args)

    return apply, tree.replace(variables, new)


def _check_finite(pairs: Sequence[Pair], leaves: Mapping[str, Any]) -> None:
    for path in dict.fromkeys(k.path for pair in pairs for k in (pair.first, pair.second)):
        if not all_finite(leaves[path]):
            raise ValueError(
                f"{path} has weights that are not finite, so that channels cannot be compared: "
                "check the training that it comes from"
            )


def _rescaled(
    pairs: Sequence[Pair], leaves: Mapping[str, Any], spreads: Mapping[str, Spread] | None
) -> dict[str, jax.Array]:
    """The kernels and biases of pairs after equalization, by path."""
    kernels = list({k.path: k for pair in pairs for k in (pair.first, pair.second)}.values())
    number = {kernel.path: i for i, kernel in enumerate(kernels)}
    weights = [_wide(kernel.take(jnp.asarray(leaves[kernel.path]))) for kernel in kernels]
    ties = [
        Tie(number[p.first.path], number[p.second.path], p.channel, *_limits(p, spreads))
        for p in pairs
    ]
    logs = log_scales([jnp.log(jnp.abs(w).max(0)) for w in weights], ties)
    changed = {}
    for pair, tie, log in zip(pairs, ties, logs, strict=True):
        scale = jnp.exp(log)
        made, read = weights[tie.first], weights[tie.second]
        weights[tie.first] = made / _by_output(scale, made)
        weights[tie.second] = read * _by_input(scale[tie.channel], read)
        for bias in pair.biases.values():
            leaf = jnp.asarray(leaves[bias.path])
            divisor = jnp.zeros_like(scale).at[bias.index].set(scale).reshape(leaf.shape)
            changed[bias.path] = (_wide(leaf) / divisor).astype(leaf.dtype)
    for kernel, new in zip(kernels, weights, strict=True):
        changed[kernel.path] = kernel.put(new).astype(jnp.result_type(leaves[kernel.path]))
    return changed


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _limits(pair: Pair, spreads: Mapping[str, Spread] | None) -> tuple[Any, Any]:
    """Between which logarithms the scales of a pair may lie."""
    low, high = jnp.full(pair.first.width, -jnp.inf), jnp.full(pair.first.width, jnp.inf)
    if spreads is None or not pair.clips:
        return low, high
    part = spreads[pair.first.path].high / min(pair.clips.values())
    inside = part <= 1.0
    low = jnp.where(inside, jnp.where(part > 0.0, jnp.log(part), low), 0.0)
    return low, jnp.where(inside, high, 0.0)


def _clipped_values(graph: Graph) -> dict[str, tuple[Value, int]]:
    """What the first clip of each pair reads."""
    found: dict[str, tuple[Value, int]] = {}
    for pair in find_pairs(graph).found:
        for op, axis in zip(pair.ops, pair.axes, strict=True):
            if op.name in pair.clips:
                found.setdefault(pair.first.path, (_read(graph, op), axis))
    return found


def _read(graph: Graph, op: Op) -> Value:
    return next(value for value in op.inputs if not graph.is_static(value))


def _without_clips(graph: Graph, names: set[str]) -> Graph:
    """Replaces clips from above: ReLU6 becomes ReLU, and a minimum what it reads."""

    def unclipped(op: Op) -> Op:
        if op.name not in names:
            return op
        value = _read(graph, op)
        bounds = clamp_bounds(op, value)
        positive = bounds is not None and bounds[0] is not None
        bind = (lambda _, x: [jax.nn.relu(x)]) if positive else (lambda _, x: [x])
        return dataclasses.replace(op, kind="relu", inputs=(value,), params={}, bind=bind)

    return dataclasses.replace(graph, ops=tuple(map(unclipped, graph.ops)))
