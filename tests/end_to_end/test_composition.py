"""Every sensible order of transforms on every model: exported, equal to LiteRT at every tensor."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import compressjax as cj
from compressjax import tree
from compressjax.models import MLP, MobileNetV2, ResNet8, SmallCNN
from compressjax.models.blocks import InvertedResidual

BATCH = 4


class Inverted(nn.Module):
    """The blocks of MobileNetV2, one of each sort: every order of all 17 takes minutes."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu6(nn.BatchNorm(not train)(nn.Conv(8, (3, 3), 2, use_bias=False)(x)))
        x = InvertedResidual(8, 16, 1, expand=False, residual=False)(x, train)
        x = InvertedResidual(48, 16, 1, expand=True, residual=True)(x, train)
        x = InvertedResidual(48, 24, 2, expand=True, residual=False)(x, train)
        return nn.Dense(10)(x.mean((1, 2)))


MODELS = {
    "mlp": (lambda: MLP(num_classes=10, widths=(32, 16)), (8, 8, 1)),
    "small_cnn": (lambda: SmallCNN(num_classes=10, widths=(16, 32, 32)), (8, 8, 1)),
    "resnet8": (lambda: ResNet8(num_classes=10), (16, 16, 3)),
    "inverted": (Inverted, (16, 16, 3)),
    "mobilenet_v2": (lambda: MobileNetV2(num_classes=10, multiplier=0.35), (32, 32, 3)),
}


@functools.cache
def trained(name):
    """A model whose batch norms and biases are not at their initial values, and a batch."""
    make, shape = MODELS[name]
    model = make()
    x = jax.random.normal(jax.random.key(0), (BATCH, *shape))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    rng = np.random.default_rng(2)

    def moved(path, leaf):
        noise = 0.2 * rng.normal(size=leaf.shape).astype(np.float32)
        return leaf + np.abs(noise) if path.endswith("/var") else leaf + noise * (leaf.ndim == 1)

    return model.apply, tree.map_with_path(moved, variables), x


def prune(fn, variables, x):
    del x
    schedule = cj.pruning.one_shot(0.6)
    tx = cj.prune(optax.sgd(0.0), schedule=schedule, select="**/kernel")

    @jax.jit
    def step(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(zeros, tx.init(params), params)
        return optax.apply_updates(params, updates), jax.tree.leaves(cj.masks(state))

    params, keep = jax.device_get(step(variables["params"]))
    kernels = [leaf for path, leaf in tree.paths(params).items() if path.endswith("kernel")]
    assert [int((leaf != 0).sum()) for leaf in kernels] == [int(mask.sum()) for mask in keep]
    assert tree.size(keep) > 2 * sum(int(mask.sum()) for mask in keep)
    return fn, {**variables, "params": params}


def shrink(fn, variables, x):
    shrunk = cj.shrink(fn, variables, x, ratio=0.5, round_to=4)
    assert tree.size(shrunk.variables) < tree.size(variables)
    return shrunk.apply, shrunk.variables


def fold(fn, variables, x):
    fn, variables = cj.fold_batch_norm(fn, variables, x)
    assert set(variables) == {"params"}
    return fn, variables


def factorize(fn, variables, x):
    factored = cj.factorize(fn, variables, x, rank=0.5)
    assert factored.ranks
    return factored.apply, factored.variables


ORDERS = {
    "none": (),
    "fold": (fold,),
    "prune-shrink-fold": (prune, shrink, fold),
    "shrink-prune-fold": (shrink, prune, fold),
    "prune-fold-shrink": (prune, fold, shrink),
    "fold-shrink-prune": (fold, shrink, prune),
    "fold-prune-shrink": (fold, prune, shrink),
    "shrink-fold-prune": (shrink, fold, prune),
    "shrink-shrink": (shrink, shrink),
    "shrink-factorize-fold": (shrink, factorize, fold),
    "fold-factorize-shrink": (fold, factorize, shrink),
}


def composed(name, order):
    fn, variables, x = trained(name)
    for transform in ORDERS[order]:
        fn, variables = transform(fn, variables, x)
    q = cj.quantize(fn, cj.quant.int8())
    return q, q.calibrate(variables, [x], observer=cj.quant.min_max()), x


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", [name for name in MODELS if name != "mobilenet_v2"])
def test_every_order_is_exact_on_the_phone(name, order):
    q, qv, x = composed(name, order)
    file = cj.export.tflite(q, qv, x[:1], via="litert")
    parity = cj.export.verify(file, q, qv, x)
    assert parity.mismatch_fraction == 0, str(parity)
    assert len(parity.layers) > len(q.plan(qv, x).steps)
    assert np.ptp(cj.export.run(file, x)) > 0


@pytest.mark.parametrize("name", MODELS)
def test_both_converters_give_the_same_integers(name):
    q, qv, x = composed(name, "prune-shrink-fold")
    file = cj.export.tflite(q, qv, x[:1], via="jax2tf")
    parity = cj.export.verify(file, q, qv, x)
    assert parity.mismatch_fraction == 0, str(parity)
    other = cj.export.tflite(q, qv, x[:1], via="litert")
    np.testing.assert_array_equal(cj.export.run(file, x), cj.export.run(other, x))
