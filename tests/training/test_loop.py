"""The scanned loop takes the steps that a plain loop takes, and counts what there is to count."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compressjax import training


class Network(nn.Module):
    """A dense layer behind batch norm."""

    @nn.compact
    def __call__(self, x, train: bool):
        """Logits [B, 3] of x [B, 4]."""
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(3)(x)


def forward(variables, x, rng):
    logits, updates = Network().apply(variables, x, train=True, mutable=["batch_stats"])
    return logits, {**variables, **updates}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, size=50)
    images = rng.normal(size=(50, 4)) + 2.0 * np.eye(4)[labels]
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


@pytest.fixture
def variables():
    return Network().init(jax.random.key(1), jnp.ones((1, 4)), train=False)


def start(variables, tx):
    return training.init_state(variables, tx, jax.random.key(2))


def bits(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return array.dtype, array.shape, array.tobytes()


def same_bits(a, b):
    a, b = ([bits(leaf) for leaf in jax.tree.leaves(tree)] for tree in (a, b))
    return a == b


def test_one_full_batch_step_is_gradient_descent(data):
    """Oracle in NumPy: softmax regression, one step over the whole set."""
    images, labels = data
    tx = optax.sgd(0.5)
    apply = lambda variables, x: x @ variables["params"]["w"]  # noqa: E731
    state = start({"params": {"w": jnp.zeros((4, 3))}}, tx)
    loss_fn = training.supervised(training.from_apply(apply))
    state, metrics = training.make_epoch(loss_fn, tx, batch_size=50)(state, images, labels)

    x, target = np.asarray(images, np.float64), np.eye(3)[np.asarray(labels)]
    gradient = x.T @ (np.full((50, 3), 1 / 3) - target) / 50
    expected = -0.5 * gradient
    np.testing.assert_allclose(state.variables["params"]["w"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.log(3), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)


def test_every_example_is_seen_once_an_epoch_and_the_order_changes():
    def loss_fn(variables, x, labels, rng):
        seen = variables["seen"].at[variables["count"]].set(x[:, 0])
        return 0.0 * variables["params"], (
            {**variables, "seen": seen, "count": variables["count"] + 1},
            {},
        )

    tx = optax.sgd(0.1)
    images = jnp.arange(12.0)[:, None]
    variables = {"params": jnp.ones(()), "seen": jnp.zeros((6, 4)), "count": jnp.int32(0)}
    epoch = training.make_epoch(loss_fn, tx, batch_size=4)
    state = start(variables, tx)
    for _ in range(2):
        state, _ = epoch(state, images, jnp.zeros(12, jnp.int32))
    first, second = np.asarray(state.variables["seen"]).reshape(2, 12)
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second)


def test_batch_statistics_move_and_the_callers_arrays_survive(data, variables):
    before = jax.tree.map(np.array, variables)
    tx = optax.adam(0.01)
    epoch = training.make_epoch(training.supervised(forward), tx, batch_size=16)
    state, metrics = epoch(start(variables, tx), *data)
    assert same_bits(variables, before)
    mean = state.variables["batch_stats"]["BatchNorm_0"]["mean"]
    assert float(jnp.abs(mean - variables["batch_stats"]["BatchNorm_0"]["mean"]).max()) > 0.01
    assert int(state.step) == 3
    assert set(metrics) == {"loss", "accuracy", "grad_norm"}


def test_augmentation_gets_a_fresh_key_every_step(data):
    def augment(rng, x):
        return jnp.full_like(x, jax.random.uniform(rng))

    def loss_fn(variables, x, labels, rng):
        values = variables["values"].at[variables["count"]].set(x[0, 0])
        return 0.0 * variables["params"], (
            {**variables, "values": values, "count": variables["count"] + 1},
            {},
        )

    tx = optax.sgd(0.1)
    variables = {"params": jnp.ones(()), "values": jnp.zeros(6), "count": jnp.int32(0)}
    epoch = training.make_epoch(loss_fn, tx, batch_size=16, augment=augment)
    state = start(variables, tx)
    for _ in range(2):
        state, _ = epoch(state, *data)
    assert len(set(np.asarray(state.variables["values"]).tolist())) == 6


def test_scanned_and_single_steps_agree(data, variables):
    tx = optax.adam(0.01)
    augment = lambda rng, x: x + 0.1 * jax.random.normal(rng, x.shape)  # noqa: E731
    results = []
    for scan in (True, False):
        epoch = training.make_epoch(
            training.supervised(forward), tx, batch_size=16, augment=augment, scan=scan
        )
        state = start(variables, tx)
        for _ in range(3):
            state, metrics = epoch(state, *data)
        results.append((state.step, state.variables, state.opt_state, metrics))
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(*results)


def test_distillation_leaves_the_teacher_alone_and_follows_it(data):
    target = jax.random.normal(jax.random.key(5), (4, 3))
    tx = optax.adam(0.1)
    loss_fn = training.distilled(
        training.from_apply(lambda variables, x: x @ variables["params"]),
        lambda x: x @ target,
        lambda student, teacher, labels: jnp.mean((student - teacher) ** 2, axis=-1),
    )
    state = start({"params": jnp.zeros((4, 3))}, tx)
    epoch = training.make_epoch(loss_fn, tx, batch_size=25)
    for _ in range(150):
        state, metrics = epoch(state, *data)
    np.testing.assert_allclose(state.variables["params"], target, atol=2e-3)
    assert float(metrics["accuracy"]) == float(metrics["teacher_accuracy"])


def test_a_batch_larger_than_the_set_is_refused(data, variables):
    tx = optax.sgd(0.1)
    epoch = training.make_epoch(training.supervised(forward), tx, batch_size=51)
    with pytest.raises(ValueError, match="batch_size is 51 and the training set has 50 examples"):
        epoch(start(variables, tx), *data)


def test_variables_without_params_are_refused():
    with pytest.raises(ValueError, match=r"\['batch_stats'\] and no 'params'"):
        training.init_state({"batch_stats": {}}, optax.sgd(0.1), jax.random.key(0))


@pytest.mark.parametrize("batch_size", [1, 7, 49, 50, 64])
def test_evaluate_counts_exactly(data, batch_size):
    images, labels = data
    score = training.evaluate(
        lambda variables, x: x[:, :3], {}, images, labels, batch_size=batch_size
    )
    right = int((np.argmax(np.asarray(images)[:, :3], axis=-1) == np.asarray(labels)).sum())
    assert score == (right, 50)
    assert 0 < right < 50


def test_evaluate_counts_nan_logits_as_wrong(data):
    images, labels = data
    score = training.evaluate(
        lambda variables, x: jnp.full((x.shape[0], 3), jnp.nan), {}, images, labels
    )
    assert score.correct == 0


def test_evaluate_refuses_an_empty_set():
    with pytest.raises(ValueError, match="no examples"):
        training.evaluate(lambda v, x: x, {}, jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32))


class Killed(Exception):
    """Stands for a SIGKILL."""


@pytest.mark.parametrize(("stop_at", "scan"), [(1, False), (3, False), (4, True)])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(
    data, variables, tmp_path, stop_at, scan
):
    tx = optax.chain(optax.add_decayed_weights(1e-3), optax.adam(optax.linear_schedule(0.1, 0, 15)))
    augment = lambda rng, x: x + 0.1 * jax.random.normal(rng, x.shape)  # noqa: E731
    schedule = training.Schedule(epochs=5, save_every=2)
    loss_fn = training.supervised(forward)
    epoch = training.make_epoch(loss_fn, tx, batch_size=16, augment=augment, scan=scan)

    def run(directory, score):
        state = start(variables, tx)
        return training.fit(state, epoch, *data, schedule, directory=directory, score=score)

    calls = []

    def killing(_):
        calls.append(1)
        if len(calls) == stop_at:
            raise Killed
        return {"held_out": jnp.float32(1)}

    whole = run(tmp_path / "whole", lambda _: {"held_out": jnp.float32(1)})
    with pytest.raises(Killed):
        run(tmp_path / "killed", killing)
    resumed = run(tmp_path / "killed", lambda _: {"held_out": jnp.float32(1)})
    assert int(resumed.step) == 15
    assert same_bits(whole, resumed)
    rows = [training.read_metrics(tmp_path / k / "metrics.jsonl") for k in ("whole", "killed")]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == [3, 6, 9, 12, 15]


def test_fit_refuses_fewer_epochs_than_were_trained(data, variables, tmp_path):
    tx = optax.sgd(0.1)
    epoch = training.make_epoch(training.supervised(forward), tx, batch_size=16)
    training.fit(start(variables, tx), epoch, *data, training.Schedule(3), directory=tmp_path)
    with pytest.raises(ValueError, match="holds epoch 3 and only 2 are asked for"):
        training.fit(start(variables, tx), epoch, *data, training.Schedule(2), directory=tmp_path)
