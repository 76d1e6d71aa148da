"""The benchmark of learned steps trains them: four bits get better, and every figure has a name."""

import jax
import jax.numpy as jnp
import pytest

import compressjax as cj
from compressjax import data, models
from experiments import networks
from experiments.bench import learned_steps, trained


@pytest.fixture(scope="module")
def network():
    split = data.load("digits", "train")
    images, labels = jnp.asarray(split.images), jnp.asarray(split.labels)

    def prepare(x):
        return x.astype(jnp.float32) / 128.0 - 1.0

    held = networks.Data(
        images, labels, images[:256], labels[:256], 10, lambda rng, x: prepare(x), prepare
    )
    model = models.SmallCNN(num_classes=10, widths=(8, 16), strides=(2, 2))
    variables = jax.jit(model.init)(jax.random.key(0), held.example)
    folded, variables = cj.fold_batch_norm(model.apply, variables, held.example)
    return trained.Trained(folded, variables, held)


def test_training_raises_the_accuracy_of_two_bits(network):
    found = learned_steps.measure(network, bits=2, epochs=2, rate=1e-2, batch=64)
    assert list(found) == ["float", "calibrated", "epoch 1", "epoch 2"]
    assert found["epoch 2"] > found["calibrated"] + 0.1
