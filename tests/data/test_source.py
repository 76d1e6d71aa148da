"""Any TFDS data set of labelled images opens; anything else says what is wrong and what to do."""

import os

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from compressjax.data import Arrays, load, open_source

LABELLED = {
    "image": tfds.features.Tensor(shape=(2, 3, 1), dtype=np.float32),
    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
}


@pytest.fixture
def store(tmp_path):
    """Writes a data set of one split `train` that TFDS then finds by its files alone."""

    def write(features, examples):
        class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                yield from enumerate(examples)

        Tiny(data_dir=tmp_path, file_format="array_record").download_and_prepare()
        return tmp_path

    return write


def examples(shape=(2, 3, 1), dtype=np.float32, n=4):
    return [{"image": np.full(shape, i, dtype), "label": i % 2} for i in range(n)]


def test_reads_prepared_files_by_name(store):
    data_dir = store(LABELLED, examples())
    arrays = load("tiny", "train", data_dir=data_dir)
    assert arrays.num_classes == 2
    assert arrays.images.shape == (4, 2, 3, 1) and arrays.images.dtype == np.float32
    np.testing.assert_array_equal(arrays.images[:, 0, 0, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(arrays.labels, np.array([0, 1, 0, 1], np.int32))


def test_slices_and_sums_of_splits(store):
    data_dir = store(LABELLED, examples(n=10))
    assert len(open_source("tiny", "train[:30%]", data_dir=data_dir)) == 3
    both = open_source("tiny", "train[:2]+train[-1:]", data_dir=data_dir)
    np.testing.assert_array_equal(both.fetch(np.arange(3))[0][:, 0, 0, 0], [0, 1, 9])


def test_fetch_takes_any_order_and_repeats(store):
    source = open_source("tiny", "train", data_dir=store(LABELLED, examples()))
    images, labels = source.fetch(np.array([3, 0, 3]))
    np.testing.assert_array_equal(images[:, 0, 0, 0], [3, 0, 3])
    np.testing.assert_array_equal(labels, [1, 0, 1])


def test_unknown_name_gives_near_ones(tmp_path):
    with pytest.raises(ValueError, match=r"no data set 'cifar1O'.*did you mean cifar10"):
        load("cifar1O", "train", data_dir=tmp_path)


def test_unknown_split_lists_those_there(store):
    data_dir = store(LABELLED, examples())
    for split in ("validation", "train+val", ""):
        with pytest.raises(ValueError, match=r"'tiny' has no split .*: it has train, and slices"):
            load("tiny", split, data_dir=data_dir)


def test_empty_split_is_refused(store):
    with pytest.raises(ValueError, match=r"the split 'train\[:0\]' has no examples"):
        load("tiny", "train[:0]", data_dir=store(LABELLED, examples()))


def test_format_without_random_access_is_refused(store):
    data_dir = store(LABELLED, examples())
    folder = data_dir / "tiny" / "1.0.0"
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for path in folder.glob("*.array_record-*"):
        path.rename(folder / path.name.replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="'tiny' at .* is stored as tfrecord.*another data_dir"):
        load("tiny", "train", data_dir=data_dir)


@pytest.mark.parametrize(
    "features",
    [
        {"image": LABELLED["image"]},
        {**LABELLED, "label": tfds.features.Tensor(shape=(), dtype=np.int64)},
    ],
    ids=["no label", "label without classes"],
)
def test_features_that_are_missing_are_named(store, features):
    rows = [{key: row[key] for key in features} for row in examples()]
    data_dir = store(features, rows)
    with pytest.raises(ValueError, match="expected the features 'image' and 'label'.*'image': T"):
        load("tiny", "train", data_dir=data_dir)


def test_images_of_several_shapes_are_refused(store):
    features = {**LABELLED, "image": tfds.features.Tensor(shape=(None, 3, 1), dtype=np.uint8)}
    rows = [{"image": np.zeros([size, 3, 1], np.uint8), "label": 0} for size in (2, 4)]
    data_dir = store(features, rows)
    with pytest.raises(ValueError, match=r"one shape .* found \[\(2, 3, 1\), \(4, 3, 1\)\]"):
        load("tiny", "train", data_dir=data_dir)


def test_integer_images_are_refused(store):
    features = {**LABELLED, "image": tfds.features.Tensor(shape=(2, 3, 1), dtype=np.int32)}
    data_dir = store(features, examples(dtype=np.int32))
    with pytest.raises(TypeError, match="split 'train': expected uint8 or floating.*int32"):
        load("tiny", "train", data_dir=data_dir)


def test_arrays_pass_through_jit_with_a_static_class_count():
    arrays = Arrays(np.zeros([3, 2, 2, 1], np.uint8), np.array([0, 2, 1], np.int32), num_classes=3)
    one_hot = jax.jit(lambda data: jax.nn.one_hot(data.labels, data.num_classes))(arrays)
    np.testing.assert_array_equal(one_hot, np.eye(3)[[0, 2, 1]])
    on_device = jax.device_put(arrays)
    assert isinstance(on_device, Arrays) and on_device.num_classes == 3


@pytest.mark.skipif(
    "COMPRESSJAX_TFDS" not in os.environ, reason="COMPRESSJAX_TFDS names no folder of data sets"
)
def test_cifar10_of_the_folder_in_the_environment():
    source = open_source("cifar10_jpeg", "test", data_dir=os.environ["COMPRESSJAX_TFDS"])
    images, labels = source.fetch(range(100))
    assert len(source) == 10_000 and source.num_classes == 10
    assert images.shape == (100, 32, 32, 3) and images.dtype == np.uint8
    assert images.std() > 30 and set(labels.tolist()) == set(range(10))
