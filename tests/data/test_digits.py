"""The embedded data set: the real pixels, a fixed split, whole files or none, and no TensorFlow."""

import os
import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets

from compressjax.data import load
from compressjax.data.digits import digits_data_dir, digits_split, prepare_digits


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def test_holds_every_image_once_in_eight_bits(data_dir):
    original = sklearn.datasets.load_digits()
    parts = {name: load("digits", name, data_dir=data_dir) for name in ("train", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 1437, "test": 360}
    for name, part in parts.items():
        chosen = digits_split(original.target) == (name == "test")
        assert part.images.shape[1:] == (8, 8, 1) and part.images.dtype == np.uint8
        np.testing.assert_array_equal(
            np.round(part.images[..., 0] * (16 / 255)), original.images[chosen]
        )
        assert part.images.min() == 0 and part.images.max() == 255
        np.testing.assert_array_equal(part.labels, original.target[chosen])


def test_test_split_is_balanced_over_classes_and_order():
    labels = sklearn.datasets.load_digits().target
    test = digits_split(labels)
    np.testing.assert_array_equal(np.bincount(labels[test]), [36] * 10)
    # Each tenth of the data, so each writer, gives its share: 36, but for chance.
    shares = [part.sum() for part in np.array_split(test, 10)]
    assert min(shares) >= 30 and max(shares) <= 42


def test_split_stays_as_it_was():
    """Figures are compared over years: the first test images are these."""
    labels = sklearn.datasets.load_digits().target
    assert np.flatnonzero(digits_split(labels))[:8].tolist() == [20, 21, 22, 23, 24, 25, 26, 27]


def test_default_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert digits_data_dir() == tmp_path / "compressjax"
    assert len(load("digits", "test")) == 360
    assert (tmp_path / "compressjax" / "digits" / "1.0.0").is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert digits_data_dir() == tmp_path / ".cache" / "compressjax"


def test_a_failed_preparation_leaves_nothing(monkeypatch, tmp_path):
    def fail():
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", fail)
        with pytest.raises(OSError, match="no space left"):
            prepare_digits(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert prepare_digits(tmp_path).is_dir()


def test_processes_may_prepare_at_the_same_time_without_tensorflow(tmp_path):
    code = (
        "import sys\n"
        "from compressjax import data\n"
        f"print(len(data.load('digits', 'train', data_dir={str(tmp_path)!r})))\n"
        "print('tensorflow' in sys.modules)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0].split() for process in processes] == [["1437", "False"]] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
