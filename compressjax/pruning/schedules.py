"""Pruning schedules: when masks are computed anew, and how sparse they are then.

Steps are counted as updates made: step 1 is the first update, and "at step t" means "in force once
t updates have been applied". The step is a traced integer and the sparsity a traced scalar, so a
growing sparsity never recompiles a training step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Schedule(NamedTuple):
    """When to prune.

    Attributes:
      sparsity: `sparsity(step) -> float32 []` in [0, 1), the fraction of weights to prune.
      due: `due(step) -> bool []`, whether this step computes new masks.
      falls: whether the sparsity ever falls, so that pruned weights return.
    """

    sparsity: Callable[[jax.Array], jax.Array]
    due: Callable[[jax.Array], jax.Array]
    falls: bool = False


def check_sparsity(sparsity: float, name: str) -> None:
    """Refuses a sparsity outside [0, 1).

    Args:
      sparsity: fraction of weights to prune.
      name: of the argument, for the error message.

    Raises:
      ValueError: if it is outside [0, 1).

    Example:
      >>> check_sparsity(0.5, 'final')
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(
            f"{name} must be in [0, 1), found {sparsity}; it is the fraction of weights set to 0"
        )


def _check_step(step: int, name: str, least: int) -> None:
    if isinstance(step, bool) or not isinstance(step, int):
        raise TypeError(f"{name} must be an int (a number of updates), found {step!r}")
    if step < least:
        raise ValueError(f"{name} must be at least {least}, found {step}")


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
    check_sparsity(final, "final")
    _check_step(begin, "begin", 0)
    _check_step(end, "end", 0)
    _check_step(every, "every", 1)
    if end <= begin:
        raise ValueError(f"end must be after begin, found begin={begin}, end={end}")
    if every > end - begin:
        raise ValueError(
            f"every={every} is longer than the ramp from begin={begin} to end={end}; "
            f"use at most {end - begin}"
        )
    if not power > 0:
        raise ValueError(f"power must be above 0, found {power}")

    def sparsity(step: jax.Array) -> jax.Array:
        progress = jnp.clip((step - begin) / (end - begin), 0.0, 1.0).astype(jnp.float32)
        return final * (1 - (1 - progress) ** power)

    def due(step: jax.Array) -> jax.Array:
        on_grid = (step > begin) & (step < end) & ((step - begin) % every == 0)
        return on_grid | (step == end)

    return Schedule(sparsity, due)


def constant(sparsity: float, begin: int = 0, end: int | None = None, every: int = 100) -> Schedule:
    """Holds one sparsity, choosing the weights anew every so often.

    With a score that only looks at the weights the first choice stands, as with `one_shot`;
    choosing anew matters where a score gathers evidence.

    Args:
      sparsity: fraction of weights to prune, in [0, 1).
      begin: step of the first mask update; 0 means the first update.
      end: step after which masks stay as they are; None means never.
      every: steps between two mask updates.

    Returns:
      A `Schedule`.

    Raises:
      ValueError: if `sparsity` is outside [0, 1), `begin` is negative, `end` is before `begin` or
        `every` is under 1.
      TypeError: if a step is not an int.

    Example:
      >>> schedule = constant(0.5, begin=2, end=10, every=4)
      >>> [step for step in range(20) if schedule.due(jnp.asarray(step))]
      [2, 6, 10]
    """
    check_sparsity(sparsity, "sparsity")
    _check_step(begin, "begin", 0)
    _check_step(every, "every", 1)
    if end is not None:
        _check_step(end, "end", 0)
        if end < begin:
            raise ValueError(f"end must not be before begin, found begin={begin}, end={end}")
    first = max(begin, 1)

    def due(step: jax.Array) -> jax.Array:
        running = step >= first if end is None else (step >= first) & (step <= max(end, first))
        return running & ((step - first) % every == 0)

    return Schedule(lambda step: jnp.float32(sparsity), due)


def one_shot(sparsity: float, at: int = 0) -> Schedule:
    """Prunes once.

    Args:
      sparsity: fraction of weights to prune, in [0, 1).
      at: the step that prunes; 0 means the first update.

    Returns:
      A `Schedule`.

    Raises:
      ValueError: if `sparsity` is outside [0, 1) or `at` is negative.
      TypeError: if `at` is not an int.

    Example:
      >>> schedule = one_shot(0.5, at=3)
      >>> [step for step in range(9) if schedule.due(jnp.asarray(step))]
      [3]
    """
    check_sparsity(sparsity, "sparsity")
    _check_step(at, "at", 0)
    return Schedule(lambda step: jnp.float32(sparsity), lambda step: step == max(at, 1))
