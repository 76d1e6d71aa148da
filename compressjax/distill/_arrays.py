"""What every loss here asks of its arrays and does to them, said once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_logits(student: jax.Array, teacher: jax.Array) -> None:
    """Refuses logits that are not floating [B, C], or that disagree."""
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


def check_labels(labels: jax.Array, batch: int) -> None:
    """Refuses labels that are not integer [B]."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integer classes, found dtype {labels.dtype}")
    if labels.shape != (batch,):
        raise ValueError(
            f"labels {labels.shape} and logits of {batch} examples disagree in the batch; labels "
            f"must be [{batch}]"
        )


def check_number(
    value: jax.Array | float, name: str, good: Callable[[Any], Any], rule: str
) -> None:
    """Refuses a value that is not good; a traced value cannot be seen and passes."""
    if not isinstance(value, jax.core.Tracer) and not np.all(good(np.asarray(value))):
        raise ValueError(f"{name} must be {rule}, found {value}")


def check_temperature(temperature: jax.Array | float) -> None:
    """Refuses a temperature that is not above 0 and finite."""
    good = "above 0 and finite"
    check_number(temperature, "temperature", lambda t: (t > 0) & np.isfinite(t), good)


def features(
    student: jax.Array, teacher: jax.Array, *, rank: int, same: slice, what: str
) -> tuple[jax.Array, jax.Array]:
    """Brings features to at least float32, the teacher's without gradient.

    Args:
      student: floating, the batch first.
      teacher: likewise.
      rank: axes that each must have at least.
      same: the part of their shapes that must be the same.
      what: what these axes are, for the message.

    Returns:
      Both.

    Raises:
      ValueError: if the shapes disagree there.
      TypeError: if they are not floating.
    """
    for name, x in (("student", student), ("teacher", teacher)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name} features must be floating, found dtype {x.dtype}")
        if x.ndim < rank:
            raise ValueError(f"{name} features {x.shape} have {x.ndim} axes, expected {rank}")
    if student.shape[same] != teacher.shape[same]:
        raise ValueError(
            f"student features {student.shape} and teacher features {teacher.shape} disagree in "
            f"{what}; compare other places, or bring the student's to the teacher's shape first "
            "(distill.init_adapter and distill.adapt for channels, jax.image.resize for maps)"
        )
    return wide(student), wide(jax.lax.stop_gradient(teacher))


def wide(x: jax.Array) -> jax.Array:
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def unit(x: jax.Array) -> jax.Array:
    """Scales the last axis to length 1; what is 0 stays, with no gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    some = square > 0
    return jnp.where(some, x * jax.lax.rsqrt(jnp.where(some, square, 1.0)), 0.0)
