"""Schedules of one sparsity: once, from time to time, or in turns with none."""

import jax
import jax.numpy as jnp

from compressjax.pruning.schedules.schedule import Schedule, check_count, check_sparsity


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
    check_count(begin, "begin", 0)
    check_count(every, "every", 1)
    if end is not None:
        check_count(end, "end", 0)
        if end < begin:
            raise ValueError(
                f"end must not be before begin, found begin={begin}, end={end}; None never ends"
            )
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
    check_count(at, "at", 0)
    return Schedule(lambda step: jnp.float32(sparsity), lambda step: step == max(at, 1))


def cyclic(sparsity: float, begin: int, end: int, sparse: int, dense: int) -> Schedule:
    """Alternates sparse and dense phases, and ends sparse.

    Peste et al. 2021, "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural
    Networks", section 3: after a dense warm-up, sparse phases, in each of which the mask stays,
    alternate with dense ones, in which pruned weights return from 0. The paper makes both as long,
    and the last sparse phase longer.

    Args:
      sparsity: in the sparse phases, in [0, 1).
      begin: step at which the first sparse phase begins; 0 means the first update.
      end: step from which sparsity stays; a dense phase that reaches it ends there.
      sparse: steps in a sparse phase.
      dense: steps in a dense phase.

    Returns:
      A `Schedule` that is due only where phases change.

    Raises:
      ValueError: if `sparsity` is outside [0, 1), `begin` is negative, `sparse` or `dense` is under
        1, or `end` leaves no room for one sparse and one dense phase.
      TypeError: if a step is not an int.

    Example:
      >>> schedule = cyclic(0.9, begin=10, end=40, sparse=10, dense=5)
      >>> [step for step in range(99) if schedule.due(jnp.asarray(step))]
      [10, 20, 25, 35, 40]
      >>> [round(float(schedule.sparsity(step)), 3) for step in (0, 10, 20, 25, 35, 40)]
      [0.0, 0.9, 0.0, 0.9, 0.0, 0.9]
    """
    check_sparsity(sparsity, "sparsity")
    check_count(begin, "begin", 0)
    check_count(end, "end", 0)
    check_count(sparse, "sparse", 1)
    check_count(dense, "dense", 1)
    first, period = max(begin, 1), sparse + dense
    if end <= first + sparse:
        raise ValueError(
            f"end={end} comes before the first dense phase, which begins at step {first + sparse} "
            f"(begin={begin}, sparse={sparse}); use a later end, or one_shot for one sparse phase"
        )

    def is_sparse(step: jax.Array) -> jax.Array:
        return (step >= end) | ((step >= first) & ((step - first) % period < sparse))

    return Schedule(
        lambda step: jnp.where(is_sparse(step), jnp.float32(sparsity), 0.0),
        lambda step: is_sparse(step) != is_sparse(step - 1),
        falls=True,
    )
