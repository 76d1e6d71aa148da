"""Schedules whose sparsity rises step by step to a final value."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from compressjax.pruning.schedules.schedule import Schedule, check_count, check_sparsity


def _ramp(
    final: float, begin: int, end: int, every: int, curve: Callable[[jax.Array], jax.Array]
) -> Schedule:
    """Makes a schedule that rises from 0 at `begin` to `final` at `end`, on a grid of steps.

    Args:
      final: sparsity at step `end` and after, in [0, 1).
      begin: step from which sparsity rises.
      end: step at which it reaches `final`; always due.
      every: steps between two mask updates.
      curve: the sparsity as a function of progress, float32 [] in [0, 1].

    Returns:
      A `Schedule`.
    """
    check_sparsity(final, "final")
    check_count(begin, "begin", 0)
    check_count(end, "end", 0)
    check_count(every, "every", 1)
    if end <= begin:
        raise ValueError(
            f"end must be after begin, found begin={begin}, end={end}; use one_shot to prune at "
            "one step"
        )
    if every > end - begin:
        raise ValueError(
            f"every={every} is longer than the ramp from begin={begin} to end={end}; "
            f"use at most {end - begin}"
        )

    def sparsity(step: jax.Array) -> jax.Array:
        progress = jnp.clip((step - begin) / (end - begin), 0.0, 1.0).astype(jnp.float32)
        # Compiled, the quotient may fall just short of 1.
        return jnp.where(step >= end, jnp.float32(final), curve(progress))

    def due(step: jax.Array) -> jax.Array:
        on_grid = (step > begin) & (step < end) & ((step - begin) % every == 0)
        return on_grid | (step == end)

    return Schedule(sparsity, due)


def polynomial(final: float, begin: int, end: int, every: int, power: float = 3) -> Schedule:
    """Raises sparsity from 0 to `final`, fast at first and slowly at the end.

    Zhu and Gupta 2017, "To prune, or not to prune", equation 1 with initial sparsity 0:
    `s_t = final * (1 - (1 - (t - begin) / (end - begin)) ** power)`.

    Args:
      final: sparsity at step `end` and after, in [0, 1).
      begin: step from which sparsity rises; nothing is pruned at it.
      end: step at which sparsity reaches `final`; masks are computed at it whether or not `every`
        divides `end - begin`, and not after it.
      every: steps between two mask updates.
      power: exponent of the ramp, above 0; the paper uses 3.

    Returns:
      A `Schedule`.

    Raises:
      ValueError: if `final` is outside [0, 1), `begin` is negative, `end` is not after `begin`,
        `every` is under 1 or over `end - begin`, or `power` is not above 0.
      TypeError: if `begin`, `end` or `every` is not an int.

    Example:
      >>> schedule = polynomial(0.8, begin=0, end=100, every=50)
      >>> [round(float(schedule.sparsity(step)), 3) for step in (0, 50, 100, 200)]
      [0.0, 0.7, 0.8, 0.8]
      >>> [step for step in range(201) if schedule.due(jnp.asarray(step))]
      [50, 100]
    """
    if not power > 0:
        raise ValueError(f"power must be above 0, found {power}")
    return _ramp(final, begin, end, every, lambda progress: final * (1 - (1 - progress) ** power))


def cosine(final: float, begin: int, end: int, every: int) -> Schedule:
    """Raises sparsity from 0 to `final` along half a cosine, slowly at both ends.

    `s_t = final / 2 * (1 - cos(pi * (t - begin) / (end - begin)))`. The curve is known from the
    learning rates of Loshchilov and Hutter 2017, "SGDR", equation 5; for sparsity it comes without
    a paper of its own, as the decay type `cos` of Intel Neural Compressor. Against `polynomial` it
    leaves more of the early training dense.

    Args:
      final: sparsity at step `end` and after, in [0, 1).
      begin: step from which sparsity rises; nothing is pruned at it.
      end: step at which sparsity reaches `final`; masks are computed at it, and not after it.
      every: steps between two mask updates.

    Returns:
      A `Schedule`.

    Raises:
      ValueError: if `final` is outside [0, 1), `begin` is negative, `end` is not after `begin`, or
        `every` is under 1 or over `end - begin`.
      TypeError: if a step is not an int.

    Example:
      >>> schedule = cosine(0.8, begin=0, end=100, every=25)
      >>> [round(float(schedule.sparsity(step)), 3) for step in (0, 25, 50, 100)]
      [0.0, 0.117, 0.4, 0.8]
    """
    return _ramp(
        final, begin, end, every, lambda progress: final / 2 * (1 - jnp.cos(math.pi * progress))
    )


def exponential(final: float, begin: int, end: int, every: int) -> Schedule:
    """Lets the density fall geometrically: each update prunes the same fraction of what is left.

    Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving
    synaptic flow" (SynFlow), algorithm 1: after k of n updates the density is
    `(1 - final) ** (k / n)`. The paper prunes before training, with n = 100 updates.

    Args:
      final: sparsity at step `end` and after, in [0, 1).
      begin: step from which sparsity rises; nothing is pruned at it.
      end: step at which sparsity reaches `final`; masks are computed at it, and not after it.
      every: steps between two mask updates.

    Returns:
      A `Schedule`.

    Raises:
      ValueError: if `final` is outside [0, 1), `begin` is negative, `end` is not after `begin`, or
        `every` is under 1 or over `end - begin`.
      TypeError: if a step is not an int.

    Example:
      >>> schedule = exponential(0.99, begin=0, end=100, every=50)
      >>> [round(float(schedule.sparsity(step)), 3) for step in (0, 50, 100)]
      [0.0, 0.9, 0.99]
    """
    return _ramp(
        final, begin, end, every, lambda progress: -jnp.expm1(progress * math.log1p(-final))
    )


def iterative(final: float, rounds: int, every: int, begin: int = 0) -> Schedule:
    """Prunes in rounds of training, each time the same fraction of what is left.

    Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", trains
    on between rounds; Frankle and Carbin 2019, "The Lottery Ticket Hypothesis", sends the weights
    back to their first values after each (`rewind`): round k of n ends with sparsity
    `1 - (1 - final) ** (k / n)`. The last round is followed by as much training as you like.

    Args:
      final: sparsity after the last round, in [0, 1).
      rounds: how many times to prune, at least 1.
      every: updates in a round, at the end of which weights are pruned.
      begin: step at which the first round begins.

    Returns:
      A `Schedule`: `exponential`, told by rounds.

    Raises:
      ValueError: if `final` is outside [0, 1), `rounds` or `every` is under 1, or `begin` is
        negative.
      TypeError: if `rounds` or a step is not an int.

    Example:
      >>> schedule = iterative(0.875, rounds=3, every=10)
      >>> [step for step in range(50) if schedule.due(jnp.asarray(step))]
      [10, 20, 30]
      >>> [round(float(schedule.sparsity(step)), 3) for step in (10, 20, 30)]
      [0.5, 0.75, 0.875]
    """
    check_count(rounds, "rounds", 1)
    check_count(every, "every", 1)
    check_count(begin, "begin", 0)
    return exponential(final, begin, begin + rounds * every, every)
