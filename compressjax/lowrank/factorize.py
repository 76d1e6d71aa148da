"""Factorizing a function: one layer becomes two or three thinner ones.

The function is not rewritten: its graph gets a chain of layers in the place of one
(`graph.splice`), and the kernel's path a folder for each of them. `slimming.shrink` is the
neighbour that makes layers narrower; here they keep their inputs and outputs, and lose rank.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import graph as graphs
from compressjax import tree
from compressjax.graph import Graph
from compressjax.lowrank import layers
from compressjax.lowrank.factors import Factor
from compressjax.lowrank.layers import Layer, Use
from compressjax.lowrank.methods import Method, Moments, Ranks, svd, tucker2
from compressjax.lowrank.rank import Case, Problem, Rank, Rule, of


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of one layer.

    Attributes:
      method: the name of its decomposition.
      ranks: its ranks.
      macs: multiply-accumulates before and after, of all its uses.
      error: the part of the kernel that is lost, `|W - W'| / |W|` (Frobenius).
    """

    method: str
    ranks: Ranks
    macs: tuple[int, int]
    error: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What was factorized, what was not, and why.

    Attributes:
      layers: the rows of the layers that were, by the path of the kernel.
      stays: the reason for each kernel that stays whole.
      macs: multiply-accumulates of the whole function before and after.
    """

    layers: Mapping[str, Row]
    stays: Mapping[str, str]
    macs: tuple[int, int]

    def __str__(self) -> str:
        lines = [
            f"{path}: {row.method}, rank {' and '.join(map(str, row.ranks))}, "
            f"{row.macs[0]:,} -> {row.macs[1]:,} MACs, error {row.error:.3f}"
            for path, row in self.layers.items()
        ]
        lines += [f"{path} stays: {why}" for path, why in self.stays.items()]
        return "\n".join([*lines, f"total: {self.macs[0]:,} -> {self.macs[1]:,} MACs"])


@dataclasses.dataclass(frozen=True)
class Factored:
    """A function with layers of lower rank.

    Attributes:
      apply: `apply(variables, *args)`, the function over the factors, at any batch size.
      variables: nested dictionaries; the kernel at `a/kernel` gave way to `a/down/kernel`,
        `a/up/kernel`, or what its method calls them; all else is where it was.
      ranks: of each layer that was factorized, by the path of its kernel; to be stored as JSON and
        passed to `factorize` again as `rank`.
      transform: `transform(fn2)`, the same rewrite of another function of the same variables
        (training mode, another head).
      merged: `merged(variables)`, the tree that was given, each kernel the product of its factors:
        `fn(merged(variables), *args)` equals `apply(variables, *args)` up to rounding.
      report: what was factorized, what was not, and why.
    """

    apply: Callable[..., Any]
    variables: Any
    ranks: dict[str, Ranks]
    transform: Callable[[Callable[..., Any]], Callable[..., Any]]
    merged: Callable[[Any], Any]
    report: Report


@dataclasses.dataclass(frozen=True)
class _Chain:
    """What stands in for the kernel at one path: the layers, and the paths of their variables."""

    plan: tuple[Factor, ...]
    paths: tuple[str, ...]


def factorize(
    fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    rank: Rank | Rule | Mapping[str, Rank | Rule] = 0.5,
    method: Method | Mapping[str, Method] | None = None,
    moments: Mapping[str, Moments] | None = None,
    select: str | Iterable[str] = "**",
) -> Factored:
    """Replaces layers by chains of thinner ones that compute nearly the same.

    Args:
      fn: a pure function, called as `fn(variables, *args)`; from any framework.
      variables: nested dictionaries of arrays.
      *args: example inputs, or `jax.ShapeDtypeStruct`s; the result takes any batch size.
      rank: how many ranks stay. A whole number is that rank, in layers that have as many (a method
        with several ranks gets it for each, or less where there are fewer); a float, a part of the
        full rank in (0, 1]; a tuple, one number for each rank of the method; a rule such as
        `lowrank.energy(0.9)` chooses for each layer. A mapping gives each layer what the first glob
        that matches its kernel's path says; None, and no match, leave it whole.
      method: the decomposition, or a mapping from globs to some; `lowrank.svd()` for matrix
        products and 1x1 convolutions and `lowrank.tucker2()` for others, unless given.
      moments: what layers were seen to do on data, from `lowrank.observe`; methods then lose what
        matters least there.
      select: globs over paths of the kernels that may be factorized.

    Returns:
      The factorized function and its variables.

    Raises:
      ValueError: if a glob matches nothing, a rank is out of range or above what exists, moments do
        not fit, or a kernel is not finite. A layer that its method cannot decompose stays whole,
        and the report says why.

    Example:
      >>> fn = lambda v, x: jax.nn.relu(x @ v['w'])
      >>> variables = {'w': np.outer(np.arange(1.0, 5.0), np.ones(3)).astype('f')}
      >>> factored = factorize(fn, variables, np.ones((1, 4), 'f'), rank=1)
      >>> {path: leaf.shape for path, leaf in tree.paths(factored.variables).items()}
      {'down/w': (4, 1), 'up/w': (1, 3)}
      >>> factored.apply(factored.variables, np.ones((1, 4), 'f')).round(3).tolist()
      [[10.0, 10.0, 10.0]]
    """
    shapes = graphs.template((variables, args))
    graph = graphs.trace(fn, shapes[0], *shapes[1])
    uses, stays = layers.find(graph)
    cases = _cases(uses, tree.paths(variables), method, moments or {}, select, stays)

    def build(ranks: Mapping[str, Ranks | None]) -> tuple[dict[str, _Chain], Any]:
        return _built(uses, cases, variables, ranks)

    def candidate(ranks: Mapping[str, Ranks | None]) -> tuple[Callable[..., Any], Any]:
        chains, new = build(ranks)
        return _spliced(fn, shapes[0], chains), new

    ranks = of(rank)(Problem(cases, graph.macs, graph.num_params, candidate))
    kept = {path: own for path, own in ranks.items() if own is not None}
    stays.update({path: "it keeps its full rank" for path in cases if path not in kept})
    chains, new = build(kept)

    def merged(others: Any) -> Any:
        return _merged(uses, chains, others)

    rows = {
        path: Row(
            cases[path].method.name,
            own,
            (cases[path].macs(None), cases[path].macs(own)),
            _error(uses[path][0], chains[path], cases[path].weights, new),
        )
        for path, own in kept.items()
    }
    saved = sum(row.macs[0] - row.macs[1] for row in rows.values())
    return Factored(
        apply=_spliced(fn, shapes[0], chains),
        variables=new,
        ranks=kept,
        transform=lambda other: _spliced(other, shapes[0], chains),
        merged=merged,
        report=Report(rows, stays, (graph.macs, graph.macs - saved)),
    )


def _cases(
    uses: Mapping[str, tuple[Use, ...]],
    leaves: Mapping[str, Any],
    method: Method | Mapping[str, Method] | None,
    moments: Mapping[str, Moments],
    select: str | Iterable[str],
    stays: dict[str, str],
) -> dict[str, Case]:
    """The layers that a method can decompose; why others cannot goes into `stays`."""
    selected = set(tree.match(select, uses, what="select") if uses else ())
    named: dict[str, Method | None] = {}
    if isinstance(method, Mapping):
        named = tree.assign(method, uses, what="method")
    if unknown := [path for path in moments if path not in uses]:
        raise ValueError(
            f"moments has {unknown[0]!r}, which is no kernel that can be factorized; expected some "
            f"of {', '.join(uses) or 'none'}"
        )
    cases: dict[str, Case] = {}
    for path, mine in uses.items():
        layer = _layer(mine)
        found = named.get(path) if isinstance(method, Mapping) else method or _usual(layer)
        if path not in selected:
            stays[path] = "not selected"
            continue
        if found is None:
            stays[path] = "no method was given for it"
            continue
        why = found.refuses(layer)
        if why:
            stays[path] = why
            continue
        weights = mine[0].weights(np.asarray(leaves[path]))
        if not np.isfinite(weights).all():
            raise ValueError(f"{path} is not finite: it cannot be factorized; check its training")
        cases[path] = Case(layer, found, weights, _fitting(layer, moments.get(path)))
    return cases


def _fitting(layer: Layer, moments: Moments | None) -> Moments | None:
    """The moments, if they are those of this layer."""
    if moments is None:
        return None
    found = [moments.inputs.shape, moments.outputs.shape]
    expected = [(layer.groups, size, size) for size in (layer.inputs, layer.outputs)]
    if found != expected:
        raise ValueError(
            f"moments of {layer.path} have the shapes {found[0]} and {found[1]}, expected "
            f"{expected[0]} of inputs and {expected[1]} of outputs; observe this function"
        )
    return moments


def _usual(layer: Layer) -> Method:
    return svd() if layer.taps == 1 else tucker2()


def _layer(uses: Sequence[Use]) -> Layer:
    """The layer with the calls of all its uses."""
    calls = tuple(call for use in uses for call in use.layer.calls)
    return dataclasses.replace(uses[0].layer, calls=calls)


def _built(
    uses: Mapping[str, tuple[Use, ...]],
    cases: Mapping[str, Case],
    variables: Any,
    ranks: Mapping[str, Ranks | None],
) -> tuple[dict[str, _Chain], Any]:
    """The chains at some ranks, and the variables with their factors."""
    leaves = tree.paths(variables)
    chains: dict[str, _Chain] = {}
    new: dict[str, Any] = {}
    for path, case in cases.items():
        own = ranks.get(path)
        if own is None:
            continue
        plan = case.method.plan(case.layer, own)
        chain = _Chain(plan, tuple(_factor_path(path, factor.name, leaves) for factor in plan))
        weights = case.method.factors(case.layer, case.weights, own, case.moments)
        stored = uses[path][0].stored(weights)
        new.update(
            {
                p: jnp.asarray(x, leaves[path].dtype)
                for p, x in zip(chain.paths, stored, strict=True)
            }
        )
        chains[path] = chain
    if not chains:
        return chains, variables
    return chains, tree.from_paths({p: x for p, x in leaves.items() if p not in chains} | new)


def _factor_path(path: str, name: str, taken: Mapping[str, Any]) -> str:
    """`a/kernel` becomes `a/down/kernel`."""
    parent, _, leaf = path.rpartition("/")
    while any(other.startswith(f"{parent}/{name}/".lstrip("/")) for other in taken):
        name += "_"
    return f"{parent}/{name}/{leaf}".lstrip("/")


def _spliced(
    fn: Callable[..., Any], shapes: Any, chains: Mapping[str, _Chain]
) -> Callable[..., Any]:
    """A function of the factors, for any function of the variables."""

    def prepare(graph: Graph) -> Graph:
        uses, _ = layers.find(graph)
        mine = [use for path in chains for use in uses.get(path, ())]
        return graphs.splice(graph, {use.op: _part(use, chains[use.path]) for use in mine})

    retrace = graphs.Retrace(fn, prepare)

    def apply(variables: Any, *args: Any) -> Any:
        return graphs.interpret(retrace(shapes, *args), variables, *args)

    return apply


def _part(use: Use, chain: _Chain) -> graphs.Part:
    """The chain in the place of one use."""
    dtype = use.graph.variables[use.path].dtype
    blank = [np.zeros((use.layer.groups, *f.shape), np.bool_) for f in chain.plan]
    factors = {
        path: jax.ShapeDtypeStruct(x.shape, dtype)
        for path, x in zip(chain.paths, use.stored(blank), strict=True)
    }
    data = jax.ShapeDtypeStruct(use.data.shape, use.data.dtype)

    def run(v: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
        return use.run(chain.plan, [v[path] for path in chain.paths], x)

    return graphs.Part(graphs.trace(run, factors, data), (use.data,))


def _merged(
    uses: Mapping[str, tuple[Use, ...]], chains: Mapping[str, _Chain], variables: Any
) -> Any:
    """The tree with whole kernels."""
    leaves = tree.paths(variables)
    whole = {}
    for path, chain in chains.items():
        factors = [jnp.asarray(leaves.pop(p)) for p in chain.paths]
        whole[path] = uses[path][0].merged(chain.plan, factors)
    return tree.from_paths({**leaves, **whole}) if chains else variables


def _error(use: Use, chain: _Chain, weights: np.ndarray, variables: Any) -> float:
    """What the factors lose of the kernel, as a part of it."""
    leaves = tree.paths(variables)
    factors = [np.asarray(leaves[path], np.float32) for path in chain.paths]
    whole = use.weights(use.merged(chain.plan, factors))  # in NumPy: nothing is compiled
    size = float(np.linalg.norm(weights))
    return float(np.linalg.norm(weights - whole)) / size if size else 0.0
