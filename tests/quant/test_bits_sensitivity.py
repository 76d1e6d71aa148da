"""Sensitivities against NumPy, and what the estimates promise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from compressjax import data, tree
from compressjax.quant import bits
from compressjax.quant.grids import integer
from tests.support import bits_oracles as oracles

GRIDS = {width: integer(width) for width in (2, 3, 4, 8)}
ALL_GRIDS = {width: integer(width) for width in range(2, 9)}


def network(variables, x):
    params = variables["params"]
    return jnp.tanh(x @ params["first"]["kernel"]) @ params["second"]["kernel"]


def loss(variables, x, labels):
    logits = network(variables, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def draw(seed=0, examples=40):
    rng = np.random.default_rng(seed)
    kernels = {
        "first": rng.normal(size=(4, 6)).astype(np.float32),
        "second": rng.normal(size=(6, 3)).astype(np.float32),
    }
    x = rng.normal(size=(examples, 4)).astype(np.float32)
    return kernels, x, rng.integers(0, 3, examples).astype(np.int32)


def as_variables(kernels):
    return {"params": {name: {"kernel": jnp.asarray(k)} for name, k in kernels.items()}}


def named(table):
    """A NumPy table under the library's paths."""
    return {f"params/{name}/kernel": row for name, row in table.items()}


def assert_tables_agree(found, expected, **tolerances):
    assert list(found) == list(expected)
    for path, row in expected.items():
        assert list(found[path]) == list(row)
        np.testing.assert_allclose(
            [float(found[path][width]) for width in row], list(row.values()), **tolerances
        )


# The trace of the Hessian.


@pytest.fixture(scope="module")
def traces():
    """True traces, and estimates from 50 keys, over two batches."""
    kernels, x, labels = draw()
    truth = {
        name: oracles.second_derivatives(
            lambda kernels: oracles.cross_entropy(kernels, x, labels), kernels, name
        ).sum()
        for name in kernels
    }
    batches = [(x[:20], labels[:20]), (x[20:], labels[20:])]

    def estimate(rng):
        return bits.hessian_trace(loss, as_variables(kernels), batches, rng, probes=32)

    found = [estimate(rng) for rng in jax.random.split(jax.random.key(0), 50)]
    return named(truth), jax.tree.map(lambda *values: np.stack(values), *found)


@pytest.mark.parametrize("path", ["params/first/kernel", "params/second/kernel"])
def test_traces_are_within_their_standard_error_of_the_explicit_hessian(traces, path):
    truth, found = traces
    deviations = (np.asarray(found[path].mean) - truth[path]) / np.asarray(found[path].error)
    # 50 draws of roughly a normal variable: their mean, their spread, and the farthest of them.
    assert abs(deviations.mean()) < 4 / np.sqrt(50)
    assert 0.7 < deviations.std() < 1.5
    assert np.abs(deviations).max() < 5
    # Errors are small enough for all of that to mean something.
    assert np.max(found[path].error) < 0.25 * truth[path]


def test_a_diagonal_hessian_has_its_exact_trace_and_no_error():
    curvatures = {"a": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([[5.0], [-2.0]])}

    def quadratic(variables, gain):
        terms = jax.tree.map(lambda w, c: 0.5 * gain * jnp.sum(c * w**2), variables, curvatures)
        return sum(jax.tree.leaves(terms))

    found = bits.hessian_trace(
        quadratic, curvatures, [jnp.float32(1), jnp.float32(3)], jax.random.key(0), select="*"
    )
    assert {path: (float(t.mean), float(t.error)) for path, t in found.items()} == {
        "a": (20.0, 0.0),
        "b": (6.0, 0.0),
    }


def test_a_trace_is_kept_in_float32_for_kernels_of_fewer_bits():
    kernel = jnp.ones((300, 1), jnp.bfloat16)
    found = bits.hessian_trace(
        lambda v, x: 0.5 * jnp.sum(v["kernel"] ** 2) * x,
        {"kernel": kernel},
        [jnp.bfloat16(1)],
        jax.random.key(0),
    )
    assert found["kernel"].mean.dtype == jnp.float32
    assert float(found["kernel"].mean) == 300


def test_hessian_weighs_rounding_errors_by_the_mean_curvature():
    kernels, x, labels = draw()
    rng = jax.random.key(1)
    batches = [(x, labels)]
    trace = bits.hessian_trace(loss, as_variables(kernels), batches, rng)
    expected = oracles.each(
        kernels,
        tuple(GRIDS),
        lambda kernel, changed: sum(
            ((changed[name] - kernels[name]) ** 2).sum()
            * float(trace[f"params/{name}/kernel"].mean)
            / kernel.size
            for name in kernels
        ),
    )
    found = bits.hessian(loss, as_variables(kernels), batches, GRIDS, rng)
    assert_tables_agree(found, named(expected), rtol=1e-4)


def test_curvature_that_is_lost_in_noise_counts_as_the_noise():
    """A block without curvature, beside a strong coupling of both: its trace is all noise."""

    def coupled(variables, x):
        del x
        return 10 * jnp.sum(variables["a"]) * jnp.sum(variables["b"]) - jnp.sum(variables["a"] ** 2)

    variables = {"a": jnp.array([[1.0, 0.3], [0.4, 1.0]]), "b": jnp.array([[1.0], [0.6]])}
    args = (coupled, variables, [jnp.zeros(1)])
    for seed in range(4):
        trace = bits.hessian_trace(*args, jax.random.key(seed), select="*")
        found = bits.hessian(*args, {2: integer(2)}, jax.random.key(seed), select="*")
        for path, kernel in variables.items():
            error = ((oracles.quantized(np.asarray(kernel), 2) - np.asarray(kernel)) ** 2).sum()
            curvature = max(float(trace[path].mean), float(trace[path].error))
            assert curvature > 0
            np.testing.assert_allclose(found[path][2], curvature / kernel.size * error, 1e-4)


# What is measured.


def test_divergence_is_that_of_numpy_whatever_the_batches():
    kernels, x, _ = draw(2)
    expected = named(oracles.divergence(kernels, x, tuple(GRIDS)))
    for batches in ([x], [x[:7], x[7:]], iter([(x[:30],), (x[30:],)])):
        found = bits.divergence(network, as_variables(kernels), batches, GRIDS)
        assert_tables_agree(found, expected, rtol=1e-3, atol=1e-6)


def test_accuracy_is_that_of_numpy_whatever_the_batches():
    kernels, x, labels = draw(3)
    labels = np.where(np.arange(40) % 4, oracles.logits(kernels, x).argmax(-1), labels)
    expected = named(oracles.accuracy_lost(kernels, x, labels, tuple(GRIDS)))
    assert max(max(row.values()) for row in expected.values()) > 0.1
    for batches in ([(x, labels)], [(x[:7], labels[:7]), (x[7:], labels[7:])]):
        found = bits.accuracy(network, as_variables(kernels), batches, GRIDS)
        assert_tables_agree(found, expected, atol=1e-6)


def test_only_the_selected_kernels_are_looked_at():
    kernels, x, labels = draw()
    args = as_variables(kernels), [(x, labels)], GRIDS
    found = [
        bits.accuracy(network, *args, select="params/second/*"),
        bits.divergence(lambda v, x, labels: network(v, x), *args, select="params/second/*"),
        bits.hessian(loss, *args, jax.random.key(0), select="params/second/*"),
    ]
    assert [list(table) for table in found] == [["params/second/kernel"]] * 3


def test_a_class_that_is_masked_out_adds_nothing():
    kernels, x, _ = draw()
    mask = jnp.array([[0.0, 0.0, -jnp.inf]])
    found = bits.divergence(
        lambda v, x: network(v, x) + mask, as_variables(kernels), [x], {4: integer(4)}
    )
    assert all(np.isfinite(row[4]) and row[4] > 0 for row in found.values())


# The claim: bits shared out by sensitivity beat equal bits of the same size.


class Branched(nn.Module):
    """Most of its weights are in a branch that adds little to the logits."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        hidden = nn.relu(nn.Dense(64, name="wide")(x))
        return nn.Dense(10, name="direct")(x) + 0.03 * nn.Dense(10, name="branch")(hidden)


@pytest.fixture(scope="module")
def trained():
    source = data.load("digits", "train")
    mean, std = data.moments(source.images)
    x = data.normalise(jnp.asarray(source.images), mean=jnp.asarray(mean), std=jnp.asarray(std))
    labels = jnp.asarray(source.labels)
    model, tx = Branched(), optax.adam(3e-3)

    def loss(variables, x, labels):
        logits = model.apply(variables, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def train(rng):
        def step(carry, rng):
            variables, state = carry
            rows = jax.random.choice(rng, x.shape[0], (64,))
            gradients = jax.grad(loss)(variables, x[rows], labels[rows])
            updates, state = tx.update(gradients, state)
            return (optax.apply_updates(variables, updates), state), None

        variables = model.init(rng, x[:1])
        (variables, _), _ = jax.lax.scan(
            step, (variables, tx.init(variables)), jax.random.split(rng, 200)
        )
        return variables

    return model.apply, loss, train(jax.random.key(0)), x, labels


@pytest.mark.parametrize("way", ["hessian", "divergence"])
def test_bits_by_sensitivity_beat_equal_bits_of_the_same_size(trained, way):
    apply, loss, variables, x, labels = trained
    if way == "hessian":
        scores = bits.hessian(loss, variables, [(x, labels)], ALL_GRIDS, jax.random.key(0))
    else:
        scores = bits.divergence(apply, variables, [x], ALL_GRIDS)
    size = bits.size(variables, ALL_GRIDS)
    log_p = jax.nn.log_softmax(apply(variables, x))

    @jax.jit
    def moved(kernels):
        log_q = jax.nn.log_softmax(apply(tree.replace(variables, kernels), x))
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1).mean()

    def divergence(allocation):
        leaves = tree.paths(variables)
        return moved(
            {
                path: ALL_GRIDS[width].project(leaves[path], ALL_GRIDS[width].fit(leaves[path]))
                for path, width in allocation.items()
            }
        )

    uniform = dict.fromkeys(size, 4)
    limit = bits.total(size, uniform)
    mixed = bits.allocate(scores, bits.Budget("bytes", size, limit))
    assert mixed["params/wide/kernel"] < 4 < mixed["params/direct/kernel"]
    assert bits.total(size, mixed) <= limit
    assert divergence(mixed) < 0.5 * divergence(uniform)


# What cannot be measured.


@pytest.mark.parametrize(
    "measure",
    [
        lambda v, batches: bits.divergence(network, v, batches, GRIDS),
        lambda v, batches: bits.accuracy(network, v, batches, GRIDS),
        lambda v, batches: bits.hessian(loss, v, batches, GRIDS, jax.random.key(0)),
    ],
    ids=["divergence", "accuracy", "hessian"],
)
def test_batches_that_are_none_or_one_array_are_refused(measure):
    kernels, x, _ = draw()
    with pytest.raises(ValueError, match="no batches"):
        measure(as_variables(kernels), [])
    with pytest.raises(ValueError, match=r"one array of shape \(40, 4\).*such as \[images\]"):
        measure(as_variables(kernels), x)


def test_what_is_no_measurement_is_refused():
    kernels, x, labels = draw()
    variables = as_variables(kernels)
    with pytest.raises(ValueError, match=r"select pattern '\*\*/kernels'.*near misses: params/"):
        bits.divergence(network, variables, [x], GRIDS, select="**/kernels")
    with pytest.raises(ValueError, match="probes is 1, expected at least 2"):
        bits.hessian_trace(loss, variables, [(x, labels)], jax.random.key(0), probes=1)
    with pytest.raises(ValueError, match=r"has 1 part.*\(images, labels\)"):
        bits.accuracy(network, variables, [x], GRIDS)
    with pytest.raises(ValueError, match=r"labels \(39,\) and logits \(40, 3\).*must be \(40,\)"):
        bits.accuracy(network, variables, [(x, labels[1:])], GRIDS)
    with pytest.raises(TypeError, match="labels must be integer.*float32"):
        bits.accuracy(network, variables, [(x, np.float32(labels))], GRIDS)
    with pytest.raises(TypeError, match=r"floating logits \[..., C\], found .*float32\[40,3\]"):
        bits.divergence(lambda v, x: (network(v, x), x), variables, [x], GRIDS)
    with pytest.raises(TypeError, match=r"found int32\[40\]"):
        bits.divergence(lambda v, x: network(v, x).argmax(-1), variables, [x], GRIDS)
