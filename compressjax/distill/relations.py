"""Relations: how the examples of a batch lie to each other, whatever space they lie in.

Student and teacher may differ in everything but the batch. Each loss is one value an example, and
its mean over the batch is what its paper defines.
"""

import jax
import jax.numpy as jnp
import optax

from compressjax.distill._arrays import features, unit


def similarity(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Measures how differently two networks find examples alike.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation" (2019): inner products of all
    pairs of examples, each row scaled to length 1, and the squared differences of these rows.

    Args:
      student: floating [B, ...].
      teacher: floating [B, ...]; no gradient flows into it.

    Returns:
      float32 [B] (float64 for float64 features); the mean is the paper's loss.

    Raises:
      ValueError: if the batches differ.
      TypeError: if features are not floating.

    Example:
      >>> student, teacher = jnp.eye(2), jnp.ones((2, 3))
      >>> print(similarity(student, teacher).round(3))
      [0.293 0.293]
    """
    student, teacher = features(student, teacher, rank=2, same=slice(1), what="the batch")
    rows = [unit(_flat(x) @ _flat(x).T) for x in (student, teacher)]
    return jnp.sum(jnp.square(rows[0] - rows[1]), axis=1) / student.shape[0]


def relational_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Compares the distances between examples, as parts of the mean distance.

    Park et al., "Relational Knowledge Distillation" (2019): the Huber loss of their differences,
    over all pairs of two examples.

    Args:
      student: floating [B, ...], B at least 2.
      teacher: floating [B, ...]; no gradient flows into it.

    Returns:
      float32 [B] (float64 for float64 features); the mean is that over all pairs.

    Raises:
      ValueError: if the batches differ or have one example.
      TypeError: if features are not floating.

    Example:
      >>> student = jnp.array([[0.0], [1.0], [2.0]])
      >>> print(relational_distance(student, 5.0 * student))
      [0. 0. 0.]
    """
    student, teacher = features(student, teacher, rank=2, same=slice(1), what="the batch")
    batch = _at_least(student, 2)
    pairs = ~jnp.eye(batch, dtype=bool)
    ratios = []
    for x in (student, teacher):
        _, length = _differences(_flat(x))
        mean = jnp.sum(length) / (batch * (batch - 1))
        ratios.append(length / jnp.where(mean > 0, mean, 1.0))
    loss = jnp.where(pairs, optax.losses.huber_loss(*ratios), 0.0)
    return jnp.sum(loss, axis=1) / (batch - 1)


def relational_angle(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Compares the angles that examples make, three by three.

    Park et al. (2019): the Huber loss of the differences of cosines, over all triples of three
    examples. It takes memory for B**3 numbers.

    Args:
      student: floating [B, ...], B at least 3.
      teacher: floating [B, ...]; no gradient flows into it.

    Returns:
      float32 [B] (float64 for float64 features), by the example in the corner; the mean is that
      over all triples.

    Raises:
      ValueError: if the batches differ or have under three examples.
      TypeError: if features are not floating.

    Example:
      >>> student = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> print(relational_angle(student, student[:, ::-1] * 3.0).round(6))
      [0. 0. 0.]
    """
    student, teacher = features(student, teacher, rank=2, same=slice(1), what="the batch")
    batch = _at_least(student, 3)
    apart = ~jnp.eye(batch, dtype=bool)
    triples = apart[:, :, None] & apart[:, None, :] & apart[None]
    cosines = []
    for x in (student, teacher):
        difference, length = _differences(_flat(x))
        unit = difference / jnp.where(length > 0, length, 1.0)[..., None]
        cosines.append(unit @ unit.mT)  # [corner, one, other]
    loss = jnp.where(triples, optax.losses.huber_loss(*cosines), 0.0)
    return jnp.sum(loss, axis=(1, 2)) / ((batch - 1) * (batch - 2))


def _at_least(student: jax.Array, count: int) -> int:
    if student.shape[0] < count:
        raise ValueError(
            f"student features {student.shape} have a batch of {student.shape[0]}; the relation "
            f"is one of {count} examples"
        )
    return student.shape[0]


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def _differences(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of all pairs, [B, B, F], and their lengths, [B, B]; equal ones have no gradient."""
    difference = x[None] - x[:, None]
    square = jnp.sum(jnp.square(difference), axis=-1)
    return difference, jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
