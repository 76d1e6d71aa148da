"""Distillation of logits: losses that train a student on what a teacher says in the end.

`hints`, `maps`, `relations` and `contrast` are the neighbours that compare what happens on the way.
"""

import jax
import jax.numpy as jnp
import optax

from compressjax.distill._arrays import (
    check_labels,
    check_logits,
    check_number,
    check_temperature,
    wide,
)


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
    check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    teacher = wide(jax.lax.stop_gradient(teacher_logits))
    student = wide(student_logits)
    log_p = jax.nn.log_softmax(teacher / temperature)
    log_q = jax.nn.log_softmax(student / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(log_q, log_p)


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
    check_logits(student_logits, teacher_logits)
    check_number(alpha, "alpha", lambda a: (a >= 0) & (a <= 1), "in [0, 1]")
    check_labels(labels, student_logits.shape[0])
    hard = optax.losses.softmax_cross_entropy_with_integer_labels(wide(student_logits), labels)
    soft = soft_targets(student_logits, teacher_logits, temperature)
    return alpha * soft + (1 - alpha) * hard


def logits_regression(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Measures the squared distance of a student's logits from its teacher's.

    Ba and Caruana, "Do Deep Nets Really Need to be Deep?" (2014): half the squared distance of the
    logits before the softmax, which keeps what a softmax of confident logits hides.

    Args:
      student_logits: floating [B, C].
      teacher_logits: floating [B, C]; no gradient flows into them.

    Returns:
      float32 [B] (float64 for float64 logits), one loss an example.

    Raises:
      ValueError: if the shapes differ or are not [B, C].
      TypeError: if logits are not floating.

    Example:
      >>> print(logits_regression(jnp.array([[0.0, 1.0]]), jnp.array([[2.0, 1.0]])))
      [2.]
    """
    check_logits(student_logits, teacher_logits)
    difference = wide(student_logits) - wide(jax.lax.stop_gradient(teacher_logits))
    return 0.5 * jnp.sum(jnp.square(difference), axis=-1)


def decoupled(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    *,
    temperature: jax.Array | float = 4.0,
    alpha: jax.Array | float = 1.0,
    beta: jax.Array | float = 8.0,
) -> jax.Array:
    """Weighs what a teacher says of the true class apart from what it says of the others.

    Zhao et al., "Decoupled Knowledge Distillation" (2022): `T**2 * (alpha * TCKD + beta * NCKD)`.
    TCKD is the KL divergence of `(p, 1 - p)`, where p is the probability of the true class; NCKD
    that of the probabilities among the other classes. In `soft_targets` the second is weighed by
    `1 - p` of the teacher, which is small just where the teacher is sure.

    Args:
      student_logits: floating [B, C].
      teacher_logits: floating [B, C]; no gradient flows into them.
      labels: integer [B], the true classes, in [0, C).
      temperature: T above 0, a number or a traced scalar.
      alpha: weight of the true class's part, at least 0; a number, a traced scalar or [B].
      beta: weight of the other classes' part, at least 0; the same.

    Returns:
      float32 [B] (float64 for float64 logits), one loss an example, to be added to the
      cross-entropy with the labels.

    Raises:
      ValueError: if shapes disagree, or a number is out of range.
      TypeError: if logits are not floating or labels not integer.

    Example:
      >>> student, teacher = jnp.zeros((1, 3)), jnp.array([[2.0, 1.0, 0.0]])
      >>> loss = decoupled(student, teacher, jnp.array([0]), temperature=1.0, beta=2.0)
      >>> print(f'{loss[0]:.3f}')
      0.451
    """
    check_logits(student_logits, teacher_logits)
    check_labels(labels, student_logits.shape[0])
    check_temperature(temperature)
    for name, weight in (("alpha", alpha), ("beta", beta)):
        check_number(weight, name, lambda x: x >= 0, "at least 0")
    teacher = wide(jax.lax.stop_gradient(teacher_logits)) / temperature
    (log_p, others_p), (log_q, others_q) = (
        _split(logits, labels) for logits in (teacher, wide(student_logits) / temperature)
    )
    divergence = optax.losses.kl_divergence_with_log_targets
    target, others = divergence(log_q, log_p), divergence(others_q, others_p)
    return temperature**2 * (alpha * target + beta * others)


def _split(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log probabilities of the true class against all others, [B, 2], and among those, [B, C-1]."""
    order = jnp.arange(logits.shape[1] - 1)[None]
    column = labels[:, None].astype(order.dtype)
    true = jnp.take_along_axis(logits, column, axis=1)
    others = jnp.take_along_axis(logits, order + (order >= column), axis=1)
    rest = jax.nn.logsumexp(others, axis=1, keepdims=True)
    return jax.nn.log_softmax(jnp.concatenate([true, rest], axis=1)), jax.nn.log_softmax(others)


def virtual_teacher(
    labels: jax.Array, num_classes: int, *, correct: jax.Array | float = 0.99
) -> jax.Array:
    """Makes the logits of a teacher who is right, and knows nothing else: label smoothing.

    Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization" (2020): the
    true class gets a probability, all others share the rest evenly; at a temperature it becomes
    softer, as any teacher. Pass the logits to `soft_targets` or `hinton`.

    Args:
      labels: integer [B], the true classes, in [0, C).
      num_classes: C, at least 2.
      correct: probability of the true class, above 1 / C and under 1; a number or traced scalar.

    Returns:
      float32 [B, C]: logarithms of the probabilities.

    Raises:
      ValueError: if `correct` or `num_classes` is out of range or labels are not [B].
      TypeError: if labels are not integer.

    Example:
      >>> logits = virtual_teacher(jnp.array([1]), 3, correct=0.8)
      >>> print((10 * jnp.exp(logits)).round())
      [[1. 8. 1.]]
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, expected at least 2")
    least = 1.0 / num_classes
    check_number(
        correct, "correct", lambda p: (p > least) & (p < 1), f"above {least:.3g} and under 1"
    )
    check_labels(labels, labels.shape[0] if labels.ndim == 1 else -1)
    chosen = jax.nn.one_hot(labels, num_classes, dtype=bool)
    return jnp.log(jnp.where(chosen, correct, (1.0 - correct) / (num_classes - 1)))
