"""Depthwise-separable pairs: exact where a kernel is one, and fitted to what it reads."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compressjax as cj
from compressjax import lowrank
from compressjax.lowrank import factors
from compressjax.lowrank.layers import Layer

LAYER = Layer("w", (2, 3), 4, 5, 2, (((1, 8, 8), (1, 8, 8)),))


def product(weights, rank, moments=None, sweeps=8):
    method = lowrank.separable(sweeps=sweeps)
    plan, found = method.plan(LAYER, (rank,)), method.factors(LAYER, weights, (rank,), moments)
    assert [x.shape for x in found] == [(2, *factor.shape) for factor in plan]
    return np.asarray(factors.product(plan, found))


def seen(rng, count=200):
    """Patches of correlated inputs, `[G, N, taps * I]`, and their moments."""
    mix = rng.normal(size=(2, 24, 24)) * np.geomspace(1, 0.05, 24)
    patches = rng.normal(size=(2, count, 24)) @ mix
    gram = patches.swapaxes(1, 2) @ patches
    inputs = np.einsum("gtitj->gij", gram.reshape(2, 6, 4, 6, 4))
    return patches, lowrank.Moments(inputs, np.zeros((2, 5, 5)), gram)


def error(patches, weights, found):
    return np.linalg.norm(patches @ (weights - found).reshape(2, 24, 5))


@given(st.integers(0, 100), st.integers(1, 3), st.booleans())
@settings(max_examples=8, deadline=None)
def test_a_kernel_that_is_separable_is_found(seed, rank, data):
    rng = np.random.default_rng(seed)
    weights = np.einsum(
        "gtik,giko->gtio", rng.normal(size=(2, 6, 4, rank)), rng.normal(size=(2, 4, rank, 5))
    ).reshape(2, 2, 3, 4, 5)
    moments = seen(rng)[1] if data else None
    np.testing.assert_allclose(product(weights, rank, moments), weights, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2])
def test_weights_alone_give_the_svd_of_each_channel(rank):
    weights = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 5))
    found = product(weights, rank)
    for group, channel in np.ndindex(2, 4):
        matrix = weights[group, :, :, channel].reshape(6, 5)
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        expected = (left[:, :rank] * values[:rank]) @ right[:rank]
        np.testing.assert_allclose(found[group, :, :, channel].reshape(6, 5), expected, atol=1e-9)
    (spectrum,) = lowrank.separable().spectra(LAYER, weights, None)
    assert spectrum.shape == lowrank.separable().limits(LAYER) == (5,)
    np.testing.assert_allclose(np.sum(spectrum**2), np.sum(weights**2))


def test_more_sweeps_never_make_outputs_worse():
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(2, 2, 3, 4, 5))
    patches, moments = seen(rng)
    errors = [error(patches, weights, product(weights, 1))]
    errors += [error(patches, weights, product(weights, 1, moments, n)) for n in (1, 2, 4, 8, 16)]
    assert all(b <= a * (1 + 1e-9) for a, b in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.9 * errors[0]


def test_the_mixture_is_the_least_squares_one_for_its_filters():
    """Oracle: explicit patches through the found filters, and NumPy's least squares on them."""
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(2, 2, 3, 4, 5))
    patches, moments = seen(rng)
    method = lowrank.separable(sweeps=40)
    filters, mixture = method.factors(LAYER, weights, (1,), moments)
    for group in range(2):
        through = np.einsum(
            "nti,ti->ni", patches[group].reshape(-1, 6, 4), filters[group].reshape(6, 4)
        )
        outputs = patches[group] @ weights[group].reshape(24, 5)
        best = np.linalg.lstsq(through, outputs)[0]
        errors = [np.linalg.norm(outputs - through @ m) for m in (mixture[group, 0, 0], best)]
        assert errors[0] <= 1.001 * errors[1]


def test_without_patches_taps_are_unrelated():
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(2, 2, 3, 4, 5))
    _, moments = seen(rng)
    blocks = np.einsum("tu,gij->gtiuj", np.eye(6), moments.inputs).reshape(2, 24, 24)
    found = product(weights, 1, moments._replace(patches=None))
    np.testing.assert_allclose(found, product(weights, 1, moments._replace(patches=blocks)))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(6, (3, 3), padding="VALID", feature_group_count=2)(x))
        return nn.Dense(3)(x.mean((1, 2)))


def test_a_network_of_pairs_runs_as_int8_and_fits_its_data_better():
    x = np.random.default_rng(4).normal(size=(32, 9, 9, 3)).astype(np.float32)
    x = np.cumsum(np.cumsum(x, 1), 2) / 9  # neighbours vary together, as in images
    variables = jax.jit(Net().init)(jax.random.key(0), x)
    chosen = {"**/Conv_*/kernel": lowrank.separable()}
    moments = lowrank.observe(Net().apply, variables, [x], patches=True)
    pairs = [
        cj.factorize(Net().apply, variables, x, rank=1, method=chosen, moments=m)
        for m in (None, moments)
    ]
    kinds = cj.trace(pairs[1].apply, pairs[1].variables, x).ops
    groups = [op.params["feature_group_count"] for op in kinds if "conv" in op.kind]
    assert groups == [3, 1, 8, 2]
    whole = Net().apply(variables, x)
    errors = [np.linalg.norm(pair.apply(pair.variables, x) - whole) for pair in pairs]
    assert errors[1] < errors[0]
    full = cj.factorize(Net().apply, variables, x, rank=1.0, method=chosen)
    np.testing.assert_allclose(full.apply(full.variables, x), whole, rtol=1e-4, atol=1e-4)
    q = cj.quantize(pairs[1].apply, cj.quant.int8())
    qv = q.calibrate(pairs[1].variables, [x])
    file = cj.export.tflite(q, qv, x[:1], via="litert")
    assert cj.export.verify(file, q, qv, x[:4]).max_lsb == 0


def test_refuses_what_is_no_such_layer():
    one = Layer("w", (1, 1), 4, 5, 1, ())
    depthwise = Layer("w", (3, 3), 1, 1, 4, ())
    assert "1x1" in lowrank.separable().refuses(one)
    assert "depthwise" in lowrank.separable().refuses(depthwise)
    with pytest.raises(ValueError, match="sweeps is 0"):
        lowrank.separable(sweeps=0)
