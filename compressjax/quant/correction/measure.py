"""What the values of each channel are on calibration data: ends, mean and deviation.

Observers estimate one range for a tensor; corrections want numbers for each channel, of values that
need not be tensors of the quantized network. One jitted pass, constant memory.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax import graph as graphs
from compressjax.graph import Graph, Value

Places = Mapping[str, tuple[Value, int]]  # for each name, a value and its channel axis


class Spread(NamedTuple):
    """The values of each channel so far.

    Attributes:
      number: how many values of a channel there were, [].
      low: the smallest, [C].
      high: the largest, [C].
      mean: their mean, [C].
      variance: their variance, [C].
    """

    number: jax.Array
    low: jax.Array
    high: jax.Array
    mean: jax.Array
    variance: jax.Array


def spread_of(values: jax.Array, axis: int) -> Spread:
    """Measures the channels of one array.

    Args:
      values: any array.
      axis: its channel axis.

    Returns:
      The spread, float32 (float64 if the values are).

    Example:
      >>> spread_of(jnp.array([[1.0, 5.0], [3.0, 5.0]]), 1).variance
      Array([1., 0.], dtype=float32)
    """
    values = jnp.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return Spread(
        jnp.asarray(values.shape[1], values.dtype),
        values.min(1),
        values.max(1),
        values.mean(1),
        values.var(1),
    )


def joined(a: Spread, b: Spread) -> Spread:
    """Joins the spreads of two sets of values (Chan et al., 1983, equation 2.1).

    Args:
      a: of one set.
      b: of the other, not empty.

    Returns:
      The spread of both together.

    Example:
      >>> one, other = (spread_of(jnp.array([[x]]), 1) for x in (1.0, 3.0))
      >>> joined(one, other).variance
      Array([1.], dtype=float32)
    """
    number = a.number + b.number
    part = b.number / number
    apart = b.mean - a.mean
    return Spread(
        number,
        jnp.minimum(a.low, b.low),
        jnp.maximum(a.high, b.high),
        a.mean + part * apart,
        (1.0 - part) * a.variance + part * b.variance + part * (1.0 - part) * apart**2,
    )


def all_finite(array: Any) -> bool:
    """Tells whether an array is finite; one that is traced, and not known yet, passes.

    Args:
      array: any array.

    Returns:
      Whether nothing in it is known to be NaN or infinite.

    Example:
      >>> all_finite(jnp.array([1.0, 2.0])), all_finite(jnp.array([1.0, jnp.inf]))
      (True, False)
    """
    return isinstance(array, jax.core.Tracer) or bool(jnp.isfinite(array).all())


def peek(batches: Iterable[Any]) -> tuple[tuple[Any, ...], Iterator[tuple[Any, ...]]]:
    """Reads calibration batches as arguments, and the first of them ahead.

    Args:
      batches: each an array, or a tuple of arguments; no labels.

    Returns:
      The first batch's arguments, and an iterator over all batches' arguments.

    Raises:
      ValueError: if there are no batches, or an array is passed instead of them.

    Example:
      >>> first, batches = peek([1.0, 2.0])
      >>> first, list(batches)
      ((1.0,), [(1.0,), (2.0,)])
    """
    if hasattr(batches, "shape"):
        raise ValueError(
            f"batches is one array of shape {batches.shape}, expected an iterable of batches, such "
            "as [images]"
        )
    arguments = (tuple(b) if isinstance(b, tuple | list) else (b,) for b in batches)
    first = next(arguments, None)
    if first is None:
        raise ValueError("there are no batches: pass an iterable of at least one, such as [images]")
    return first, itertools.chain([first], arguments)


def measure(
    fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[tuple[Any, ...]],
    wanted: Callable[[Graph], Places],
) -> dict[str, Spread]:
    """Measures values inside a function.

    Args:
      fn: pure function `fn(variables, *args)`.
      variables: its variables.
      batches: from `peek`.
      wanted: says for a graph of `fn` which values to measure; the names must not depend on the
        batch size.

    Returns:
      The spread of each name over all batches.

    Raises:
      ValueError: if a channel's values are not finite.

    Example:
      >>> found = measure(
      ...     lambda v, x: x @ v,
      ...     jnp.ones((2, 1)),
      ...     [(jnp.ones((3, 2)),), (jnp.zeros((1, 2)),)],
      ...     lambda graph: {'y': (graph.outputs[0], 1)},
      ... )
      >>> found['y'].mean, found['y'].high
      (Array([1.5], dtype=float32), Array([2.], dtype=float32))
    """
    retrace = graphs.Retrace(fn, lambda graph: (graph, wanted(graph)), keep_custom=False)
    shapes = graphs.template(variables)

    @jax.jit
    def spread(variables: Any, args: tuple[Any, ...]) -> dict[str, Spread]:
        graph, places = retrace(shapes, *args)
        known = graphs.bind_arguments(graph, variables, *args)
        values = graphs.evaluate(graph, [value for value, _ in places.values()], known)
        found = zip(places.items(), values, strict=True)
        return {name: spread_of(value, axis) for (name, (_, axis)), value in found}

    join = jax.jit(lambda a, b: {name: joined(a[name], b[name]) for name in a})
    total = functools.reduce(join, (spread(variables, args) for args in batches))
    for name, found in total.items():
        if not (all_finite(found.low) and all_finite(found.high)):
            raise ValueError(
                f"{name}: some channels are not finite on these batches; check the variables and "
                "the batches for NaN or infinity"
            )
    return total
