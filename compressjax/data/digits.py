"""The embedded data set: real handwritten digits that ship inside scikit-learn, as a TFDS builder.

Unlike any other name that `source` opens, `digits` needs no download and no TensorFlow: its images
are handed to TFDS as finished PNG files, which TFDS stores untouched.
"""

import contextlib
import io
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

TEST_PER_CLASS = 36


def digits_data_dir() -> pathlib.Path:
    """Where `digits` is kept: `$XDG_CACHE_HOME/compressjax`, or `~/.cache/compressjax`.

    Returns:
      The folder, which may not exist yet.

    Example:
      >>> digits_data_dir().name
      'compressjax'
    """
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "compressjax"


def digits_split(labels: np.ndarray) -> np.ndarray:
    """Marks the test examples: of each class, 36 spread evenly over the order of the data.

    The images come in blocks, one per writer. Spreading the test examples gives every class and
    every writer the same share in both parts, so the figure is the accuracy on writers that were
    seen. Taking the last 360 instead would test on other writers than it trains on and costs about
    1.5 points.

    Args:
      labels: `[N]` int, the classes in the data's order.

    Returns:
      `[N]` bool, True where an example belongs to the test split.

    Example:
      >>> digits_split(np.repeat([0, 1], 72)).sum()
      np.int64(72)
    """
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        test[places[(2 * np.arange(TEST_PER_CLASS) + 1) * len(places) // (2 * TEST_PER_CLASS)]] = (
            True
        )
    return test


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 digits of 8x8 pixels: 1,437 to train on and 360, 36 of each class, to test on.

    The images are the test part of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits"
    (UCI, 1998), by 13 writers, as `sklearn.datasets.load_digits` has them; their 0..16 becomes
    uint8 0..255.

    Example:
      >>> Digits.name
      'digits'
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "36 test examples of each class, spread evenly over the order."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8x8 pixels that ship inside scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # Nothing is downloaded.
        return {
            "train": self._generate_examples(test=False),
            "test": self._generate_examples(test=True),
        }

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        for index in np.flatnonzero(digits_split(digits.target) == test):
            yield int(index), {"image": _png(images[index]), "label": int(digits.target[index])}


def _png(image: np.ndarray) -> bytes:
    """Encodes a `[H, W]` uint8 image as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def prepare_digits(data_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes `digits` as array_record files under `data_dir`, where it is not there yet.

    The files are made in a scratch folder and renamed into place, so that processes that prepare at
    the same time, or die while they do, leave one whole data set.

    Args:
      data_dir: the folder that TFDS is given; made if missing.

    Returns:
      The folder that holds the files.

    Raises:
      ImportError: scikit-learn or pillow is not installed.
      OSError: the folder cannot be written.

    Example:
      >>> with tempfile.TemporaryDirectory() as data_dir:
      ...     sorted(path.suffix for path in prepare_digits(data_dir).glob('*.json'))
      ['.json', '.json']
    """
    root = pathlib.Path(data_dir)
    place = root / Digits.name / str(Digits.VERSION)
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".digits-", dir=root) as scratch:
        builder = Digits(data_dir=scratch, file_format="array_record")
        # TFDS announces a download and draws bars, for half a second's work in a scratch folder.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare(download_dir=scratch, file_format="array_record")
        try:
            os.rename(builder.data_dir, place)
        except OSError:
            if not place.is_dir():  # Otherwise another process was first, with the same bytes.
                raise
    return place
