"""The networks of a run as pure functions, and where their variables are kept.

A function cannot be written to the disk, so each stage rebuilds the ones before it from the config
and the saved variables: transforms are deterministic, and tracing costs no training. `stages.py`
says what is done to the networks.
"""

import functools
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import compressjax as cj
from compressjax import data, training, tree

Variables = dict[str, Any]
Apply = Callable[[Variables, jax.Array], jax.Array]


class Network(NamedTuple):
    """A network as two functions over the same variables.

    Attributes:
      apply: `(variables, x [B, H, W, C]) -> logits [B, K]`, in evaluation mode.
      train: `(variables, x) -> (logits, batch statistics)`, in training mode.
    """

    apply: Apply
    train: Callable[[Variables, jax.Array], tuple[jax.Array, Variables]]

    def forward(
        self, variables: Variables, x: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, Variables]:
        """The training mode as the losses take it."""
        del rng
        logits, statistics = self.train(variables, x)
        return logits, {**variables, **statistics}


class Data(NamedTuple):
    """Both splits on the device, and what is done to their images inside jit.

    Attributes:
      train_images: [N, H, W, C], uint8 as a rule.
      train_labels: [N] int32.
      test_images: [N, H, W, C].
      test_labels: [N] int32.
      num_classes: number of classes.
      augment: `(rng, images) -> x`, moved at random and normalised.
      prepare: `images -> x`, normalised.
      mean: of each channel, [C], of images scaled to 0..1; what `prepare` takes off.
      std: likewise, what `prepare` divides by.
      class_names: in the order of the labels.
    """

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array
    num_classes: int
    augment: Callable[[jax.Array, jax.Array], jax.Array]
    prepare: Callable[[jax.Array], jax.Array]
    mean: np.ndarray | float = 0.0
    std: np.ndarray | float = 1.0
    class_names: tuple[str, ...] = ()

    @property
    def example(self) -> jax.Array:
        """One prepared test image, [1, H, W, C]."""
        return jax.jit(self.prepare)(self.test_images[:1])


def load_data(settings: Any) -> Data:
    """Open the data set of a config and put it on the device.

    Args:
      settings: the section `data` of a config.

    Returns:
      Both splits; `prepare` normalises with the training split's moments.

    Raises:
      ValueError: there is no such data set or split.
    """
    directory = settings.directory or None
    train, test = (
        data.load(settings.name, split, data_dir=directory)
        for split in (settings.train_split, settings.test_split)
    )
    mean, std = data.moments(train.images)
    std = np.where(std > 0, std, 1)
    prepare = functools.partial(data.normalise, mean=jnp.asarray(mean), std=jnp.asarray(std))

    def augment(rng: jax.Array, images: jax.Array) -> jax.Array:
        moved = data.augment(
            rng, images, shift=settings.shift, flip=settings.flip, degrees=settings.degrees
        )
        return prepare(moved)

    return Data(
        jnp.asarray(train.images),
        jnp.asarray(train.labels),
        jnp.asarray(test.images),
        jnp.asarray(test.labels),
        train.num_classes,
        augment,
        prepare,
        mean,
        std,
        train.class_names,
    )


def dense(settings: Any, num_classes: int) -> tuple[Network, Callable[..., Variables]]:
    """Build the network that a config starts from.

    Args:
      settings: the section `model` of a config.
      num_classes: number of logits.

    Returns:
      The network, and `init(rng, x) -> variables`.
    """
    model = settings.make(num_classes=num_classes, **settings.options)

    def apply(variables: Variables, x: jax.Array) -> jax.Array:
        return model.apply(variables, x, train=False)

    def train(variables: Variables, x: jax.Array) -> tuple[jax.Array, Variables]:
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    return Network(apply, train), model.init


def shrunk(
    network: Network, variables: Variables, x: jax.Array, settings: Any
) -> tuple[Network, Variables]:
    """Cut channels out of a network, in both modes.

    Args:
      network: as it is.
      variables: whose weights say which channels go.
      x: an example, [1, H, W, C].
      settings: the section `shrink` of a config.

    Returns:
      The smaller network and its variables.
    """
    cut = cj.shrink(
        network.apply,
        variables,
        x,
        ratio=None if settings.macs else settings.ratio,
        target=cj.slimming.macs(settings.macs) if settings.macs else None,
        importance=settings.importance(),
        ranking=settings.ranking(),
        round_to=settings.round_to,
    )
    return Network(cut.apply, cut.transform(network.train)), cut.variables


def factorized(
    network: Network, variables: Variables, x: jax.Array, settings: Any
) -> tuple[Network, Variables]:
    """Replace layers by chains of thinner ones, in both modes, where a config asks for it.

    Args:
      network: as it is.
      variables: whose singular values say which ranks go.
      x: an example, [1, H, W, C].
      settings: the section `factorize` of a config.

    Returns:
      The network with factors and its variables; as they are if `settings.macs` is 0.
    """
    if not settings.macs:
        return network, variables
    chains = cj.factorize(
        network.apply,
        variables,
        x,
        rank=cj.lowrank.macs(settings.macs, round_to=settings.round_to),
        method=settings.method() if settings.method else None,
        select=settings.select,
    )
    return Network(chains.apply, chains.transform(network.train)), chains.variables


def keeping_zeros(forward: training.Forward, variables: Variables) -> training.Forward:
    """Hold the kernels' zeros at zero while training: they get no gradient.

    Args:
      forward: a training forward pass.
      variables: whose kernels' zeros stay.

    Returns:
      A forward pass with the same signature.
    """
    keep = tree.map_with_path(
        lambda path, leaf: leaf != 0 if path.endswith("/kernel") else None, variables["params"]
    )

    def masked(variables: Variables, x: jax.Array, rng: jax.Array) -> tuple[jax.Array, Variables]:
        params = cj.apply_masks(variables["params"], keep)
        return forward({**variables, "params": params}, x, rng)

    return masked


def save(directory: pathlib.Path, variables: Variables) -> None:
    """Write a stage's variables into its directory."""
    with training.Checkpoints(directory / "variables", keep=1) as checkpoints:
        checkpoints.save((checkpoints.latest() or 0) + 1, variables)


def load(directory: pathlib.Path, like: Variables) -> Variables:
    """Read a stage's variables.

    Args:
      directory: of the stage.
      like: variables of the same structure.

    Returns:
      The variables as they were saved.

    Raises:
      FileNotFoundError: they are not there.
      DamagedCheckpointError: they cannot be read back.
    """
    with training.Checkpoints(directory / "variables", keep=1) as checkpoints:
        return checkpoints.restore(like)


def size_figures(apply: Any, variables: Variables, x: jax.Array) -> dict[str, Any]:
    """Count a network's parameters and multiply-accumulates.

    Args:
      apply: `(variables, x) -> logits`.
      variables: its variables.
      x: one example, [1, H, W, C].

    Returns:
      `parameters`, `nonzero`, `macs`, and `checksum`, which tells two sets of variables apart.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(variables["params"])]
    checksum = 0
    for leaf in jax.tree.leaves(variables):
        checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    return {
        "parameters": sum(leaf.size for leaf in leaves),
        "nonzero": sum(int(np.count_nonzero(leaf)) for leaf in leaves),
        "macs": cj.trace(apply, variables, x).macs,
        "checksum": checksum,
    }
