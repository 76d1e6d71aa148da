"""Opens a split of any TFDS data set of labelled images, as NumPy arrays and without TensorFlow.

This module reads; what is done to images on the device is `pipeline`'s, and batches that come from
the host are `host`'s. `digits` is built in (see `digits`), any other name is TFDS's own.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from compressjax.data.digits import Digits, digits_data_dir, prepare_digits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Arrays:
    """A whole split in memory; a pytree of two arrays, so it may be put on devices and jitted over.

    Attributes:
      images: `[N, H, W, C]`, uint8 in 0..255, or floating where the data set stores floats.
      labels: `[N]` int32, in `0..num_classes-1`.
      num_classes: number of classes; static under jit.
      class_names: what they are called, in the order of the labels; static, and empty if unknown.

    Example:
      >>> arrays = Arrays(np.zeros([4, 8, 8, 1], np.uint8), np.zeros(4, np.int32), num_classes=10)
      >>> len(arrays), arrays.num_classes
      (4, 10)
    """

    images: Any
    labels: Any
    num_classes: int = dataclasses.field(metadata={"static": True})
    class_names: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: np.ndarray) -> tuple[Any, Any]:
        """Gives the images `[B, H, W, C]` and labels `[B]` at these indices `[B]`."""
        return self.images[indices], self.labels[indices]


@dataclasses.dataclass(frozen=True)
class Source:
    """A split on disk, read and decoded as it is asked for; see `open_source`.

    Attributes:
      name: the data set's name, for messages.
      split: the split's name, for messages.
      num_classes: number of classes.
      class_names: what they are called, in the order of the labels.
      records: TFDS's random-access sequence of examples.
    """

    name: str
    split: str
    num_classes: int
    class_names: tuple[str, ...]
    records: Sequence[Any]

    def __len__(self) -> int:
        return len(self.records)

    def fetch(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads and decodes the examples at these indices.

        Args:
          indices: `[B]` int.

        Returns:
          Images `[B, H, W, C]`, uint8 or floating, and labels `[B]` int32.

        Raises:
          ValueError: the images have no common shape `[H, W, C]`.
          TypeError: the images are neither uint8 nor floating.
        """
        examples = self.records.__getitems__([int(index) for index in indices])  # type: ignore[attr-defined]
        shapes = sorted({np.shape(example["image"]) for example in examples})
        where = f"data set {self.name!r}, split {self.split!r}"
        if len(shapes) != 1 or len(shapes[0]) != 3:
            raise ValueError(
                f"{where}: expected images of one shape [H, W, C], found {shapes[:4]}; prepare the"
                " data set with images of one size"
            )
        images = np.stack([example["image"] for example in examples])
        if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
            raise TypeError(f"{where}: expected uint8 or floating images, found {images.dtype}")
        return images, np.array([example["label"] for example in examples], np.int32)


def open_source(name: str, split: str, *, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """Opens a split without reading its examples; prepares the data set first where it is missing.

    Args:
      name: `digits`, or any TFDS name such as `cifar10` or `cifar10:3.0.2`.
      split: a TFDS split such as `train`, `test` or `train[:90%]`.
      data_dir: where TFDS keeps data sets. Default: `digits_data_dir()` for digits, TFDS's own
        folder for others.

    Returns:
      The open split.

    Raises:
      ValueError: no such data set or split; the split is empty; the data set is not one of
        labelled images; or it is prepared in a file format that allows no random access.
      ImportError: TFDS must prepare the data set and a package for it is missing.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as data_dir:
      ...     source = open_source('digits', 'test', data_dir=data_dir)
      ...     images, labels = source.fetch(range(4))
      >>> len(source), images.shape, labels
      (360, (4, 8, 8, 1), array([0, 1, 2, 3], dtype=int32))
    """
    builder = _prepared(name, data_dir)
    splits = sorted(builder.info.splits)
    unknown = {part for part in re.findall(r"([^+\[\]]+)(?:\[[^\]]*\])?", split)} - set(splits)
    if unknown or not split:
        raise ValueError(
            f"data set {name!r} has no split {split!r}: it has {', '.join(splits)}, and slices of"
            f" them such as '{splits[0]}[:90%]'"
        )
    if not builder.info.splits[split].num_examples:
        raise ValueError(f"data set {name!r}: the split {split!r} has no examples")
    features = builder.info.features
    missing = {"image", "label"} - set(features)
    num_classes = None if missing else getattr(features["label"], "num_classes", None)
    if num_classes is None:
        raise ValueError(
            f"data set {name!r}: expected the features 'image' and 'label' (a class label), found"
            f" {dict(features)}; choose a data set for image classification"
        )
    try:
        records = builder.as_data_source(split)
    except NotImplementedError as error:
        found = builder.info.file_format.value
        raise ValueError(
            f"data set {name!r} at {builder.data_dir} is stored as {found}, which allows no random"
            " access; give another data_dir, and it is prepared there as array_record"
        ) from error
    return Source(name, split, num_classes, tuple(features["label"].names), records)


def load(name: str, split: str, *, data_dir: str | os.PathLike[str] | None = None) -> Arrays:
    """Reads a whole split into host memory; arguments and errors as `open_source`.

    Args:
      name: `digits`, or any TFDS name.
      split: a TFDS split such as `train`, `test` or `train[:90%]`.
      data_dir: where TFDS keeps data sets.

    Returns:
      NumPy arrays, in the order of the files.

    Raises:
      ValueError: as `open_source`, or the images have no common shape.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as data_dir:
      ...     train = load('digits', 'train', data_dir=data_dir)
      >>> train.images.shape, train.images.dtype, train.labels.dtype, train.num_classes
      ((1437, 8, 8, 1), dtype('uint8'), dtype('int32'), 10)
    """
    source = open_source(name, split, data_dir=data_dir)
    examples = source.fetch(range(len(source)))
    return Arrays(*examples, source.num_classes, source.class_names)


def _prepared(name: str, data_dir: str | os.PathLike[str] | None) -> tfds.core.DatasetBuilder:
    """Finds the data set's builder and makes its files where they are missing."""
    if re.split("[:/]", name)[0] == Digits.name:
        data_dir = data_dir or digits_data_dir()
        prepare_digits(data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise ValueError(
            f"no data set {name!r} in TFDS or in {data_dir or 'its default folder'}: {hint}"
            "the names are at https://www.tensorflow.org/datasets/catalog"
        ) from error
    builder.download_and_prepare(file_format="array_record")
    return builder
