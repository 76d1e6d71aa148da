"""Losses between features: gradients in float64, what they do not see, and what they refuse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import distill


def _maps(channels: int, seed: int = 0, batch: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 3, 2, channels))


_LABELS = np.array([0, 2, 1, 3])
_BANK = distill.Bank(*np.random.default_rng(9).normal(size=(2, 7, 5)))


def _contrast(student: jax.Array, teacher: jax.Array) -> jax.Array:
    bank = jax.tree.map(jnp.asarray, _BANK)
    return distill.contrastive(
        student, teacher, jnp.arange(4), bank, jax.random.key(0), negatives=3, temperature=0.5
    )[0]


LOSSES: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    "logits regression": (distill.logits_regression, (4, 5), (4, 5)),
    "decoupled": (
        lambda s, t: distill.decoupled(s, t, _LABELS, temperature=2.0),
        (4, 5),
        (4, 5),
    ),
    "hint": (distill.hint, (4, 3, 2, 3), (4, 3, 2, 3)),
    "attention": (distill.attention_transfer, (4, 3, 2, 3), (4, 3, 2, 5)),
    "attention, third power": (
        lambda s, t: distill.attention_transfer(s, t, power=3.0),
        (4, 3, 2, 3),
        (4, 3, 2, 5),
    ),
    "selectivity, linear": (
        lambda s, t: distill.neuron_selectivity(s, t, kernel=distill.linear_kernel()),
        (4, 3, 2, 3),
        (4, 3, 2, 5),
    ),
    "selectivity, polynomial": (distill.neuron_selectivity, (4, 3, 2, 3), (4, 3, 2, 5)),
    "similarity": (distill.similarity, (4, 3, 2, 3), (4, 7)),
    "relational distance": (distill.relational_distance, (4, 6), (4, 3, 2, 3)),
    "relational angle": (distill.relational_angle, (4, 6), (4, 3, 2, 3)),
    "contrastive": (_contrast, (4, 5), (4, 5)),
    "mutual": (
        lambda s, t: distill.mutual(jnp.stack([s, jax.lax.stop_gradient(t)]), _LABELS)[0],
        (4, 5),
        (4, 5),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_finite_difference_and_none_reaches_the_teacher(name: str) -> None:
    function, student_shape, teacher_shape = LOSSES[name]
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=student_shape), rng.normal(size=teacher_shape)
    with jax.enable_x64(True):
        loss = jax.jit(lambda s, t: function(s, t).sum())
        found, to_teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(student, teacher)
        if name != "contrastive":  # both of its heads learn
            np.testing.assert_array_equal(to_teacher, 0.0)
        assert found.dtype == jnp.float64
        step, expected = 1e-5, np.zeros(student.size)
        for i in range(student.size):
            shift = np.zeros(student.size)
            shift[i] = step
            shift = shift.reshape(student.shape)
            expected[i] = (loss(student + shift, teacher) - loss(student - shift, teacher)) / (
                2 * step
            )
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"contrastive", "mutual"}))
def test_agreement_costs_nothing_and_has_finite_gradients(name: str) -> None:
    function, _, shape = LOSSES[name]
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    x[0] = x[1]  # two examples alike: their distance has no direction
    np.testing.assert_allclose(function(jnp.asarray(x), x), 0.0, atol=1e-6)
    gradient = jax.grad(lambda s: function(s, x).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


@pytest.mark.parametrize(
    "loss", [distill.attention_transfer, distill.neuron_selectivity, distill.similarity]
)
def test_dead_features_have_finite_gradients(loss: Callable[..., jax.Array]) -> None:
    teacher = _maps(3).astype(np.float32)
    value, gradient = jax.value_and_grad(lambda s: loss(s, teacher).sum())(jnp.zeros((4, 3, 2, 3)))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_attention_does_not_see_sizes_or_the_order_of_channels() -> None:
    student, teacher = _maps(3).astype(np.float32), _maps(5, 1).astype(np.float32)
    found = distill.attention_transfer(student, teacher)
    same = distill.attention_transfer(-4 * student[..., ::-1], 0.1 * teacher)
    np.testing.assert_allclose(found, same, rtol=1e-5)
    assert (found > 0).all()


def test_relations_do_not_see_where_the_space_lies() -> None:
    rng = np.random.default_rng(3)
    student, teacher = rng.normal(size=(2, 6, 4)).astype(np.float32)
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    moved = (3 * student @ turn + 7).astype(np.float32)
    for loss in (distill.relational_distance, distill.relational_angle):
        np.testing.assert_allclose(loss(moved, teacher), loss(student, teacher), rtol=1e-3)
        np.testing.assert_allclose(loss(moved, student), 0.0, atol=1e-5)
    turned = (student @ turn).astype(np.float32)
    np.testing.assert_allclose(distill.similarity(turned, student), 0.0, atol=1e-5)


def test_decoupled_is_the_soft_targets_at_their_weights() -> None:
    rng = np.random.default_rng(4)
    student, teacher = rng.normal(size=(2, 4, 5)).astype(np.float32)
    teacher *= 3
    p = jax.nn.softmax(teacher / 2)[np.arange(4), _LABELS]
    found = distill.decoupled(student, teacher, _LABELS, temperature=2.0, alpha=1.0, beta=1 - p)
    np.testing.assert_allclose(found, distill.soft_targets(student, teacher, 2.0), rtol=1e-4)


def test_a_virtual_teacher_at_temperature_one_is_label_smoothing() -> None:
    logits = np.random.default_rng(5).normal(size=(4, 5)).astype(np.float32)
    teacher = distill.virtual_teacher(_LABELS, 5, correct=0.9)
    p = np.full((4, 5), 0.025)
    p[np.arange(4), _LABELS] = 0.9
    found = jax.grad(lambda z: distill.soft_targets(z, teacher, 1.0).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(found, jax.nn.softmax(logits) - p, atol=1e-6)


def test_an_adapter_learns_to_map_a_student_to_its_teacher() -> None:
    student = jnp.asarray(_maps(3, batch=16), jnp.float32)
    teacher = student @ np.random.default_rng(6).normal(size=(3, 5)).astype(np.float32) + 1
    adapter = distill.init_adapter(jax.random.key(0), student.shape, teacher.shape)
    loss = lambda adapter: distill.hint(distill.adapt(adapter, student), teacher).mean()  # noqa: E731
    before = loss(adapter)
    step = jax.jit(lambda a: jax.tree.map(lambda x, g: x - 1.0 * g, a, jax.grad(loss)(a)))
    for _ in range(200):
        adapter = step(adapter)
    assert loss(adapter) < 1e-3 * before


def test_contrast_is_lower_for_pairs_that_belong_together() -> None:
    rng = np.random.default_rng(7)
    head = distill.init_adapter(jax.random.key(0), (1, 6), (1, 5))
    x = rng.normal(size=(7, 6)).astype(np.float32)
    embedded = distill.embed(head, x)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1.0, rtol=1e-5)
    bank = distill.Bank(embedded, embedded)
    indices, key = jnp.arange(7), jax.random.key(1)
    right, after = distill.contrastive(embedded, embedded, indices, bank, key, negatives=4)
    wrong, _ = distill.contrastive(embedded, embedded[::-1], indices, bank, key, negatives=4)
    assert right.mean() < wrong.mean()
    np.testing.assert_allclose(after.student, embedded, atol=1e-5)  # they were there before


def test_a_bank_moves_towards_what_is_seen_and_stays_elsewhere() -> None:
    bank = distill.init_bank(jax.random.key(0), 6, 3)
    new = jnp.eye(3)[:2]
    indices = jnp.array([4, 1])
    args = (new, new, indices, bank, jax.random.key(1))
    _, after = distill.contrastive(*args, negatives=2, momentum=0.25)
    mixed = 0.25 * bank.teacher[indices] + 0.75 * new
    expected = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    np.testing.assert_allclose(after.teacher[indices], expected, rtol=1e-5)
    others = np.array([0, 2, 3, 5])
    np.testing.assert_array_equal(after.teacher[others], bank.teacher[others])


def test_a_succession_hands_each_student_to_the_next() -> None:
    seen = []
    trained = distill.succession("a", ["b", "c"], lambda s, t: seen.append((s, t)) or s.upper())
    assert trained == ["B", "C"] and seen == [("b", "a"), ("c", "B")]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distill.hint(_maps(3), _maps(5)), r"\(4, 3, 2, 3\).*\(4, 3, 2, 5\).*shape"),
        (
            lambda: distill.attention_transfer(_maps(3), _maps(3)[:, :2]),
            r"\(4, 3, 2, 3\).*\(4, 2, 2, 3\).*positions",
        ),
        (lambda: distill.neuron_selectivity(_maps(3)[:2], _maps(3)), r"\(2, 3.*\(4, 3"),
        (lambda: distill.similarity(_maps(3)[:2], _maps(3)), "disagree in the batch"),
        (lambda: distill.relational_angle(_maps(3)[:2], _maps(3)[:2]), "3 examples"),
        (lambda: distill.attention_transfer(_maps(3), _maps(3), power=0.5), "power.*0.5"),
        (lambda: distill.logits_regression(np.ones((2, 3)), np.ones((2, 4))), "same classes"),
        (
            lambda: distill.decoupled(np.ones((2, 3)), np.ones((2, 4)), np.array([0, 1])),
            "same classes",
        ),
        (
            lambda: distill.decoupled(
                np.ones((1, 3)), np.ones((1, 3)), np.array([0]), temperature=0.0
            ),
            "temperature must be above 0.*found 0.0",
        ),
        (
            lambda: distill.decoupled(np.ones((1, 3)), np.ones((1, 3)), np.array([0]), beta=-1.0),
            "beta must be at least 0",
        ),
        (lambda: distill.virtual_teacher(np.array([0]), 4, correct=0.2), "above 0.25"),
        (lambda: distill.virtual_teacher(np.array([[0]]), 4), "disagree"),
        (
            lambda: distill.init_adapter(jax.random.key(0), (1, 4, 4, 3), (1, 2, 2, 3)),
            r"\(1, 4, 4, 3\).*\(1, 2, 2, 3\).*positions",
        ),
        (
            lambda: distill.adapt({"kernel": np.ones((3, 2)), "bias": np.ones(2)}, np.ones((1, 4))),
            r"\(1, 4\).*\(3, 2\)",
        ),
        (
            lambda: distill.contrastive(
                np.ones((1, 4)), np.ones((1, 4)), np.array([0]), _BANK, jax.random.key(0)
            ),
            r"\(1, 4\).*\(7, 5\)",
        ),
        (lambda: distill.ensemble(np.ones((2, 3))), r"\[M, B, C\].*\(2, 3\)"),
        (lambda: distill.ensemble(np.ones((2, 1, 3)), np.ones(3)), r"\(3,\).*2 teachers"),
        (lambda: distill.ensemble(np.ones((2, 1, 3)), np.zeros(2)), "weights"),
        (lambda: distill.mutual(np.ones((1, 2, 3)), np.array([0, 1])), "two or more"),
    ],
)
def test_refuses_what_disagrees(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_integer_features_are_refused() -> None:
    with pytest.raises(TypeError, match="student features must be floating, found dtype int"):
        distill.hint(np.ones((2, 3), np.int32), np.ones((2, 3), np.float32))


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher = _maps(3).astype(jnp.bfloat16), _maps(5, 1).astype(jnp.bfloat16)
    assert distill.attention_transfer(student, teacher).dtype == jnp.float32
    assert distill.similarity(student, teacher).dtype == jnp.float32
