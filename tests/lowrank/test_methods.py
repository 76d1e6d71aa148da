"""Decompositions against NumPy and tensorly, and what each method says of its factors."""

import builtins
import math

import numpy as np
import pytest
import tensorly.decomposition

from compressjax import lowrank
from compressjax.lowrank import factors
from compressjax.lowrank.layers import Layer
from tests.support import lowrank_oracles as oracles

RNG = np.random.default_rng(0)


def layer(window=(3, 3), inputs=6, outputs=5, groups=1):
    sizes = (1, *(8 for _ in window)) if window else (4,)
    return Layer("w", window, inputs, outputs, groups, ((sizes, sizes),))


def weights(of):
    return RNG.normal(size=(of.groups, *of.window, of.inputs, of.outputs))


def whole(method, of, values, ranks, moments=None):
    """The product of a method's factors; their shapes are those of its plan."""
    plan, found = method.plan(of, ranks), method.factors(of, values, ranks, moments)
    assert [x.shape for x in found] == [(of.groups, *factor.shape) for factor in plan]
    return np.asarray(factors.product(plan, found))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("window", [(), (3,), (3, 2)])
@pytest.mark.parametrize("rank", [1, 3])
def test_svd_is_the_closest_of_its_rank(window, groups, rank):
    of = layer(window, groups=groups)
    values = weights(of)
    found = whole(lowrank.svd(), of, values, (rank,))
    for mine, own in zip(found, values, strict=True):
        expected = oracles.truncated(own.reshape(-1, of.outputs), rank)
        np.testing.assert_allclose(mine.reshape(-1, of.outputs), expected, atol=1e-6)
    (spectrum,) = lowrank.svd().spectra(of, values, None)
    assert spectrum.shape == lowrank.svd().limits(of)
    squares = sum(
        np.square(np.linalg.svd(own.reshape(-1, of.outputs), compute_uv=False)) for own in values
    )
    np.testing.assert_allclose(np.square(spectrum), squares, rtol=1e-9)


@pytest.mark.parametrize("sizes", [(6, 5), (3, 12)])
def test_spatial_is_the_closest_pair_of_its_rank(sizes):
    of = layer((3, 2), *sizes)
    values = weights(of)
    matrix = values[0].transpose(0, 2, 1, 3).reshape(3 * of.inputs, 2 * of.outputs)
    found = whole(lowrank.spatial(), of, values, (4,))[0].transpose(0, 2, 1, 3)
    np.testing.assert_allclose(found.reshape(matrix.shape), oracles.truncated(matrix, 4), atol=1e-6)
    (spectrum,) = lowrank.spatial().spectra(of, values, None)
    np.testing.assert_allclose(spectrum, np.linalg.svd(matrix, compute_uv=False), rtol=1e-6)


def test_tucker_comes_as_close_as_tensorly():
    of = layer()
    values = np.einsum("ghwab,ia,ob->ghwio", RNG.normal(size=(1, 3, 3, 3, 2)),
                       RNG.normal(size=(6, 3)), RNG.normal(size=(5, 2)))  # fmt: skip
    values += 0.5 * weights(of)
    found = whole(lowrank.tucker2(), of, values, (3, 2))
    (core, (ins, outs)), _ = tensorly.decomposition.partial_tucker(
        values[0], rank=(3, 2), modes=[2, 3], n_iter_max=200, tol=1e-12, init="svd"
    )
    theirs = np.einsum("hwab,ia,ob->hwio", core, ins, outs)
    errors = [np.linalg.norm(values[0] - one) for one in (found[0], theirs)]
    assert errors[0] <= 1.001 * errors[1]
    for side, spectrum in enumerate(lowrank.tucker2().spectra(of, values, None)):
        unfolded = np.moveaxis(values[0], 2 + side, 0).reshape(values.shape[3 + side], -1)
        np.testing.assert_allclose(spectrum, np.linalg.svd(unfolded, compute_uv=False), rtol=1e-6)


@pytest.mark.parametrize("split", [False, True])
def test_cp_finds_a_tensor_of_its_rank(split):
    of = layer((3, 2), 4, 5, groups=2)
    down, up = RNG.normal(size=(2, 4, 2)), RNG.normal(size=(2, 5, 2))
    taps = RNG.normal(size=(2, 3, 2)), RNG.normal(size=(2, 2, 2))
    values = np.einsum("ghr,gwr,gir,gor->ghwio", *taps, down, up)
    found = whole(lowrank.cp(split=split, steps=500), of, values, (3,))
    assert np.linalg.norm(found - values) < 0.02 * np.linalg.norm(values)
    assert [f.groups for f in lowrank.cp(split=split).plan(of, (3,))] == [1, *[3] * (1 + split), 1]


def test_cp_of_few_products_comes_as_close_as_tensorly():
    """Among many channels most rounds see only their strongest directions."""
    of = layer((3, 3), 40, 30)
    values = weights(of) * np.logspace(0, -1, 40)[:, None] * np.logspace(0, -1, 30)
    found = whole(lowrank.cp(), of, values, (4,))
    sizes = (of.taps, of.inputs, of.outputs)
    theirs = tensorly.decomposition.parafac(
        values[0].reshape(sizes), 4, n_iter_max=50, init="random", random_state=0
    )
    errors = [
        np.linalg.norm(values[0].reshape(sizes) - one)
        for one in (found[0].reshape(sizes), tensorly.cp_to_tensor(theirs))
    ]
    assert errors[0] <= 1.01 * errors[1]


@pytest.mark.parametrize("method", [lowrank.svd(), lowrank.tucker2(), lowrank.spatial()])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("sizes", [(6, 5), (2, 7)])
def test_full_rank_gives_the_weights_back(method, groups, sizes):
    of = layer((3, 2), *sizes, groups=groups)
    values = weights(of)
    found = whole(method, of, values, method.limits(of))
    np.testing.assert_allclose(found, values, atol=1e-5)


@pytest.mark.parametrize("method", [lowrank.tucker2(), lowrank.spatial(), lowrank.cp(steps=200)])
def test_moments_make_outputs_closer(method):
    """On inputs that are unrelated at different taps, errors of outputs are those of `white`."""
    of = layer((3, 3), 6, 5)
    values = weights(of)
    mixing = RNG.normal(size=(6, 6)) * np.logspace(0, -2, 6)
    second = (mixing @ mixing.T)[None]
    moments = lowrank.Moments(second, np.eye(of.outputs)[None])
    ranks = tuple(math.ceil(limit / 3) for limit in method.limits(of))
    errors = []
    for seen in (moments, None):
        lost = (values - whole(method, of, values, ranks, seen)).reshape(9, 6, 5)
        errors.append(np.einsum("tio,ij,tjo->", lost, second[0], lost))
    assert errors[0] < 0.9 * errors[1]


def test_what_methods_refuse():
    one = layer((1, 1))
    assert "one tap" in lowrank.cp().refuses(one)
    assert "1x1" in lowrank.spatial().refuses(one)
    assert "matrix product" in lowrank.spatial().refuses(layer(()))
    assert "one input and one output" in lowrank.tucker2().refuses(layer((3, 3), 1, 1))
    assert "one input and one output" in lowrank.cp().refuses(layer((3, 3), 1, 1))
    assert "rank 1" in lowrank.svd().refuses(layer((), 1, 5))
    with pytest.raises(ValueError, match="steps is 0"):
        lowrank.cp(steps=0)


def test_cp_of_zeros_is_zero():
    of = layer()
    assert not whole(lowrank.cp(), of, np.zeros_like(weights(of)), (2,)).any()


def test_cp_names_the_extra_that_is_missing(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("tensorly"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    of = layer()
    with pytest.raises(ImportError, match=r"pip install 'compressjax\[lowrank\]'"):
        lowrank.cp().factors(of, weights(of), (2,), None)
