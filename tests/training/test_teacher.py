"""A teacher asked once says what it would have said in every step, and nothing else is believed."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compressjax import data, distill, training

SET, SIDE, CLASSES = 22, 5, 3


def augment(rng, images):
    moved = data.augment(rng, images, shift=1, flip=True, degrees=10.0)
    return data.normalise(moved, jnp.array([0.5]), jnp.array([0.3]))


def apply(variables, x):
    hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ variables["params"]["in"])
    return hidden @ variables["params"]["out"]


def forward(variables, x, rng):
    return apply(variables, x), variables


def make(width, seed):
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "params": {
            "in": 0.2 * jax.random.normal(first, (SIDE * SIDE, width)),
            "out": jax.random.normal(second, (width, CLASSES)),
        }
    }


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (SET, SIDE, SIDE, 1)).astype(np.uint8)


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, CLASSES, SET).astype(np.int32)


@pytest.fixture
def views():
    return training.Views(augment, jax.random.key(3), 2)


@pytest.fixture
def teacher():
    return make(8, 0)


@pytest.fixture
def cached(teacher, images, labels, views, tmp_path):
    return training.cache_logits(
        apply, teacher, images, labels, views, directory=tmp_path, batch_size=8
    )


def test_cached_logits_are_the_teachers_on_the_same_images(
    cached, teacher, images, labels, views, tmp_path
):
    """Oracle: each image alone, with the key folded from the view and the index by hand."""
    assert cached.shape == (2, SET, CLASSES) and cached.dtype == np.float32
    w = [np.asarray(leaf, np.float64) for leaf in teacher["params"].values()]
    alone = jax.jit(augment)
    for view, example in ((0, 0), (0, 21), (1, 7), (1, 16)):
        key = jax.random.fold_in(jax.random.fold_in(views.rng, view), example)
        x = np.asarray(alone(key, images[example : example + 1]), np.float64).reshape(1, -1)
        expected = np.tanh(x @ w[0]) @ w[1]
        np.testing.assert_allclose(cached[view, example], expected[0], rtol=1e-4, atol=1e-5)
    assert (np.abs(cached[0] - cached[1]).max(axis=-1) > 1e-3).all()
    read = training.load_logits(tmp_path, teacher, images, labels, views)
    np.testing.assert_array_equal(read, cached)


def test_a_view_of_an_example_depends_on_neither_batch_nor_order(images, views):
    draw = jax.jit(views.images)
    whole = draw(1, jnp.arange(SET), images)
    rows = np.array([20, 3, 11])
    np.testing.assert_allclose(draw(1, rows, images[rows]), whole[rows], atol=1e-6)


def test_the_teacher_runs_once(cached, teacher, images, labels, views, tmp_path):
    def never(variables, x):
        raise AssertionError("the teacher ran again")

    again = training.cache_logits(never, teacher, images, labels, views, directory=tmp_path)
    np.testing.assert_array_equal(again, cached)


def test_half_precision_halves_the_file(cached, teacher, images, labels, views, tmp_path):
    half = training.cache_logits(
        apply, teacher, images, labels, views, directory=tmp_path / "half", dtype=np.float16
    )
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, cached, rtol=1e-3, atol=1e-3)
    read = training.load_logits(tmp_path / "half", teacher, images, labels, views)
    assert read.dtype == np.float16


@pytest.mark.parametrize("scan", [False, True])
def test_training_from_the_cache_is_training_with_the_live_teacher(
    cached, teacher, images, labels, views, scan
):
    """To rounding: XLA fuses a teacher inside the step otherwise than one that runs alone."""
    tx = optax.sgd(0.1)
    loss = distill.hinton

    def live(variables, x, targets, rng):
        of_step = training.distilled(forward, lambda x: apply(teacher, x), loss)
        return of_step(variables, x, targets.labels, rng)

    targets = training.Targets(jnp.asarray(labels), jnp.asarray(cached))
    ends = []
    for loss_fn in (live, training.distilled_from_cache(forward, loss)):
        epoch = training.make_epoch(loss_fn, tx, batch_size=8, draw=views.draw, scan=scan)
        state = training.init_state(make(4, 1), tx, jax.random.key(2))
        for _ in range(3):  # views 0, 1 and 0 again
            state, metrics = epoch(state, jnp.asarray(images), targets)
        ends.append((state.variables, metrics["loss"], metrics["teacher_accuracy"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *ends)


@pytest.mark.parametrize("scan", [False, True])
def test_every_epoch_draws_its_view_with_one_trace(cached, images, labels, views, scan):
    traces = []

    def loss_fn(variables, x, targets, rng):
        traces.append(1)
        seen = variables["seen"].at[variables["count"]].set(targets.logits)
        aux = {**variables, "seen": seen, "count": variables["count"] + 1}
        return 0.0 * variables["params"] + 0.0 * jnp.sum(x), (aux, {})

    tx = optax.sgd(0.1)
    epoch = training.make_epoch(loss_fn, tx, batch_size=11, draw=views.draw, scan=scan)
    start = {"params": jnp.ones(()), "seen": jnp.zeros((6, 11, CLASSES)), "count": jnp.int32(0)}
    state = training.init_state(start, tx, jax.random.key(2))
    targets = training.Targets(jnp.asarray(labels), jnp.asarray(cached))
    for _ in range(3):
        state, _ = epoch(state, jnp.asarray(images), targets)
    assert len(traces) == 1
    seen = np.asarray(state.variables["seen"]).reshape(3, SET, CLASSES)
    ordered = [array[np.lexsort(array.T)] for array in seen]
    for found, view in zip(ordered, (0, 1, 0), strict=True):
        np.testing.assert_array_equal(found, cached[view][np.lexsort(cached[view].T)])
    assert (seen[0] != seen[2]).any()


def test_a_killed_run_from_the_cache_ends_with_the_same_bits(
    cached, images, labels, views, tmp_path
):
    tx = optax.adam(0.01)
    targets = training.Targets(jnp.asarray(labels), jnp.asarray(cached))
    loss_fn = training.distilled_from_cache(forward, distill.hinton)
    epoch = training.make_epoch(loss_fn, tx, batch_size=8, draw=views.draw)

    def run(directory, score):
        state = training.init_state(make(4, 1), tx, jax.random.key(2))
        schedule = training.Schedule(epochs=3)
        return training.fit(
            state, epoch, jnp.asarray(images), targets, schedule, directory=directory, score=score
        )

    def stop(_):
        stops.append(1)
        if len(stops) == 2:
            raise KeyboardInterrupt
        return {}

    stops = []
    whole = run(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop)
    resumed = run(tmp_path / "killed", None)
    jax.tree.map(np.testing.assert_array_equal, whole.variables, resumed.variables)
    assert int(resumed.step) == 6


def test_a_killed_write_leaves_nothing(teacher, images, labels, views, tmp_path, monkeypatch):
    def fail(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            training.cache_logits(apply, teacher, images, labels, views, directory=tmp_path)
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="make it with cache_logits"):
        training.load_logits(tmp_path, teacher, images, labels, views)


def test_a_teacher_killed_as_it_starts_leaves_nothing(teacher, images, labels, views, tmp_path):
    calls = []

    def dying(rng, x):
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.cache_logits(
            apply, teacher, images, labels, views._replace(augment=dying), directory=tmp_path
        )
    assert calls and os.listdir(tmp_path) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named(cached, teacher, images, labels, views, tmp_path, share):
    path = tmp_path / "teacher_logits.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(training.DamagedCacheError, match="npz is damaged: .* Delete it"):
        training.load_logits(tmp_path, teacher, images, labels, views)


def test_one_flipped_bit_is_noticed(cached, teacher, images, labels, views, tmp_path):
    path = tmp_path / "teacher_logits.npz"
    whole = bytearray(path.read_bytes())
    place = bytes(whole).index(cached[1, 4].tobytes())
    whole[place] ^= 1
    path.write_bytes(bytes(whole))
    with pytest.raises(training.DamagedCacheError, match="is damaged: Bad CRC-32"):
        training.load_logits(tmp_path, teacher, images, labels, views)


def other_images(images, labels, teacher, views):
    images = images.copy()
    images[3, 0, 0, 0] ^= 1
    return images, labels, teacher, views


def other_labels(images, labels, teacher, views):
    return images, (labels + 1) % CLASSES, teacher, views


def other_seed(images, labels, teacher, views):
    return images, labels, teacher, views._replace(rng=jax.random.key(4))


def other_count(images, labels, teacher, views):
    return images, labels, teacher, views._replace(number=3)


def other_teacher(images, labels, teacher, views):
    out = teacher["params"]["out"].at[0, 0].add(1e-3)
    return images, labels, {"params": {**teacher["params"], "out": out}}, views


def other_augmentation(images, labels, teacher, views):
    return images, labels, teacher, views._replace(augment=lambda rng, x: x / 255.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_images, r"  images: found uint8\[22, 5, 5, 1\], sha256 \w+, expected uint8\[22"),
        (other_labels, r"  labels: found int32\[22\], sha256 \w+, expected int32\[22\]"),
        (other_seed, r"  augmentation seed: found \w+ \[0, 3\], expected \w+ \[0, 4\]"),
        (other_count, "  views: found 2, expected 3"),
        (other_teacher, r"  teacher variables: found 2 arrays, sha256 \w+, expected 2 arrays"),
        (other_augmentation, r"  augmentation: found example \d augmented otherwise"),
    ],
)
def test_logits_made_for_something_else_are_refused(
    cached, teacher, images, labels, views, tmp_path, change, message
):
    images, labels, teacher, views = change(images, labels, teacher, views)
    with pytest.raises(training.CacheMismatchError, match=message) as caught:
        training.cache_logits(apply, teacher, images, labels, views, directory=tmp_path)
    assert len(str(caught.value).splitlines()) == 3
    assert "choose another directory, or delete the file" in str(caught.value)


def test_logits_of_other_shapes_are_refused_by_the_loop(cached, images, labels, views):
    tx = optax.sgd(0.1)
    loss_fn = training.distilled_from_cache(forward, distill.hinton)
    epoch = training.make_epoch(loss_fn, tx, batch_size=8, draw=views.draw)
    state = training.init_state(make(4, 1), tx, jax.random.key(2))
    with pytest.raises(ValueError, match=r"shape \(1, 22, 3\); expected \[2 views, 22 examples"):
        epoch(state, jnp.asarray(images), training.Targets(labels, cached[:1]))


def test_what_makes_no_sense_is_refused(teacher, images, labels, views, tmp_path):
    def cache(apply=apply, labels=labels, views=views, **settings):
        training.cache_logits(apply, teacher, images, labels, views, directory=tmp_path, **settings)

    with pytest.raises(ValueError, match=r"labels have the shape \(21,\) and images \(22, 5, 5, 1"):
        cache(labels=labels[1:])
    with pytest.raises(ValueError, match="views.number is 0"):
        cache(views=views._replace(number=0))
    with pytest.raises(ValueError, match="dtype is int8; logits are kept as float32 or float16"):
        cache(dtype=np.int8)
    with pytest.raises(ValueError, match=r"gives \(22, 5, 5, 1\) for a batch of 22"):
        cache(apply=lambda variables, x: x)
    with pytest.raises(ValueError, match="not finite in float16 for 44 of 44 augmented images"):
        cache(apply=lambda variables, x: 1e5 + apply(variables, x), dtype=np.float16)
    assert os.listdir(tmp_path) == []


def test_draw_and_augment_exclude_each_other(views):
    loss_fn = training.distilled_from_cache(forward, distill.hinton)
    with pytest.raises(ValueError, match="augment or draw, not both"):
        training.make_epoch(loss_fn, optax.sgd(0.1), batch_size=8, augment=augment, draw=views.draw)
