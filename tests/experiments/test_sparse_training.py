"""The claims of sparse training's papers, on a reduced recipe: digits and a narrow network."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compressjax import data, models, training
from experiments import networks
from experiments.bench import sparse_training, trained


def _prepare(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) / 128.0 - 1.0


_TUNE = sparse_training.Settings(3, 64, 2e-3, optax.adamw)
_SCRATCH = sparse_training.Settings(6, 64, 0.3, sparse_training.sgd)


@pytest.fixture(scope="module")
def start() -> trained.Dense:
    splits = [data.load("digits", name) for name in ("train", "test")]
    arrays = [jnp.asarray(x) for split in splits for x in (split.images, split.labels)]
    held = networks.Data(*arrays, 10, lambda rng, x: _prepare(x), _prepare)
    settings = types.SimpleNamespace(
        make=models.SmallCNN, options={"widths": (16, 32), "strides": (2, 2)}
    )
    network, init = networks.dense(settings, 10)
    tx = optax.adamw(4e-3)
    loss_fn = training.supervised(network.forward)
    epoch = training.make_epoch(loss_fn, tx, batch_size=64, augment=held.augment)
    variables = jax.jit(init)(jax.random.key(0), held.example)
    state = training.init_state(variables, tx, jax.random.key(0))
    for _ in range(8):
        state, _ = epoch(state, held.train_images, held.train_labels)
    return trained.Dense(network, init, state.variables, held)


@pytest.mark.parametrize(
    ("better", "worse", "sparsity", "settings", "margin"),
    [
        ("gradual, uniform", "one-shot", 0.9, _TUNE, 0.02),
        ("gradual, ERK", "gradual, uniform", 0.9, _TUNE, 0.2),
        ("RigL", "static", 0.95, _SCRATCH, 0.02),
    ],
    ids=["gradual beats one-shot", "ERK beats uniform", "RigL beats static"],
)
def test_claims_hold(
    start: trained.Dense,
    better: str,
    worse: str,
    sparsity: float,
    settings: sparse_training.Settings,
    margin: float,
) -> None:
    rows = sparse_training.rows(sparsity, sparsity)
    found = {}
    for name in (better, worse):
        row = next(row for row in rows if row.name.startswith(name))
        figures = sparse_training.accuracy(row, start, settings, 0)
        np.testing.assert_allclose(figures["sparsity"], sparsity, atol=1e-3)
        found[name] = figures["accuracy"]
    assert found[better] > found[worse] + margin
