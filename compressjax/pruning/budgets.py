"""Pruning budgets: how many weights each leaf keeps at a given total sparsity.

A budget turns one traced sparsity into exact integers. It says nothing about which weights are
kept (a score does) or in which shape (a pattern does). Leaves of one share compete with each
other for its count, so a global budget is one share and a layer-wise budget is one share a leaf.
LAMP, which is often called a budget, is a score for `global_`: it makes scores comparable between
layers, and the counts of the layers follow.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import tree
from compressjax.pruning.schedules import check_sparsity

_MILLION = 1_000_000
Shapes = Mapping[str, tuple[int, ...]]


class Share(NamedTuple):
    """Leaves that compete with each other, and how many of their weights are kept together.

    Attributes:
      paths: the leaves.
      keep: int32 [], the number of units to keep.
      whole: whether the leaves are exempt from pruning: everything is kept, whatever the pattern.
    """

    paths: tuple[str, ...]
    keep: jax.Array
    whole: bool = False


class Budget(Protocol):
    """How many units each leaf keeps.

    A unit is what a pattern keeps or prunes as one: a weight, a block, a channel.
    """

    def __call__(
        self, sparsity: jax.Array | float, shapes: Shapes, units: Mapping[str, int] | None = None, /
    ) -> tuple[Share, ...]:
        """Splits what is kept.

        Args:
          sparsity: float32 [], fraction of all units to prune, in [0, 1).
          shapes: shape of every leaf by path.
          units: number of units in every leaf; None where each weight is one.

        Returns:
          Shares in which each leaf that has units appears once.
        """


def _sizes(shapes: Shapes, units: Mapping[str, int] | None) -> dict[str, int]:
    if units is None:
        return {path: math.prod(shape) for path, shape in shapes.items()}
    return {path: units[path] for path in shapes}


def num_kept(sparsity: jax.Array | float, size: int) -> jax.Array:
    """Counts the weights kept: `size - round(sparsity * size)`, exact in integers.

    The sparsity is read to six decimals, so that a float32 0.9 means 0.9 and 100 million weights
    keep 10 million and not 10 million and two. Halves round to even, as Python's `round` does.

    Args:
      sparsity: float32 [], fraction to prune, in [0, 1).
      size: number of weights, under 2**31.

    Returns:
      int32 [], the number to keep.

    Raises:
      ValueError: if `size` does not fit in 31 bits.

    Example:
      >>> int(num_kept(0.9, 100_000_000))
      10000000
    """
    if size >= 2**31:
        raise ValueError(
            f"{size} weights share one budget, at most {2**31 - 1} can; select fewer, or use a "
            "budget that gives every leaf its own count"
        )
    millionths = jnp.round(jnp.asarray(sparsity, jnp.float32) * _MILLION).astype(jnp.int32)
    millionths = jnp.clip(millionths, 0, _MILLION)
    # size * millionths / 10**6 in int32: the whole millions apart, then three decimals at a time.
    millions, rest = divmod(size, _MILLION)
    high, low = rest * (millionths // 1000), rest * (millionths % 1000)
    tail = (high % 1000) * 1000 + low
    floor = millions * millionths + high // 1000 + tail // _MILLION
    part = tail % _MILLION
    half = _MILLION // 2
    up = (part > half) | ((part == half) & (floor % 2 == 1))
    return jnp.int32(size) - floor - up.astype(jnp.int32)


def uniform() -> Budget:
    """Prunes every leaf to the same sparsity.

    Returns:
      A budget with one share a leaf.

    Example:
      >>> [int(share.keep) for share in uniform()(0.75, {'a': (2, 4), 'b': (4, 4)})]
      [2, 4]
    """

    def budget(
        sparsity: jax.Array | float, shapes: Shapes, units: Mapping[str, int] | None = None, /
    ) -> tuple[Share, ...]:
        sizes = _sizes(shapes, units)
        return tuple(Share((path,), num_kept(sparsity, size)) for path, size in sizes.items())

    return budget


def global_() -> Budget:
    """Prunes the lowest scores of all leaves together.

    Returns:
      A budget with one share for all leaves.

    Example:
      >>> [(share.paths, int(share.keep)) for share in global_()(0.75, {'a': (8,), 'b': (16,)})]
      [(('a', 'b'), 6)]
    """

    def budget(
        sparsity: jax.Array | float, shapes: Shapes, units: Mapping[str, int] | None = None, /
    ) -> tuple[Share, ...]:
        return (Share(tuple(shapes), num_kept(sparsity, sum(_sizes(shapes, units).values()))),)

    return budget


def _share_out(total: jax.Array, sizes: np.ndarray, weights: np.ndarray) -> jax.Array:
    """Splits a count over leaves as `min(size, scale * weight)`, summing to it exactly.

    Args:
      total: int32 [], at most the sum of `sizes`.
      sizes: int64 [L], units in each leaf, ordered by rising `weights / sizes`.
      weights: float64 [L], what the count is proportional to.

    Returns:
      int32 [L], the counts.
    """
    # Leaves fill up from the end of the order. With the last `full` leaves full, the scale of the
    # others follows; the smallest `full` that leaves nobody overfull is the answer.
    full_sizes = np.concatenate([[0], np.cumsum(sizes[::-1])[:-1]])
    open_weights = np.cumsum(weights)[::-1]
    scales = (total - jnp.asarray(full_sizes, jnp.int32)) / jnp.asarray(open_weights, jnp.float32)
    fits = scales * jnp.asarray((weights / sizes)[::-1], jnp.float32) <= 1
    full = jnp.argmax(fits.at[-1].set(True))
    is_full = jnp.arange(sizes.size) >= sizes.size - full
    exact = scales[full] * jnp.asarray(weights, jnp.float32)
    limits = jnp.asarray(sizes, jnp.int32)
    counts = jnp.where(is_full, limits, jnp.clip(jnp.round(exact).astype(jnp.int32), 0, limits))
    # What rounding left over goes to the sparsest leaf, and on to the next where it has no room.
    left = total - jnp.sum(counts)
    room = jnp.where(left > 0, limits - counts, counts)
    taken = jnp.clip(jnp.abs(left) - (jnp.cumsum(room) - room), 0, room)
    return counts + jnp.sign(left) * taken


def _proportional(weight: Callable[[tuple[int, ...]], int]) -> Budget:
    """Makes the budget whose densities are proportional to `weight(shape)` a weight of the leaf."""

    def budget(
        sparsity: jax.Array | float, shapes: Shapes, units: Mapping[str, int] | None = None, /
    ) -> tuple[Share, ...]:
        sizes = _sizes(shapes, units)
        density = {
            path: weight(shape) / math.prod(shape) for path, shape in shapes.items() if sizes[path]
        }
        if not density:
            return ()
        order = sorted(density, key=density.__getitem__)
        size = np.array([sizes[path] for path in order], np.int64)
        counts = _share_out(
            num_kept(sparsity, int(size.sum())),
            size,
            size * np.array([density[path] for path in order], np.float64),
        )
        return tuple(Share((path,), counts[i]) for i, path in enumerate(order))

    return budget


def erdos_renyi() -> Budget:
    """Keeps a number of weights proportional to inputs plus outputs of a layer.

    Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science" (SET): the density of a kernel `[..., I, O]` is
    proportional to `(I + O) / (I * O)`, at most 1. The counts of all leaves sum to exactly what
    `global_` keeps.

    Returns:
      A budget with one share a leaf.

    Example:
      >>> shapes = {'narrow': (10, 10), 'wide': (100, 100)}
      >>> {share.paths[0]: int(share.keep) for share in erdos_renyi()(0.9, shapes)}
      {'wide': 918, 'narrow': 92}
    """
    return _proportional(lambda shape: math.prod(shape[:-2]) * sum(shape[-2:]))


def erk() -> Budget:
    """Keeps a number of weights proportional to the sum of a kernel's dimensions.

    Evci et al. 2020, "Rigging the Lottery" (RigL), Erdős-Rényi-Kernel: the density of a kernel
    `[KH, KW, I, O]` is proportional to `(KH + KW + I + O) / (KH * KW * I * O)`, at most 1. The
    counts of all leaves sum to exactly what `global_` keeps.

    Returns:
      A budget with one share a leaf.

    Example:
      >>> shapes = {'conv': (3, 3, 16, 16), 'dense': (64, 10)}
      >>> {share.paths[0]: int(share.keep) for share in erk()(0.9, shapes)}
      {'conv': 100, 'dense': 194}
    """
    return _proportional(sum)


def by_path(
    rules: Mapping[str, Budget | float] | Iterable[tuple[str, Budget | float]],
    default: Budget | float | None = None,
) -> Budget:
    """Gives each leaf the budget of the first rule that its path matches.

    Each rule's leaves, and those that no rule matches, are pruned to the given sparsity among
    themselves, so what a rule spares is not made up for by the others. Gale et al. 2019, "The State
    of Sparsity in Deep Neural Networks", section "Pushing the Limits of Magnitude Pruning", leave
    the first layer dense and prune the last one to at most 80 %, as in the example.

    Args:
      rules: globs in order, each with a budget for its leaves together, or a number: the highest
        sparsity of each of its leaves, in [0, 1). 0.0 exempts them, from the pattern too.
      default: the budget, or highest sparsity, of leaves that no rule matches; None is `uniform`.

    Returns:
      A budget. It raises ValueError if a glob matches none of the leaves.

    Raises:
      ValueError: if a number is outside [0, 1).

    Example:
      >>> budget = by_path({'stem/*': 0.0, 'head/*': 0.8}, global_())
      >>> shapes = {'stem/kernel': (3, 3, 1, 8), 'a/kernel': (8, 8), 'b/kernel': (8, 16),
      ...           'head/kernel': (16, 10)}
      >>> for share in budget(0.9, shapes):
      ...     print(share.paths, int(share.keep))
      ('stem/kernel',) 72
      ('head/kernel',) 32
      ('a/kernel', 'b/kernel') 19
    """
    ordered = tuple(rules.items() if isinstance(rules, Mapping) else rules)
    rest = uniform() if default is None else default
    for name, value in (*ordered, ("default", rest)):
        if isinstance(value, int | float):
            check_sparsity(value, f"the highest sparsity of {name!r}")
    choices: tuple[Budget | float, ...] = (*(value for _, value in ordered), rest)
    numbered = [(glob, i) for i, (glob, _) in enumerate(ordered)]

    def budget(
        sparsity: jax.Array | float, shapes: Shapes, units: Mapping[str, int] | None = None, /
    ) -> tuple[Share, ...]:
        chosen = tree.assign(numbered, shapes, what="by_path", default=len(ordered))
        shares: list[Share] = []
        for i, choice in enumerate(choices):
            mine = {path: shape for path, shape in shapes.items() if chosen[path] == i}
            if not mine:
                continue
            if isinstance(choice, int | float):
                part = uniform()(jnp.minimum(sparsity, choice), mine, units)
                shares += [share._replace(whole=choice == 0) for share in part]
            else:
                shares += choice(sparsity, mine, units)
        return tuple(shares)

    return budget
