"""Batch-norm re-estimation: the running statistics replaced by exact averages over batches.

Running statistics are an exponential average over weights that have moved since. After pruning or
shrinking they belong to another network, and what a norm is folded with decides what is quantized.
Here they are averaged over calibration batches, every batch counting alike, with the weights as
they are. It comes before folding; the other corrections come after it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax import tree
from compressjax.quant.correction.measure import all_finite, peek


class _State(NamedTuple):
    """What the batches so far gave: examples, averages, and the spread of the means."""

    number: jax.Array
    average: dict[str, jax.Array]
    between: dict[str, jax.Array]
    momentum: dict[str, jax.Array]


def reestimate_batch_norm(
    fn_train: Callable[..., tuple[Any, Mapping[str, Any]]],
    variables: Mapping[str, Any],
    batches: Iterable[Any],
) -> dict[str, Any]:
    """Averages batch statistics exactly over batches (Wu and Johnson, 2021, section 3).

    A network that was pruned needs it most (adaptive batch norm; Li et al., 2020, "EagleEye").

    How a layer updates its statistics is read off, not asked for: `new = m * old + (1 - m) * batch`
    for a momentum `m` that may differ from layer to layer, so the function's value where all old
    statistics are zero and its derivative there give the momentum and the batch's statistics. A
    leaf `var` beside a leaf `mean` becomes the variance of all batches together, which includes
    how far the batches' means lie apart; every other leaf is averaged. The batches count by the
    number of their examples. The momentum is known as well as its dtype can hold it: at 0.99 in
    float32, the result is right to 6e-6 of itself.

    Args:
      fn_train: pure function in training mode, `fn_train(variables, *args) -> (outputs, updates)`,
        where `updates` holds new collections, such as `{'batch_stats': ...}`.
      variables: its variables.
      batches: each an array or a tuple of arguments, examples first; no labels.

    Returns:
      The variables with the statistics replaced; all else is as it was.

    Raises:
      ValueError: if there are no batches, the function updates nothing or something that the
        variables do not have, or a leaf is not updated by averaging.

    Example:
      >>> def train(v, x):
      ...     return x, {'stats': {'mean': 0.9 * v['stats']['mean'] + 0.1 * x.mean(0)}}
      >>> variables = {'stats': {'mean': jnp.array([7.0])}}
      >>> batches = [jnp.array([[1.0], [2.0]]), jnp.array([[6.0]])]
      >>> reestimate_batch_norm(train, variables, batches)['stats']['mean'].round(4)
      Array([3.], dtype=float32)
    """
    first, arguments = peek(batches)
    paths = _updated(fn_train, variables, first)
    state: _State | None = None
    batch_statistics = jax.jit(lambda variables, args: _of_batch(fn_train, paths, variables, args))
    join = jax.jit(_joined)
    for args in arguments:
        new = batch_statistics(variables, args)
        state = new if state is None else join(state, new)
    assert state is not None  # there was a first batch
    _check(state)
    found = {path: state.average[path] + state.between.get(path, 0.0) for path in paths}
    leaves = tree.paths(variables)
    return tree.replace(
        variables, {path: x.astype(jnp.result_type(leaves[path])) for path, x in found.items()}
    )


def _updated(fn_train: Any, variables: Any, args: tuple[Any, ...]) -> list[str]:
    """Paths of the float leaves that the function updates."""
    shapes = jax.eval_shape(fn_train, variables, *args)
    if not (isinstance(shapes, tuple) and len(shapes) == 2 and isinstance(shapes[1], Mapping)):
        raise ValueError(
            f"fn_train returns {type(shapes).__name__}, expected (outputs, updates) with updates "
            "such as {'batch_stats': ...}: pass the function in training mode"
        )
    updates, known = tree.paths(shapes[1]), tree.paths(variables)
    for path, leaf in updates.items():
        if path not in known or jnp.shape(known[path]) != leaf.shape:
            found = f"shape {jnp.shape(known[path])}" if path in known else "nothing"
            raise ValueError(
                f"fn_train updates {path} to shape {leaf.shape}, found {found} in the variables "
                "there: pass the variables that it was made for"
            )
    paths = [path for path, leaf in updates.items() if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not paths:
        raise ValueError(
            "fn_train updates no statistics: pass the function in training mode, with its "
            "collection mutable, such as model.apply(v, x, train=True, mutable=['batch_stats'])"
        )
    return paths


def _of_batch(fn_train: Any, paths: list[str], variables: Any, args: tuple[Any, ...]) -> _State:
    """The statistics of one batch, whatever momentum they are mixed in with."""
    leaves = tree.paths(variables)

    def updates(old: dict[str, jax.Array]) -> dict[str, jax.Array]:
        _, new = fn_train(tree.replace(variables, old), *args)
        found = tree.paths(new)
        return {path: found[path] for path in paths}

    zeros = {path: jnp.zeros_like(leaves[path]) for path in paths}
    ones = {path: jnp.ones_like(leaves[path]) for path in paths}
    mixed, momentum = jax.jvp(updates, (zeros,), (ones,))
    wide = {path: x.astype(jnp.promote_types(x.dtype, jnp.float32)) for path, x in mixed.items()}
    statistics = {path: x / (1.0 - momentum[path].astype(x.dtype)) for path, x in wide.items()}
    number = jnp.shape(jax.tree.leaves(args)[0])[0]
    between = {p: jnp.zeros_like(statistics[p]) for p in paths if _mean_beside(p) in statistics}
    return _State(jnp.asarray(number, jnp.float32), statistics, between, momentum)


def _mean_beside(path: str) -> str:
    """The path of the mean that belongs to a variance; the empty path for anything else."""
    parent, _, leaf = path.rpartition("/")
    return f"{parent}/mean" if leaf == "var" else ""


def _joined(a: _State, b: _State) -> _State:
    """Adds batches to batches, every example counting alike (Chan et al., 1983)."""
    number = a.number + b.number
    part = b.number / number
    average = {path: x + part * (b.average[path] - x) for path, x in a.average.items()}
    between = {}
    for path, x in a.between.items():
        mean = _mean_beside(path)
        apart = b.average[mean] - a.average[mean]
        inside = x + part * (b.between[path] - x)
        between[path] = inside + part * (1.0 - part) * apart**2
    return _State(number, average, between, b.momentum)


def _check(state: _State) -> None:
    for path, momentum in state.momentum.items():
        outside = (momentum < 0.0) | (momentum >= 1.0) | jnp.isnan(momentum)
        if not isinstance(outside, jax.core.Tracer) and bool(outside.any()):
            raise ValueError(
                f"{path} is not updated as m * old + (1 - m) * batch with m in [0, 1): its "
                f"derivative is {jnp.ravel(momentum)[0]} in the old value; pass the function in "
                "training mode, with its statistics moving"
            )
        if not all_finite(state.average[path]):
            raise ValueError(f"{path}: its statistics on these batches are not finite")
