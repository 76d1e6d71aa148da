"""Accuracy of a pure function over a whole set, counted exactly.

Unlike the means that the loop reports (of a network that moves, on augmented batches), this counts
every example once: the last batch is padded and its padding is not counted.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp


class Score(NamedTuple):
    """How many of how many were right."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of the examples that were right, in [0, 1]."""
        return self.correct / self.total


def evaluate(
    apply: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    *,
    batch_size: int = 256,
    prepare: Callable[[jax.Array], jax.Array] | None = None,
) -> Score:
    """Count the examples whose largest logit is at their label.

    An example with a NaN or an infinity among its logits counts as wrong. Compiled once for the
    same `apply`, `prepare` and shapes.

    Args:
      apply: `(variables, x [B, ...]) -> logits [B, K]`.
      variables: what `apply` takes.
      images: [N, ...].
      labels: [N] integers.
      batch_size: images at a time.
      prepare: `images [B, ...] -> x [B, ...]`, run inside jit; None passes images on.

    Returns:
      The exact count and the number of examples.

    Raises:
      ValueError: the set is empty, or `batch_size` is not positive.

    Example:
      >>> score = evaluate(lambda variables, x: x, {}, jnp.eye(5), jnp.array([0, 1, 2, 0, 0]),
      ...                  batch_size=2)
      >>> score, score.accuracy
      (Score(correct=3, total=5), 0.6)
    """
    chex.assert_equal_shape_prefix([images, labels], 1)
    total = images.shape[0]
    if total == 0:
        raise ValueError("the set to evaluate has no examples; pass at least one.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    correct = _count(apply, prepare, min(batch_size, total), variables, images, labels)
    return Score(int(correct), total)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _count(
    apply: Callable[[Any, jax.Array], jax.Array],
    prepare: Callable[[jax.Array], jax.Array] | None,
    batch_size: int,
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    batches = -(-images.shape[0] // batch_size)
    rows = jnp.arange(batches * batch_size).reshape(batches, batch_size)

    def of_batch(rows: jax.Array) -> jax.Array:
        real = rows < images.shape[0]
        rows = jnp.minimum(rows, images.shape[0] - 1)
        x = images[rows] if prepare is None else prepare(images[rows])
        logits = apply(variables, x)
        right = jnp.argmax(logits, axis=-1) == labels[rows]
        return jnp.sum(right & real & jnp.all(jnp.isfinite(logits), axis=-1))

    return jnp.sum(jax.lax.map(of_batch, rows))
