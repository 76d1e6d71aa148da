"""Contrast: a student's features of an example should tell which of its teacher's belong to it.

The other examples come from a bank of embeddings seen before. Heads, bank and the choice of
negatives are all explicit: parameters, a state that is passed in and out, and a key.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.distill._arrays import check_number, check_temperature, features, unit
from compressjax.distill.hints import Adapter, adapt


class Bank(NamedTuple):
    """Embeddings of all examples of a data set, as they were last seen.

    Attributes:
      student: [N, D], of length 1.
      teacher: [N, D], of length 1.
    """

    student: jax.Array
    teacher: jax.Array


def init_bank(rng: jax.Array, num_examples: int, dim: int) -> Bank:
    """Draws random directions for every example.

    Args:
      rng: a key.
      num_examples: N, of the data set.
      dim: D, of the embeddings.

    Returns:
      The bank, float32.

    Example:
      >>> init_bank(jax.random.key(0), 100, 8).teacher.shape
      (100, 8)
    """
    return Bank(*unit(jax.random.normal(rng, (2, num_examples, dim))))


def embed(head: Adapter, x: jax.Array) -> jax.Array:
    """Maps features to a direction.

    Args:
      head: from `init_adapter(rng, (1, F), (1, D))`.
      x: [B, ...] with F features an example.

    Returns:
      [B, D], of length 1.

    Raises:
      ValueError: if the head was made for another number of features.

    Example:
      >>> head = {'kernel': jnp.eye(2), 'bias': jnp.zeros(2)}
      >>> print((5 * embed(head, jnp.array([[3.0, 4.0]]))).round())
      [[3. 4.]]
    """
    return unit(adapt(head, x.reshape(x.shape[0], -1)))


def contrastive(
    student: jax.Array,
    teacher: jax.Array,
    indices: jax.Array,
    bank: Bank,
    rng: jax.Array,
    *,
    negatives: int = 1024,
    temperature: jax.Array | float = 0.07,
    momentum: float = 0.5,
) -> tuple[jax.Array, Bank]:
    """Tells an example's embeddings from those of others, in both directions.

    Tian et al., "Contrastive Representation Distillation" (2020): with the critic `h = e / (e + K /
    N)`, `e = exp(<student, teacher> / T)`, for K negatives out of N examples, the loss is `-log h`
    of the pair that belongs together and `-log(1 - h)` of the others, once with the student's and
    once with the teacher's embeddings from the bank. Both heads learn; give the teacher's features
    without gradient.

    Args:
      student: floating [B, D], from `embed`.
      teacher: floating [B, D], from `embed`.
      indices: integer [B], the examples' positions in the data set.
      bank: of the whole data set.
      rng: a key, from which the negatives are drawn; one may be of an example's own.
      negatives: K, for each example.
      temperature: T above 0, a number or a traced scalar.
      momentum: the part of an old embedding that stays in the bank, in [0, 1).

    Returns:
      float32 [B], one loss an example, and the bank with the batch's embeddings.

    Raises:
      ValueError: if shapes disagree or a number is out of range.
      TypeError: if embeddings are not floating.

    Example:
      >>> bank = init_bank(jax.random.key(0), 10, 2)
      >>> x = jnp.array([[1.0, 0.0]])
      >>> loss, bank = contrastive(x, x, jnp.array([3]), bank, jax.random.key(1), negatives=4)
      >>> loss.shape, bank.student.shape
      ((1,), (10, 2))
    """
    features(student, teacher, rank=2, same=slice(None), what="shape")
    check_temperature(temperature)
    check_number(momentum, "momentum", lambda m: (m >= 0) & (m < 1), "in [0, 1)")
    total, dim = bank.teacher.shape
    if student.shape[1] != dim:
        raise ValueError(
            f"embeddings {student.shape} and the bank's {bank.teacher.shape} disagree in size; "
            "make the bank with init_bank for them"
        )
    drawn = jax.random.randint(rng, (student.shape[0], negatives), 0, total)
    ratio = jnp.log(negatives / total)
    own = jnp.sum(student * teacher, axis=1) / temperature
    loss = -2.0 * jax.nn.log_sigmoid(own - ratio)
    for anchor, others in ((student, bank.teacher), (teacher, bank.student)):
        scores = jnp.einsum("bd,bkd->bk", anchor, jax.lax.stop_gradient(others)[drawn])
        # log(1 - h) = log(K / N) - log(e + K / N)
        loss -= jnp.sum(jax.nn.log_sigmoid(ratio - scores / temperature), axis=1)
    rows = [
        old.at[indices].set(unit(momentum * old[indices] + (1 - momentum) * new))
        for old, new in zip(bank, jax.lax.stop_gradient((student, teacher)), strict=True)
    ]
    return loss, Bank(*rows)
