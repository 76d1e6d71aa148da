"""Several teachers: at once, one after the other, or each other's.

The losses are those of `logits`; here is who teaches whom.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from compressjax.distill._arrays import check_labels, check_number, check_temperature, wide
from compressjax.distill.logits import soft_targets

Trained = TypeVar("Trained")
Student = TypeVar("Student")


def ensemble(
    teacher_logits: jax.Array,
    weights: jax.Array | None = None,
    *,
    temperature: jax.Array | float = 1.0,
) -> jax.Array:
    """Makes the logits of one teacher out of several.

    Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), on ensembles: the mean of
    their softened probabilities. `soft_targets` at the same temperature sees exactly that mean.

    Args:
      teacher_logits: floating [M, B, C], of M teachers.
      weights: [M], at least 0, scaled to sum to 1; all the same unless given.
      temperature: T above 0, a number or a traced scalar.

    Returns:
      [B, C], at least float32.

    Raises:
      ValueError: if shapes disagree or a number is out of range.
      TypeError: if logits are not floating.

    Example:
      >>> logits = ensemble(jnp.log(jnp.array([[[0.8, 0.2]], [[0.4, 0.6]]])))
      >>> print((10 * jax.nn.softmax(logits)).round())
      [[6. 4.]]
    """
    if not jnp.issubdtype(teacher_logits.dtype, jnp.floating):
        raise TypeError(f"teacher logits must be floating, found dtype {teacher_logits.dtype}")
    if teacher_logits.ndim != 3:
        raise ValueError(f"teacher logits must be [M, B, C], found shape {teacher_logits.shape}")
    check_temperature(temperature)
    count = teacher_logits.shape[0]
    shares = jnp.ones(count) if weights is None else jnp.asarray(weights)
    if shares.shape != (count,):
        raise ValueError(
            f"weights {shares.shape} and the logits of {count} teachers disagree; give [{count}]"
        )
    check_number(shares, "weights", lambda w: (w >= 0).all() & (w.sum() > 0), "at least 0, not all")
    log_p = jax.nn.log_softmax(wide(teacher_logits) / temperature)
    shares = (shares / shares.sum()).astype(log_p.dtype).reshape(-1, 1, 1)
    return temperature * jax.nn.logsumexp(log_p, axis=0, b=jnp.broadcast_to(shares, log_p.shape))


def mutual(
    logits: jax.Array, labels: jax.Array, *, temperature: jax.Array | float = 1.0
) -> jax.Array:
    """Trains students that all learn from each other: none is the teacher.

    Zhang et al., "Deep Mutual Learning" (2018): each one's cross-entropy, and the mean KL
    divergence from the others' predictions to its own.

    Args:
      logits: floating [K, B, C], of K students, at least 2.
      labels: integer [B], the true classes, in [0, C).
      temperature: T above 0 of the divergence, a number or a traced scalar.

    Returns:
      float32 [K, B] (float64 for float64 logits): the loss of each student on each example. No
      gradient of one student's loss reaches another, so their sum trains all of them.

    Raises:
      ValueError: if shapes disagree or a number is out of range.
      TypeError: if logits are not floating or labels not integer.

    Example:
      >>> logits = jnp.array([[[0.0, 0.0]], [[0.0, 2.0]]])
      >>> [f'{loss:.2f}' for loss in mutual(logits, jnp.array([1]))[:, 0]]
      ['1.02', '0.56']
    """
    if logits.ndim != 3 or logits.shape[0] < 2:
        raise ValueError(f"logits must be [K, B, C] of two or more students, found {logits.shape}")
    check_labels(labels, logits.shape[1])
    peers = logits.shape[0] - 1
    everyone = jnp.broadcast_to(labels, logits.shape[:2])
    hard = optax.losses.softmax_cross_entropy_with_integer_labels(wide(logits), everyone)
    rows = [
        sum(
            soft_targets(own, other, temperature)
            for number, other in enumerate(logits)
            if number != mine
        )
        for mine, own in enumerate(logits)
    ]
    return hard + jnp.stack(rows) / peers


def succession(
    teacher: Trained,
    students: Iterable[Student],
    fit: Callable[[Student, Trained], Trained],
) -> list[Trained]:
    """Trains students one after the other, each on what the one before it says.

    With ever smaller students these are the assistants of Mirzadeh et al., "Improved Knowledge
    Distillation via Teacher Assistant" (2020), for a student far smaller than its teacher. With the
    same network again and again, they are the generations of Furlanello et al., "Born-Again Neural
    Networks" (2018), whose `ensemble` may be better than each.

    Args:
      teacher: the first one, trained.
      students: untrained, in the order of training.
      fit: `fit(student, teacher) -> trained student`.

    Returns:
      The trained students, in order.

    Example:
      >>> succession(100, [50, 10], lambda student, teacher: (student + teacher) // 2)
      [75, 42]
    """
    trained: list[Trained] = []
    for student in students:
        teacher = fit(student, teacher)
        trained.append(teacher)
    return trained
