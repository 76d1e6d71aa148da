"""High-bias absorption: constants that every value of a channel has, moved into the next bias.

A channel whose values are nearly always far above zero wastes the range of its whole tensor, since
what varies is small beside what does not. Behind a ReLU that such values never meet, the constant
part can be taken off and added to the next layer's bias. Equalization makes such channels (it
scales biases up with weights), so this comes after it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from compressjax import graph as graphs
from compressjax import tree
from compressjax.graph import Graph, Literal, Op, Value
from compressjax.quant.correction.measure import Spread, measure, peek
from compressjax.quant.correction.pairs import Bias, Pair, bias_behind, find_pairs


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """A pair that a constant can move through.

    Attributes:
      pair: the pair.
      taken: the bias in front of the ReLU.
      given: the bias of the second kernel.
      before: what the ReLU reads.
      after: what it puts out.
      axis: the channel axis of both.
      top: where it clips, or `None`.
      padded: whether zeros stand beside the channels before the second kernel reads them.
    """

    pair: Pair
    taken: Bias
    given: Bias
    before: Value
    after: Value
    axis: int
    top: float | None
    padded: bool


def constant_part(spread: Spread, top: float | None, deviations: float) -> jax.Array:
    """Says how much of each channel can be taken off (Nagel et al., 2019, section 4.1.3).

    The paper takes `max(0, beta - 3 gamma)`: mean and deviation as batch norm states them. Here
    both are measured, and where even the smallest value is larger, that is taken.

    Args:
      spread: of the values in front of the ReLU, each `[C]`.
      top: where the activation clips, or `None`. A channel that was seen there loses nothing.
      deviations: how many of them are left below the mean; infinite for the smallest value alone.

    Returns:
      `[C]`, not negative.

    Example:
      >>> spread = Spread(8.0, jnp.array([2.0, 1.0]), jnp.array([8.0, 8.0]), jnp.array([5.0, 5.0]),
      ...                 jnp.array([0.25, 4.0]))
      >>> constant_part(spread, None, 3.0), constant_part(spread, 6.0, 3.0)
      (Array([3.5, 1. ], dtype=float32), Array([0., 0.], dtype=float32))
    """
    reach = jnp.where(spread.variance > 0, deviations * jnp.sqrt(spread.variance), 0.0)
    constant = jnp.maximum(0.0, jnp.maximum(spread.low, spread.mean - reach))
    return constant if top is None else jnp.where(spread.high <= top, constant, 0.0)


def absorb_bias(
    fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    *,
    deviations: float = 3.0,
    padded: bool = False,
) -> dict[str, Any]:
    """Moves the constant part of channels into the next layer (Nagel et al., 2019, equation 15).

    Needs no labels and no batch norm: what is constant is measured. The function stays the same
    wherever a value is not below its channel's constant: on all the batches if `deviations` is
    infinite, and for 99.87 % of the values of a normal distribution at 3. Use it after `equalize`.
    What it wins depends on how far above zero channels are; it does not help everywhere.

    Args:
      fn: pure function `fn(variables, *args)` in evaluation mode, with batch norms folded.
      variables: its variables.
      batches: calibration inputs, each an array or a tuple of arguments.
      deviations: see `constant_part`, at least 0.
      padded: also where the second kernel pads with zeros ('SAME'). The constant is then made up
        for inside the image, and is missing in the border, where zeros stand for it: more is
        usually lost there than won.

    Returns:
      Variables for the same `fn`, with other biases. `absorbing_pairs` says which.

    Raises:
      ValueError: if no layers can do it, there are no batches, or values are not finite.

    Example:
      >>> fn = lambda v, x: jax.nn.relu(x @ v['a'] + v['b']) @ v['c'] + v['d']
      >>> variables = {name: jnp.array([[x]]) for name, x in zip('abcd', (1.0, 9.0, 2.0, 0.0))}
      >>> x = jnp.array([[-2.0], [2.0]])
      >>> new = absorb_bias(fn, variables, [x])
      >>> new['b'], new['d'], (fn(variables, x) == fn(new, x)).all()
      (Array([[2.]], dtype=float32), Array([[14.]], dtype=float32), Array(True, dtype=bool))
    """
    if not deviations >= 0.0:
        raise ValueError(f"deviations is {deviations}, expected 0 or more; infinity is allowed")

    args, arguments = peek(batches)
    graph = graphs.trace(fn, *graphs.template((variables, *args)), keep_custom=False)
    sites, left = find_sites(graph, padded)
    if not sites:
        whys = "; ".join(f"{path}: {why}" for path, why in left.items()) or "there are no kernels"
        raise ValueError(f"no constant can move from one layer into the next: {whys}")

    def wanted(graph: Graph) -> dict[str, tuple[Value, int]]:
        sites, _ = find_sites(graph, padded)
        return {site.pair.first.path: (site.before, site.axis) for site in sites}

    spreads = measure(fn, variables, arguments, wanted)
    moved = jax.jit(lambda *given: _moved(graph, sites, deviations, *given))
    return tree.replace(variables, moved(variables, spreads))


def find_sites(graph: Graph, padded: bool) -> tuple[list[Site], dict[str, str]]:
    """Finds where a constant can move from one layer into the next.

    Args:
      graph: from `trace(..., keep_custom=False)`.
      padded: see `absorb_bias`.

    Returns:
      The places, and for the path of each other kernel the reason.
    """
    pairs = find_pairs(graph)
    sites, left = [], dict(pairs.left)
    for pair in pairs.found:
        site = _site(graph, pair)
        if isinstance(site, str):
            left[pair.first.path] = site
        elif site.padded and not padded:
            left[pair.first.path] = (
                f"zeros beside the channels before {pair.second.path}: only padded=True moves "
                "constants there"
            )
        else:
            sites.append(site)
    return sites, left


def _site(graph: Graph, pair: Pair) -> Site | str:
    """Reads a pair as biases, a ReLU, and operations through which a constant passes."""
    clamps = {*pair.relus, *pair.clips}
    start = next((i for i, op in enumerate(pair.ops) if op.name in clamps), None)
    if start is None or pair.ops[start].name not in pair.relus:
        return "no ReLU follows it"
    taken = None
    for op in pair.ops[:start]:
        taken = pair.biases.get(op.name, taken)
        if op.name not in pair.biases and op.kind not in _CASTS:
            return f"{op.name}: {op.kind} between the bias and the ReLU"
    given = bias_behind(graph, pair.second)
    if taken is None or given is None:
        return f"{(pair.second if taken else pair.first).path} has no bias variable of its own"
    stop = start + 1
    while stop < len(pair.ops) and pair.ops[stop].name in clamps:
        stop += 1
    padded = False
    for op in pair.ops[stop:]:
        if op.name in clamps or op.kind == "abs":
            return f"{op.name}: a constant does not pass through {op.kind}"
        if padded and op.kind in _EXTREMES:
            return f"{op.name}: {op.kind} over zeros beside the channels"
        padded = padded or _pads(op)
    before = next(v for v in pair.ops[start].inputs if not graph.is_static(v))
    return Site(
        pair,
        taken,
        given,
        before,
        pair.ops[stop - 1].outputs[0],
        pair.axes[start],
        min(pair.clips.values(), default=None),
        padded or _pads(pair.second.op),
    )


_CASTS = frozenset({"convert_element_type", "copy", "copy_p", "stop_gradient"})
_EXTREMES = frozenset({"reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"})


def _pads(op: Op) -> bool:
    """Whether an operation sums or puts zeros beside the channels."""
    if op.kind == "pad":
        filling = op.inputs[1]
        zero = isinstance(filling, Literal) and filling.value == 0
        return zero and any(max(pad) > 0 for pad in op.params["padding_config"])
    if op.kind == "reduce_window_sum":
        return any(pad != (0, 0) for pad in op.params["padding"])
    if op.kind == "conv_general_dilated":
        gaps = any(dilation != 1 for dilation in op.params["lhs_dilation"])
        return gaps or any(max(pad) > 0 for pad in op.params["padding"])
    return False


def _moved(
    graph: Graph,
    sites: list[Site],
    deviations: float,
    variables: Any,
    spreads: Mapping[str, Spread],
) -> dict[str, jax.Array]:
    """The biases after all constants have moved, by path."""
    leaves = tree.paths(variables)
    known = graphs.bind_variables(graph, variables)
    changed: dict[str, jax.Array] = {}

    def add(bias: Bias, change: jax.Array) -> None:
        leaf = jnp.asarray(changed.get(bias.path, leaves[bias.path]))
        flat = leaf.reshape(-1).at[bias.index].add((bias.sign * change).astype(leaf.dtype))
        changed[bias.path] = flat.reshape(leaf.shape)

    for site in sites:
        first, second = site.pair.first, site.pair.second
        constant = constant_part(spreads[first.path], site.top, deviations)
        weights = second.take(jnp.asarray(leaves[second.path]))
        inputs = _through(graph, site, constant.astype(weights.dtype), known)
        by_input = inputs.reshape(weights.shape[2], weights.shape[1])
        add(site.taken, -constant)
        add(site.given, jnp.einsum("tigo,gi->go", weights, by_input).reshape(-1))
    return changed


def _through(
    graph: Graph, site: Site, constant: jax.Array, known: Mapping[Value, Any]
) -> jax.Array:
    """What a constant behind the ReLU becomes at each input position of the second kernel."""
    along = [-1 if i == site.axis else 1 for i in range(len(site.after.shape))]
    given = jnp.broadcast_to(constant.reshape(along), site.after.shape).astype(site.after.dtype)
    skip = site.pair.biases

    def rule(op: Op, inputs: tuple[Any, ...]) -> list[Any] | None:
        return [inputs[_dynamic(graph, op)]] if op.name in skip else None

    data = site.pair.second.data
    (found,) = graphs.evaluate(graph, [data], {**known, site.after: given}, rule=rule)
    # The same everywhere, but for borders that were padded: look in the middle.
    features = site.pair.second.features
    found = jnp.moveaxis(found, features, range(-len(features), 0))
    middle = tuple(size // 2 for size in found.shape[: found.ndim - len(features)])
    return found[middle].reshape(-1)


def _dynamic(graph: Graph, op: Op) -> int:
    return next(i for i, value in enumerate(op.inputs) if not graph.is_static(value))
