"""Distillation: losses that train a small student on what a large teacher says.

Every loss is a pure function on arrays and returns one value an example, so it works with any
model, any batch weighting and any optimizer; how logits are computed is the caller's business.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _check_logits(student: jax.Array, teacher: jax.Array) -> None:
    for name, logits in (("student", student), ("teacher", teacher)):
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise TypeError(f"{name} logits must be floating, found dtype {logits.dtype}")
        if logits.ndim != 2:
            raise ValueError(f"{name} logits must be [B, C], found shape {logits.shape}")
    if student.shape != teacher.shape:
        raise ValueError(
            f"student logits {student.shape} and teacher logits {teacher.shape} disagree in "
            "[B, C]; both must see the same batch and the same classes"
        )


def _check_number(
    value: jax.Array | float, name: str, good: Callable[[Any], Any], rule: str
) -> None:
    """Refuses a value that is not good; a traced value cannot be seen and passes."""
    if not isinstance(value, jax.core.Tracer) and not np.all(good(np.asarray(value))):
        raise ValueError(f"{name} must be {rule}, found {value}")


def _compute_dtype(logits: jax.Array) -> jnp.dtype:
    return jnp.promote_types(logits.dtype, jnp.float32)


def soft_targets(
    student_logits: jax.Array, teacher_logits: jax.Array, temperature: jax.Array | float = 4.0
) -> jax.Array:
    """Measures how far a student's softened predictions are from its teacher's.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2: with
    `p = softmax(teacher / T)` and `q = softmax(student / T)`, this is `T**2 * KL(p || q)`. The KL
    divergence has the gradients of the paper's cross-entropy and is 0 where student and teacher
    agree; `T**2` keeps the size of the gradients as T changes.

    Args:
      student_logits: floating [B, C].
      teacher_logits: floating [B, C]; no gradient flows into them.
      temperature: T above 0 and finite, a number or a traced scalar.

    Returns:
      float32 [B] (float64 for float64 logits), one loss an example.

    Raises:
      ValueError: if the shapes differ or are not [B, C], or a number for `temperature` is not
        above 0.
      TypeError: if logits are not floating.

    Example:
      >>> loss = soft_targets(jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 2.0]]), temperature=2.0)
      >>> print(loss.round(2))
      [0.44]
    """
    _check_logits(student_logits, teacher_logits)
    _check_number(
        temperature, "temperature", lambda t: (t > 0) & np.isfinite(t), "above 0 and finite"
    )
    teacher = jax.lax.stop_gradient(teacher_logits).astype(_compute_dtype(teacher_logits))
    student = student_logits.astype(_compute_dtype(student_logits))
    log_p = jax.nn.log_softmax(teacher / temperature)
    log_q = jax.nn.log_softmax(student / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def hinton(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    *,
    temperature: jax.Array | float = 4.0,
    alpha: jax.Array | float = 0.9,
) -> jax.Array:
    """Weighs a teacher's soft targets against the true labels.

    Hinton et al. 2015, section 2: `alpha * soft_targets + (1 - alpha) * cross_entropy`, the second
    at temperature 1.

    Args:
      student_logits: floating [B, C].
      teacher_logits: floating [B, C]; no gradient flows into them.
      labels: integer [B], the true classes, in [0, C).
      temperature: T above 0 of the soft part, a number or a traced scalar.
      alpha: weight of the soft part in [0, 1], a number or a traced scalar.

    Returns:
      float32 [B] (float64 for float64 logits), one loss an example.

    Raises:
      ValueError: if shapes disagree, or a number for `temperature` or `alpha` is out of range.
      TypeError: if logits are not floating or labels not integer.

    Example:
      >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 2.0]])
      >>> print(hinton(student, teacher, jnp.array([1]), temperature=2.0, alpha=0.5).round(2))
      [0.57]
    """
    _check_logits(student_logits, teacher_logits)
    _check_number(alpha, "alpha", lambda a: (a >= 0) & (a <= 1), "in [0, 1]")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integer classes, found dtype {labels.dtype}")
    if labels.shape != student_logits.shape[:1]:
        raise ValueError(
            f"labels {labels.shape} and student logits {student_logits.shape} disagree in the "
            f"batch; labels must be [{student_logits.shape[0]}]"
        )
    log_q = jax.nn.log_softmax(student_logits.astype(_compute_dtype(student_logits)))
    hard = -jnp.take_along_axis(log_q, labels[:, None], axis=-1)[:, 0]
    soft = soft_targets(student_logits, teacher_logits, temperature)
    return alpha * soft + (1 - alpha) * hard
