"""Augmentation, normalisation and shuffling against what NumPy does, one image at a time."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.data import Arrays, augment, epoch_indices, fits, moments, normalise


def images(shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(1, 256, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalised_images_have_mean_zero_and_deviation_one(dtype):
    data = images([50, 6, 5, 3], dtype)
    mean, std = moments(data)
    result = np.asarray(jax.jit(normalise)(data, mean, std))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(result.std((0, 1, 2)), 1, atol=1e-5)
    unit = data.astype(np.float64) / (255 if dtype == np.uint8 else 1)
    np.testing.assert_allclose(mean, unit.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, unit.std((0, 1, 2)), rtol=1e-6)


def test_constant_channel_is_centred_and_finite():
    data = np.full([4, 2, 2, 1], 51, np.uint8)
    np.testing.assert_allclose(normalise(data, *map(jnp.asarray, moments(data))), 0, atol=1e-6)


def test_statistics_of_the_wrong_shape_are_refused():
    with pytest.raises(AssertionError):
        normalise(jnp.zeros([2, 4, 4, 3]), jnp.zeros([1]), jnp.ones([1]))


@hypothesis.given(shift=st.integers(0, 3), flip=st.booleans(), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=12)
def test_shift_and_flip_are_crops_of_the_padded_image(shift, flip, seed):
    data = images([6, 4, 5, 2], seed=seed)
    moved = np.asarray(augment(jax.random.key(seed), data, shift=shift, flip=flip))
    assert moved.shape == data.shape and moved.dtype == data.dtype
    for before, after in zip(data, moved, strict=True):
        padded = np.pad(before, [(shift, shift), (shift, shift), (0, 0)])
        crops = [
            padded[y : y + 4, x : x + 5] for y in range(2 * shift + 1) for x in range(2 * shift + 1)
        ]
        crops += [crop[:, ::-1] for crop in crops] if flip else []
        assert any((crop == after).all() for crop in crops)


def test_every_shift_and_both_sides_occur_and_images_differ():
    data = np.broadcast_to(images([1, 4, 4, 1]), [300, 4, 4, 1])
    moved = np.asarray(augment(jax.random.key(0), data, shift=1, flip=True))
    assert len(np.unique(moved.reshape([300, -1]), axis=0)) == 2 * 9


def test_no_augmentation_is_the_identity_and_the_key_decides():
    data = images([8, 5, 5, 1])
    np.testing.assert_array_equal(augment(jax.random.key(0), data), data)
    move = jax.jit(lambda rng: augment(rng, data, shift=2, flip=True, degrees=20.0))
    np.testing.assert_array_equal(move(jax.random.key(1)), move(jax.random.key(1)))
    assert (move(jax.random.key(1)) != move(jax.random.key(2))).any()


def test_rotation_is_bilinear_about_the_centre():
    data = np.random.default_rng(0).random([3, 5, 6, 2], np.float32)
    turned = np.asarray(augment(jax.random.key(3), data, degrees=30.0))
    rotate_rng, _, _ = jax.random.split(jax.random.key(3), 3)
    angles = np.asarray(jax.random.uniform(rotate_rng, [3], minval=-30.0, maxval=30.0))
    assert np.abs(angles).min() > 1
    for image, angle, found in zip(
        data, np.deg2rad(angles.astype(np.float64)), turned, strict=True
    ):
        expected = np.zeros_like(image)
        for y, x in np.ndindex(5, 6):
            v = np.cos(angle) * (y - 2) - np.sin(angle) * (x - 2.5) + 2
            u = np.sin(angle) * (y - 2) + np.cos(angle) * (x - 2.5) + 2.5
            for j, i in [(0, 0), (0, 1), (1, 0), (1, 1)]:
                row, column = int(np.floor(v)) + j, int(np.floor(u)) + i
                if 0 <= row < 5 and 0 <= column < 6:
                    weight = (1 - abs(v - row)) * (1 - abs(u - column))
                    expected[y, x] += weight * image[row, column]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_rotated_bytes_stay_bytes_in_range():
    data = np.full([20, 8, 8, 1], 255, np.uint8)
    turned = np.asarray(augment(jax.random.key(0), data, degrees=45.0))
    assert turned.dtype == np.uint8
    assert (turned[:, 3:5, 3:5] == 255).all() and (turned[:, 0, 0] < 255).any()


def test_negative_amounts_are_refused():
    with pytest.raises(ValueError, match=r"shift=-1 and degrees=0.0 must not be negative"):
        augment(jax.random.key(0), jnp.zeros([1, 2, 2, 1]), shift=-1)


@hypothesis.given(n=st.integers(1, 40), batch=st.integers(1, 40), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=15)
def test_epoch_visits_no_example_twice(n, batch, seed):
    if batch > n:
        with pytest.raises(ValueError, match=f"batch={batch} must be from 1 to the {n} examples"):
            epoch_indices(jax.random.key(seed), n, batch)
        return
    indices = np.asarray(epoch_indices(jax.random.key(seed), n, batch))
    assert indices.shape == (n // batch, batch) and indices.dtype == np.int32
    assert len(np.unique(indices)) == indices.size
    assert indices.min() >= 0 and indices.max() < n


def test_epochs_of_other_keys_are_in_another_order():
    first, second = (epoch_indices(jax.random.key(seed), 100, 10) for seed in (0, 1))
    assert (first != second).any()


def test_fits_compares_bytes_with_memory():
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 4000}

    arrays = Arrays(np.zeros([10, 5, 5, 1], np.uint8), np.zeros(10, np.int32), num_classes=2)
    assert arrays.images.nbytes + arrays.labels.nbytes == 290
    assert fits(arrays, device=Device(), fraction=290 / 4000)
    assert not fits(arrays, device=Device(), fraction=289 / 4000)
    assert fits(arrays) and not fits(arrays, fraction=0.0)
