"""The benchmark of distillation's gains builds its losses and sums up; no accuracy is tested."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from compressjax import models
from experiments import networks
from experiments.bench import distillation


def _made(seed: int, **settings: Any) -> tuple[networks.Network, Any, jax.Array]:
    x = jax.random.normal(jax.random.key(9), (4, 8, 8, 1))
    chosen = types.SimpleNamespace(make=models.SmallCNN, options=settings)
    network, init = networks.dense(chosen, 10)
    return network, jax.jit(init)(jax.random.key(seed), x), x


def test_every_loss_reaches_the_student_and_hints_their_adapter() -> None:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    student, start, x = _made(0, widths=(4, 6), strides=(1, 2))
    network, variables, _ = _made(1, widths=(8, 10), strides=(1, 2))
    teacher = distillation.Teacher(network.apply, variables)
    labels = jnp.arange(4)
    for name, loss in distillation.losses().items():
        loss_fn, begun = distillation.lesson(student, start, teacher, x, jax.random.key(2), loss)
        gradients = jax.jit(jax.grad(lambda v, f=loss_fn: f(v, x, labels, None)[0]))(begun)
        moved = jax.tree.map(lambda g: bool(np.any(g)), gradients["params"])
        assert jax.tree.all(moved["student"]["Conv_0"])
        assert any(jax.tree.leaves(moved["adapter"])) == (name == "fitnets")


def test_networks_without_a_shared_size_are_refused() -> None:
    student, start, x = _made(0, widths=(4,), strides=(2,))
    network, variables, _ = _made(1, widths=(4,), strides=(1,))
    teacher = distillation.Teacher(network.apply, variables)
    with pytest.raises(ValueError, match=r"student's activations have heights \[4\].*\[8\]"):
        distillation.lesson(student, start, teacher, x, jax.random.key(2), lambda s, t, y: 0.0)


def test_gains_are_taken_seed_by_seed() -> None:
    row = distillation.summary([0.5, 0.75], [0.25, 0.5])
    assert row["gain"] == 0.25 and row["gain_spread"] == 0.0 and row["spread"] > 0.1
