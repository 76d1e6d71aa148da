"""What all penalties share: their state, and strengths that may differ by path and by step.

A penalty is an optax transformation that adds the derivative of a term of the loss, or moves
weights to where that term is least. `scales`, `lasso` and `squares` say which term.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from compressjax import tree

PyTree = Any
Strength = float | Callable[[jax.Array], jax.typing.ArrayLike]  # of the step, as optax.Schedule
Strengths = Strength | Mapping[str, Strength]


class PenaltyState(NamedTuple):
    """State of a penalty.

    Attributes:
      step: int32 [], updates so far; schedules of the strength are functions of it.
    """

    step: jax.Array


def rules(strength: Strengths, *, what: str = "strength") -> Mapping[str, Strength]:
    """Brings a strength into the form of globs and their strengths.

    Args:
      strength: a number of at least 0, a schedule `step -> strength`, or a mapping from globs to
        such.
      what: its name, for the error message.

    Returns:
      A mapping from globs to numbers or schedules.

    Raises:
      ValueError: if a number is negative or not a number. What only a jitted program knows is not
        looked at.

    Example:
      >>> rules(0.1)
      {'*': 0.1}
    """
    found = strength if isinstance(strength, Mapping) else {"*": strength}
    for where, value in found.items():
        if callable(value) or isinstance(value, jax.core.Tracer):
            continue
        if not value >= 0:
            raise ValueError(
                f"{what} for {where!r} is {value}, expected a number of at least 0 or a schedule"
            )
    return found


def at(strength: Strength, step: jax.Array) -> jax.Array:
    """Evaluates a strength, or a learning rate.

    Args:
      strength: a number or a schedule.
      step: int32 [].

    Returns:
      Its value at that step, float [].

    Example:
      >>> at(lambda step: 0.5 * step, jnp.int32(3))
      Array(1.5, dtype=float32)
    """
    return jnp.asarray(strength(step) if callable(strength) else strength, float)


def choose(
    candidates: Iterable[str], select: str | Iterable[str], protect: str | Iterable[str]
) -> list[str]:
    """Selects paths by globs and takes others out again.

    Args:
      candidates: the paths.
      select: globs of those that are wanted.
      protect: globs of those that are not.

    Returns:
      The paths that are left, in the order of `candidates`.

    Raises:
      ValueError: if a glob matches nothing.

    Example:
      >>> choose(['a/kernel', 'b/kernel', 'b/bias'], '**/kernel', 'a/*')
      ['b/kernel']
    """
    names = list(candidates)
    out = set(tree.match(protect, names, what="protect"))
    return [path for path in tree.match(select, names, what="select") if path not in out]


def transformation(
    prepare: Callable[[PyTree], Any],
    change: Callable[[Any, jax.Array, PyTree, PyTree], PyTree],
) -> optax.GradientTransformation:
    """Makes an optax transformation that counts steps.

    Args:
      prepare: `prepare(params)`, what a penalty needs to know of the parameters' paths and shapes;
        raises where they do not fit, so that `init` does.
      change: `change(prepared, step, updates, params) -> updates`.

    Returns:
      The transformation; its state is a `PenaltyState`.

    Example:
      >>> tx = transformation(lambda params: 2, lambda two, step, updates, params: updates + two)
      >>> tx.update(jnp.float32(1), tx.init(jnp.float32(0)), jnp.float32(0))
      (Array(3., dtype=float32), PenaltyState(step=Array(1, dtype=int32)))
    """

    def init(params: PyTree) -> PenaltyState:
        if jax.tree.leaves(params):  # optax.tree.map_params asks for the state of no parameters
            prepare(params)
        return PenaltyState(jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: PenaltyState, params: PyTree | None = None
    ) -> tuple[PyTree, PenaltyState]:
        if params is None:
            raise ValueError(
                "params is None: a penalty is a function of the weights; call "
                "tx.update(updates, state, params)"
            )
        changed = change(prepare(params), state.step, updates, params)
        return changed, PenaltyState(optax.safe_increment(state.step))

    return optax.GradientTransformation(init, update)
