"""A teacher's logits on the disk: a large teacher runs once over a data set, not in every step.

`losses.distilled` runs the teacher in every step, on whatever the step's augmentation drew. To keep
its answers instead, the augmented images must come again: here a data set has K fixed views, and
how an example is augmented in a view is a function of a key, the view and the example's index, so
neither the batch it falls into nor the order of the epoch matters. Epoch `e` trains on view
`e % K`, which keeps student and teacher on the same crops (Beyer et al., "Knowledge distillation: A
good teacher is patient and consistent", 2022) at the price of only K different ones.

The file carries checksums and a description of what it was made for, and is refused for anything
else.
"""

import functools
import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from compressjax import _atomic
from compressjax.training.loop import Augment, LossFn, Metrics, Variables
from compressjax.training.losses import Apply, Forward, distilled

FILE_NAME = "teacher_logits.npz"
_PROBE = 8  # examples whose augmented images are kept, to know the augmentation again


class DamagedCacheError(ValueError):
    """Cached logits cannot be read back as they were written."""


class CacheMismatchError(ValueError):
    """Cached logits were made for other data, another augmentation or another teacher."""


class Targets(NamedTuple):
    """What a student learns from.

    Attributes:
      labels: integer [N]; in a batch [B].
      logits: the teacher's, [K, N, C] over all views; in a batch [B, C], those of its view.
    """

    labels: Any
    logits: Any


class Views(NamedTuple):
    """K augmented views of a data set, the same whenever they are drawn.

    Attributes:
      augment: `(rng, images [B, ...]) -> x [B, ...]`; it is given one image at a time.
      rng: [] typed key of all views.
      number: K, at least 1.
    """

    augment: Augment
    rng: jax.Array
    number: int

    def images(self, view: jax.Array | int, rows: jax.Array, images: jax.Array) -> jax.Array:
        """Augment some examples as a view has them.

        Args:
          view: [] integer in [0, K); may be traced.
          rows: [B] integers, the indices of the examples in the data set.
          images: [B, ...], these examples.

        Returns:
          [B, ...] as `augment` gives them; an example's depends on `rng`, `view` and its row only.

        Example:
          >>> augment = lambda rng, x: x + jax.random.normal(rng, x.shape)
          >>> views = Views(augment, jax.random.key(0), 2)
          >>> both = views.images(1, jnp.array([3, 4]), jnp.zeros((2, 1)))
          >>> bool(both[1] == views.images(1, jnp.array([4]), jnp.zeros((1, 1)))[0])
          True
        """
        of_view = jax.random.fold_in(self.rng, view)
        keys = jax.vmap(functools.partial(jax.random.fold_in, of_view))(rows)
        return jax.vmap(lambda key, image: self.augment(key, image[None])[0])(keys, images)

    def draw(
        self, rng: jax.Array, epoch: jax.Array, rows: jax.Array, images: jax.Array, targets: Targets
    ) -> tuple[jax.Array, Targets]:
        """Draw a batch of the epoch's view: the `draw` of `loop.make_epoch`.

        Args:
          rng: unused: views have a key of their own.
          epoch: [] integer, counted from 0.
          rows: [B] integers, the indices of the examples.
          images: [N, ...].
          targets: over the whole set.

        Returns:
          The augmented images [B, ...], and the batch's labels [B] and logits [B, C].

        Raises:
          ValueError: `targets` are of another number of views or examples.
        """
        del rng
        expected = (self.number, images.shape[0])
        if targets.logits.ndim != 3 or targets.logits.shape[:2] != expected:
            raise ValueError(
                f"the teacher's logits have the shape {targets.logits.shape}; expected "
                f"[{expected[0]} views, {expected[1]} examples, classes]. Make them with "
                "cache_logits for these views and images."
            )
        chex.assert_equal_shape_prefix([images, targets.labels], 1)
        view = epoch % self.number
        x = self.images(view, rows, images[rows])
        return x, Targets(targets.labels[rows], targets.logits[view, rows])


def cache_logits(
    apply: Apply,
    variables: Variables,
    images: Any,
    labels: Any,
    views: Views,
    *,
    directory: _atomic.PathLike,
    batch_size: int = 256,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Run a teacher once over every view of a data set, or read what it said before.

    The teacher sees the images in the order of the set, in batches of one compiled shape; images
    on the host are sent a batch at a time. The file appears whole, after the last view.

    Args:
      apply: the teacher in evaluation mode, `(variables, x [B, ...]) -> logits [B, C]`.
      variables: its variables.
      images: [N, ...], on the host or the device.
      labels: [N] integers; they tell this data set from others.
      views: how and how often the images are augmented.
      directory: gets `teacher_logits.npz`; one that is there is read as `load_logits` does.
      batch_size: images at a time.
      dtype: float32, or float16 for half the file.

    Returns:
      The logits [K, N, C].

    Raises:
      CacheMismatchError, DamagedCacheError: as in `load_logits`.
      ValueError: the set is empty, or the numbers of labels, views, `batch_size` or `dtype` make
        no sense, or the teacher gives other than finite [B, C].

    Example:
      >>> import tempfile
      >>> views = Views(lambda rng, x: x + jax.random.normal(rng, x.shape), jax.random.key(0), 3)
      >>> images, labels = np.eye(5, dtype=np.float32), np.arange(5) % 2
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     logits = cache_logits(lambda w, x: x @ w, np.ones((5, 2)), images, labels, views,
      ...                           directory=folder, batch_size=2)
      ...     again = load_logits(folder, np.ones((5, 2)), images, labels, views)
      >>> logits.shape, bool((logits == again).all())
      ((3, 5, 2), True)
    """
    path = pathlib.Path(directory) / FILE_NAME
    _check(images, labels, views, batch_size, dtype)
    if path.exists():
        return load_logits(directory, variables, images, labels, views)
    total = images.shape[0]
    batch_size = min(batch_size, total)

    @jax.jit
    def answer(variables: Variables, view: jax.Array, rows: jax.Array, x: jax.Array) -> jax.Array:
        return apply(variables, views.images(view, rows, x))

    per_view = []
    for view in range(views.number):
        answers = []
        for start in range(0, total, batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), total - 1).astype(np.int32)
            answers.append(np.asarray(answer(variables, np.int32(view), rows, images[rows])))
            if answers[-1].ndim != 2 or answers[-1].shape[0] != batch_size:
                raise ValueError(
                    f"the teacher gives {answers[-1].shape} for a batch of {batch_size}; expected "
                    "logits [B, C]. Pass a function that returns them alone."
                )
        with np.errstate(over="ignore"):  # found below, with its example
            per_view.append(np.concatenate(answers)[:total].astype(dtype))
    logits = np.stack(per_view)
    wrong = np.argwhere(~np.isfinite(logits).all(axis=-1))
    if wrong.size:
        raise ValueError(
            f"the teacher's logits are not finite in {np.dtype(dtype)} for {len(wrong)} of "
            f"{views.number * total} augmented images, first example {wrong[0, 1]} of view "
            f"{wrong[0, 0]}. Look at the teacher's variables; float16 ends at 65504."
        )
    buffer = io.BytesIO()
    made_for = json.dumps(_describe(variables, images, labels, views))
    np.savez(buffer, logits=logits, probe=_probe(images, views), made_for=np.array(made_for))
    _atomic.write_bytes(path, buffer.getvalue())
    return logits


def load_logits(
    directory: _atomic.PathLike, variables: Variables, images: Any, labels: Any, views: Views
) -> np.ndarray:
    """Read a teacher's logits that were made for exactly these views of exactly these data.

    The teacher is known by its variables: a function cannot be compared. The augmentation is known
    by the views' key and by what it makes of the first eight images (to 1e-3, since devices round
    differently).

    Args:
      directory: as given to `cache_logits`.
      variables: the teacher's.
      images: [N, ...].
      labels: [N].
      views: how and how often the images are augmented.

    Returns:
      The logits [K, N, C], of the dtype they were written in.

    Raises:
      FileNotFoundError: there are none.
      CacheMismatchError: they were made for something else.
      DamagedCacheError: the file is not what was written.
    """
    path = pathlib.Path(directory) / FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"no {path}: make it with cache_logits.")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            logits, probe, made_for = file["logits"], file["probe"], str(file["made_for"])
        found = json.loads(made_for)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedCacheError(
            f"{path} is damaged: {text[:200]}. Delete it, and cache_logits makes it again."
        ) from error
    expected = _describe(variables, images, labels, views)
    lines = [
        f"  {name}: found {found.get(name, 'nothing')}, expected {value}"
        for name, value in expected.items()
        if found.get(name) != value
    ]
    if not lines:
        lines = _probe_differs(probe, _probe(images, views))
    if lines:
        raise CacheMismatchError(
            "\n".join([f"{path} was made for something else:", *lines])
            + "\nPass what it was made for, choose another directory, or delete the file to let "
            "cache_logits run the teacher again."
        )
    return logits


def distilled_from_cache(
    forward: Forward, loss: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
) -> LossFn:
    """A student's loss against logits that come with the batch: `losses.distilled` from a cache.

    Args:
      forward: the student, `(variables, x, rng) -> (logits [B, C], variables)`.
      loss: `(student_logits, teacher_logits, labels [B]) -> loss`, [] or [B]; the mean is taken.

    Returns:
      A loss for `make_epoch(..., draw=views.draw)` over `Targets`, with the metrics `accuracy` and
      `teacher_accuracy`.

    Example:
      >>> forward = lambda variables, x, rng: (x @ variables['params'], variables)
      >>> loss_fn = distilled_from_cache(forward, lambda s, t, labels: jnp.mean((s - t) ** 2))
      >>> targets = Targets(jnp.arange(3), jnp.eye(3, dtype=jnp.float16))
      >>> loss, _ = loss_fn({'params': jnp.eye(3)}, jnp.eye(3), targets, None)
      >>> float(loss)
      0.0
    """

    def loss_fn(
        variables: Variables, x: jax.Array, targets: Targets, rng: jax.Array
    ) -> tuple[jax.Array, tuple[Variables, Metrics]]:
        logits = targets.logits.astype(jnp.float32)
        return distilled(forward, lambda x: logits, loss)(variables, x, targets.labels, rng)

    return loss_fn


def _check(images: Any, labels: Any, views: Views, batch_size: int, dtype: Any) -> None:
    if labels.shape != images.shape[:1] or not images.shape[0]:
        raise ValueError(
            f"labels have the shape {labels.shape} and images {images.shape}; expected one label "
            "for each of at least one image."
        )
    if views.number < 1 or batch_size < 1:
        raise ValueError(
            f"views.number is {views.number} and batch_size {batch_size}; both are at least 1."
        )
    if np.dtype(dtype) not in (np.float32, np.float16):
        raise ValueError(f"dtype is {np.dtype(dtype)}; logits are kept as float32 or float16.")


def _describe(variables: Variables, images: Any, labels: Any, views: Views) -> dict[str, str]:
    """What logits depend on, each as a short text."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    teacher = hashlib.sha256()
    for path, leaf in leaves:
        teacher.update(f"{jax.tree_util.keystr(path)} {_digest(leaf)}".encode())
    seed = np.asarray(jax.random.key_data(views.rng)).tolist()
    return {
        "images": _digest(images),
        "labels": _digest(labels),
        "views": str(views.number),
        "augmentation seed": f"{jax.random.key_impl(views.rng)} {seed}",
        "teacher variables": f"{len(leaves)} arrays, sha256 {teacher.hexdigest()[:16]}",
    }


def _digest(array: Any) -> str:
    array = np.asarray(array)
    digest = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()[:16]
    return f"{array.dtype}{list(array.shape)}, sha256 {digest}"


def _probe(images: Any, views: Views) -> np.ndarray:
    """What the first view makes of the first images."""
    rows = np.arange(min(_PROBE, images.shape[0]), dtype=np.int32)
    return np.asarray(jax.jit(views.images)(0, rows, images[rows]))


def _probe_differs(found: np.ndarray, expected: np.ndarray) -> list[str]:
    if found.shape != expected.shape:
        return [f"  augmented images: found {found.shape}, expected {expected.shape}"]
    gap = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    if gap.max() <= 1e-3:
        return []
    example = int(np.argmax(gap.reshape(len(gap), -1).max(axis=1)))
    return [
        f"  augmentation: found example {example} augmented otherwise, by up to {gap.max():.4g}; "
        "expected at most 0.001"
    ]
