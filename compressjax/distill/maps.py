"""Maps: where a network looks, and what its channels respond to, compared without an adapter.

An attention map has no channels left, so a narrow student fits a wide teacher; a set of channels is
compared as a distribution, whose size does not matter. Positions must be the same for both.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from compressjax.distill._arrays import check_number, features, unit, wide

Kernel = Callable[[jax.Array, jax.Array], jax.Array]


def attention_map(x: jax.Array, power: float = 2.0) -> jax.Array:
    """Sums powers of activations over channels, and scales each example's map to length 1.

    Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017).

    Args:
      x: floating [B, ..., C] with positions in between.
      power: of absolute activations, at least 1.

    Returns:
      [B, P] at least float32, for P positions; 0 for an example whose activations all are.

    Example:
      >>> x = jnp.array([[[3.0, 0.0], [0.0, 2.0]]])
      >>> print(attention_map(x, power=1.0).round(3))
      [[0.832 0.555]]
    """
    sums = jnp.sum(jnp.abs(wide(x)) ** power, axis=-1).reshape(x.shape[0], -1)
    return unit(sums)


def attention_transfer(student: jax.Array, teacher: jax.Array, *, power: float = 2.0) -> jax.Array:
    """Measures how differently two networks look at an example.

    Zagoruyko and Komodakis (2017): the mean squared difference of `attention_map`s, as in the
    authors' code (the paper writes the distance itself). Across architectures it can hurt: see
    docs/distillation.md.

    Args:
      student: floating [B, ..., C].
      teacher: floating [B, ..., D], with the same positions; no gradient flows into it.
      power: of absolute activations, at least 1.

    Returns:
      float32 [B] (float64 for float64 features), one loss an example.

    Raises:
      ValueError: if batch or positions differ, or the power is under 1.
      TypeError: if features are not floating.

    Example:
      >>> student, teacher = jnp.ones((1, 2, 3)), jnp.array([[[1.0], [0.0]]])
      >>> print(attention_transfer(student, teacher).round(3))
      [0.293]
    """
    check_number(power, "power", lambda p: p >= 1, "at least 1")
    student, teacher = features(student, teacher, rank=3, same=slice(-1), what="positions")
    difference = attention_map(student, power) - attention_map(teacher, power)
    return jnp.mean(jnp.square(difference), axis=-1)


def linear_kernel() -> Kernel:
    """Compares responses by their inner product: MMD then compares their means.

    Returns:
      A kernel for `neuron_selectivity`.

    Example:
      >>> float(linear_kernel()(jnp.array(0.5), jnp.array(0.0)))
      0.5
    """
    return lambda products, cross: products


def polynomial_kernel(degree: int = 2, offset: float = 0.0) -> Kernel:
    """Compares responses by a power of their inner product, as Huang and Wang (2017) do.

    Args:
      degree: of the polynomial.
      offset: added before the power is taken.

    Returns:
      A kernel for `neuron_selectivity`.

    Example:
      >>> float(polynomial_kernel()(jnp.array(0.5), jnp.array(0.0)))
      0.25
    """
    return lambda products, cross: (products + offset) ** degree


def gaussian_kernel() -> Kernel:
    """Compares responses by a Gaussian whose variance is their mean squared distance.

    Returns:
      A kernel for `neuron_selectivity`.

    Example:
      >>> float(gaussian_kernel()(jnp.ones((1, 1, 1)), jnp.zeros((1, 1, 1)))[0, 0, 0])
      1.0
    """

    def kernel(products: jax.Array, cross: jax.Array) -> jax.Array:
        variance = jnp.mean(2.0 - 2.0 * jax.lax.stop_gradient(cross), axis=(1, 2), keepdims=True)
        return jnp.exp(-(1.0 - products) / jnp.maximum(variance, 1e-12))

    return kernel


def neuron_selectivity(
    student: jax.Array, teacher: jax.Array, *, kernel: Kernel | None = None
) -> jax.Array:
    """Measures how differently the channels of two networks select what they respond to.

    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer" (2017):
    the squared maximum mean discrepancy between the two sets of channels, each channel being its
    map over positions, scaled to length 1.

    Args:
      student: floating [B, ..., C].
      teacher: floating [B, ..., D], with the same positions; no gradient flows into it.
      kernel: `kernel(products, cross)`, of inner products of channels, [B, M, N] (from -1 to 1),
        and of those of the teacher's with the student's; `polynomial_kernel()` unless given.

    Returns:
      float32 [B] (float64 for float64 features), one loss an example.

    Raises:
      ValueError: if batch or positions differ.
      TypeError: if features are not floating.

    Example:
      >>> student = jnp.array([[[1.0], [0.0]]])
      >>> teacher = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> print(neuron_selectivity(student, teacher, kernel=linear_kernel()))
      [0.5]
    """
    student, teacher = features(student, teacher, rank=3, same=slice(-1), what="positions")
    of_student, of_teacher = (
        unit(jnp.moveaxis(x.reshape(x.shape[0], -1, x.shape[-1]), 1, 2)) for x in (student, teacher)
    )
    chosen = kernel or polynomial_kernel()
    cross = of_teacher @ of_student.mT

    def mean(products: jax.Array) -> jax.Array:
        return jnp.mean(chosen(products, cross), axis=(1, 2))

    within = mean(of_teacher @ of_teacher.mT) + mean(of_student @ of_student.mT)
    return within - 2.0 * mean(cross)
