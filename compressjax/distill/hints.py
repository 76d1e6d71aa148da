"""Hints: a student's features should be its teacher's, after a small learned map.

The map is part of the loss, not of the student: its parameters are trained beside the student's and
then thrown away. `maps` and `relations` are the neighbours that need none.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from compressjax.distill._arrays import features

Adapter = dict[str, jax.Array]


def init_adapter(
    rng: jax.Array, student_shape: Sequence[int], teacher_shape: Sequence[int]
) -> Adapter:
    """Draws a linear map from a student's channels to its teacher's: a 1x1 convolution of maps.

    Args:
      rng: a key.
      student_shape: of the student's features, [B, ..., C]; the batch does not matter.
      teacher_shape: of the teacher's, [B, ..., D].

    Returns:
      `kernel` [C, D] and `bias` [D], float32.

    Raises:
      ValueError: if the shapes disagree between batch and channels.

    Example:
      >>> adapter = init_adapter(jax.random.key(0), (8, 4, 4, 16), (8, 4, 4, 64))
      >>> adapter['kernel'].shape
      (16, 64)
    """
    student, teacher = tuple(student_shape), tuple(teacher_shape)
    if student[1:-1] != teacher[1:-1] or len(student) < 2:
        raise ValueError(
            f"student features {student} and teacher features {teacher} disagree in positions; an "
            "adapter maps channels alone: choose places of the same size, or resize one "
            "(jax.image.resize)"
        )
    init = jax.nn.initializers.lecun_normal()
    kernel = init(rng, (student[-1], teacher[-1]), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(teacher[-1], jnp.float32)}


def adapt(adapter: Adapter, student: jax.Array) -> jax.Array:
    """Maps a student's channels.

    Args:
      adapter: from `init_adapter`.
      student: [B, ..., C].

    Returns:
      [B, ..., D].

    Raises:
      ValueError: if the adapter was made for another number of channels.

    Example:
      >>> adapter = {'kernel': jnp.array([[1.0, 2.0]]), 'bias': jnp.array([0.0, 1.0])}
      >>> print(adapt(adapter, jnp.ones((1, 1))))
      [[1. 3.]]
    """
    if student.shape[-1] != adapter["kernel"].shape[0]:
        raise ValueError(
            f"student features {student.shape} and the adapter's kernel "
            f"{adapter['kernel'].shape} disagree in channels; make one with init_adapter for them"
        )
    bias = adapter["bias"].reshape((1,) * (student.ndim - 1) + (-1,))
    return student @ adapter["kernel"] + bias


def hint(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Measures how far a student's features are from its teacher's.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (2015): half the squared distance, here
    divided by the number of features, so that its weight does not depend on where it is taken.

    Args:
      student: floating [B, ...], adapted to the teacher's shape.
      teacher: floating [B, ...]; no gradient flows into it.

    Returns:
      float32 [B] (float64 for float64 features), one loss an example.

    Raises:
      ValueError: if the shapes differ.
      TypeError: if features are not floating.

    Example:
      >>> print(hint(jnp.array([[0.0, 1.0]]), jnp.array([[2.0, 1.0]])))
      [1.]
    """
    student, teacher = features(student, teacher, rank=2, same=slice(None), what="shape")
    axes = tuple(range(1, student.ndim))
    return 0.5 * jnp.mean(jnp.square(student - teacher), axis=axes)
