"""Loss functions for the loop: how a forward pass and labels become one number.

A `Forward` is the one shape that every network here is brought into,
`(variables, x, rng) -> (logits, variables)`: it hands back the variables because training updates
some of them (batch statistics of a dense network, ranges of a quantized one). The functions here
wrap a forward pass into the loss that `loop.make_epoch` takes.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from compressjax.training.loop import LossFn, Metrics, Variables

Forward = Callable[[Variables, jax.Array, jax.Array], tuple[jax.Array, Variables]]
Apply = Callable[[Variables, jax.Array], jax.Array]


def from_apply(apply: Apply) -> Forward:
    """Make a forward pass of a function that updates nothing.

    Args:
      apply: `(variables, x [B, ...]) -> logits [B, K]`.

    Returns:
      `(variables, x, rng) -> (logits, variables)`.

    Example:
      >>> forward = from_apply(lambda variables, x: x * variables['params'])
      >>> forward({'params': 2.0}, 3.0, None)
      (6.0, {'params': 2.0})
    """

    def forward(variables: Variables, x: jax.Array, rng: jax.Array) -> tuple[jax.Array, Variables]:
        del rng
        return apply(variables, x), variables

    return forward


def supervised(forward: Forward, *, label_smoothing: float = 0.0) -> LossFn:
    """Cross-entropy with the labels.

    Source: label smoothing is section 7 of Szegedy et al., "Rethinking the Inception Architecture
    for Computer Vision", 2016.

    Args:
      forward: `(variables, x, rng) -> (logits [B, K], variables)`.
      label_smoothing: share of the probability that is spread evenly over all classes.

    Returns:
      A loss for `make_epoch`, with the metric `accuracy`.

    Raises:
      ValueError: `label_smoothing` is not in [0, 1).

    Example:
      >>> loss_fn = supervised(from_apply(lambda variables, x: x @ variables['params']))
      >>> x, labels = jnp.ones((2, 3)), jnp.array([0, 1])
      >>> loss, _ = loss_fn({'params': jnp.zeros((3, 4))}, x, labels, None)
      >>> print(f'{loss:.4f}')
      1.3863
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 1).")

    def loss_fn(
        variables: Variables, x: jax.Array, labels: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, tuple[Variables, Metrics]]:
        logits, variables = forward(variables, x, rng)
        chex.assert_rank([logits, labels], [2, 1])
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        return loss, (variables, {"accuracy": _accuracy(logits, labels)})

    return loss_fn


def distilled(
    forward: Callable[[Variables, jax.Array, jax.Array], tuple[Any, Variables]],
    teacher: Callable[[jax.Array], Any],
    loss: Callable[[Any, Any, jax.Array], jax.Array],
    *,
    logits: Callable[[Any], jax.Array] = lambda outputs: outputs,
) -> LossFn:
    """A student's loss against a fixed teacher that sees the same augmented images.

    Seeing the same crops matters: Beyer et al., "Knowledge distillation: A good teacher is patient
    and consistent", 2022. Student and teacher may give more than logits, such as features from
    inside them; an adapter between those is a part of the student's `params`, and `forward` applies
    it.

    Args:
      forward: the student, `(variables, x, rng) -> (outputs, variables)`; outputs are logits
        [B, K], or whatever `logits` finds them in.
      teacher: `x [B, ...] -> outputs`, likewise; no gradient flows into it.
      loss: `(student_outputs, teacher_outputs, labels [B]) -> loss`, [] or [B]; the mean is taken.
      logits: `outputs -> logits [B, K]`, for the metrics.

    Returns:
      A loss for `make_epoch`, with the metrics `accuracy` and `teacher_accuracy`. It raises
      ValueError where the logits' shapes disagree.

    Example:
      >>> forward = from_apply(lambda variables, x: x @ variables['params'])
      >>> loss_fn = distilled(forward, lambda x: x, lambda s, t, labels: jnp.mean((s - t) ** 2))
      >>> loss, _ = loss_fn({'params': jnp.eye(3)}, jnp.eye(3), jnp.arange(3), None)
      >>> float(loss)
      0.0
    """

    def loss_fn(
        variables: Variables, x: jax.Array, labels: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, tuple[Variables, Metrics]]:
        target = jax.lax.stop_gradient(teacher(x))
        outputs, variables = forward(variables, x, rng)
        found, expected = logits(outputs).shape, logits(target).shape
        if found != expected:
            raise ValueError(
                f"student logits {found} and teacher logits {expected} disagree in [B, K]; both "
                "must see the same batch and the same classes"
            )
        metrics = {
            "accuracy": _accuracy(logits(outputs), labels),
            "teacher_accuracy": _accuracy(logits(target), labels),
        }
        return jnp.mean(loss(outputs, target, labels)), (variables, metrics)

    return loss_fn


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)
