"""Distillation losses: gradients in float64, limits from the paper, and what they refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import distill


def _case(dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(scale=3, size=(2, 6, 4))
    return student.astype(dtype), teacher.astype(dtype), rng.integers(0, 4, 6).astype(np.int32)


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.0), (4.0, 0.9), (0.5, 1.0)])
def test_gradient_is_the_finite_difference(temperature: float, alpha: float) -> None:
    with jax.enable_x64(True):
        student, teacher, labels = _case()

        def loss(logits: jax.Array) -> jax.Array:
            return distill.hinton(
                logits, jnp.asarray(teacher), labels, temperature=temperature, alpha=alpha
            ).sum()

        found = jax.grad(loss)(jnp.asarray(student))
        assert found.dtype == jnp.float64
        expected = np.zeros_like(student)
        step = 1e-5
        for index in np.ndindex(*student.shape):
            shift = np.zeros_like(student)
            shift[index] = step
            rise = loss(jnp.asarray(student + shift)) - loss(jnp.asarray(student - shift))
            expected[index] = rise / (2 * step)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_gradient_of_soft_targets_is_the_paper_s() -> None:
    # Equation 2 times T**2: T * (softmax(z / T) - softmax(v / T)).
    student, teacher, _ = _case(np.float32)
    found = jax.grad(lambda z: distill.soft_targets(z, jnp.asarray(teacher), 3.0).sum())(
        jnp.asarray(student)
    )
    difference = jax.nn.softmax(student / 3) - jax.nn.softmax(teacher / 3)
    np.testing.assert_allclose(found, 3 * difference, rtol=1e-4, atol=1e-5)


def test_high_temperature_is_logit_matching() -> None:
    # Equation 4: with centred logits the gradient tends to (z - v) / C, here times T**2 / T**2.
    student, teacher, _ = _case()
    student -= student.mean(-1, keepdims=True)
    teacher -= teacher.mean(-1, keepdims=True)
    with jax.enable_x64(True):
        found = jax.grad(lambda z: distill.soft_targets(z, jnp.asarray(teacher), 1e4).sum())(
            jnp.asarray(student)
        )
    np.testing.assert_allclose(found, (student - teacher) / 4, rtol=1e-2, atol=1e-3)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher, labels = map(jnp.asarray, _case(np.float32))
    gradient = jax.grad(lambda v: distill.hinton(student, v, labels).sum())(teacher)
    assert not gradient.any()


def test_agreement_costs_nothing() -> None:
    student, _, _ = map(jnp.asarray, _case(np.float32))
    np.testing.assert_array_equal(distill.soft_targets(student, student, 2.0), 0)


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher, labels = map(jnp.asarray, _case(np.float32))
    half = distill.hinton(student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16), labels)
    assert half.dtype == jnp.float32
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (student, teacher)]
    np.testing.assert_array_equal(half, distill.hinton(*rounded, labels))


def test_extreme_logits_stay_finite() -> None:
    student, teacher = jnp.array([[1e4, -1e4]]), jnp.array([[-1e4, 1e4]])
    loss, gradient = jax.value_and_grad(
        lambda z: distill.hinton(z, teacher, jnp.array([0]), temperature=1.0).sum()
    )(student)
    assert jnp.isfinite(loss)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_a_temperature_out_of_range(temperature: float) -> None:
    student, teacher, _ = map(jnp.asarray, _case(np.float32))
    with pytest.raises(ValueError, match=f"temperature must be above 0 .*found {temperature}"):
        distill.soft_targets(student, teacher, temperature)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_refuses_alpha_out_of_range(alpha: float) -> None:
    student, teacher, labels = map(jnp.asarray, _case(np.float32))
    with pytest.raises(ValueError, match=rf"alpha must be in \[0, 1\], found {alpha}"):
        distill.hinton(student, teacher, labels, alpha=alpha)


def test_refuses_arrays_that_disagree() -> None:
    student, teacher, labels = map(jnp.asarray, _case(np.float32))
    with pytest.raises(ValueError, match=r"student logits \(6, 4\) .* teacher logits \(6, 3\)"):
        distill.soft_targets(student, teacher[:, :3])
    with pytest.raises(
        ValueError, match=r"teacher logits must be \[B, C\], found shape \(6, 4, 1\)"
    ):
        distill.soft_targets(student, teacher[..., None])
    with pytest.raises(TypeError, match="student logits must be floating, found dtype int32"):
        distill.soft_targets(student.astype(jnp.int32), teacher)
    with pytest.raises(ValueError, match=r"labels \(5,\) and logits of 6 examples"):
        distill.hinton(student, teacher, labels[:5])
    with pytest.raises(TypeError, match="labels must be integer classes, found dtype float32"):
        distill.hinton(student, teacher, labels.astype(jnp.float32))
