"""The float network that benchmarks of quantization start from: trained once, then loaded.

The first stage of an experiment's config, as `experiments.run --until=train` leaves it, with batch
norm folded; `parity.py` and `post_training.py` quantize it.
"""

import pathlib
from typing import Any, NamedTuple

import jax

import compressjax as cj
from experiments import networks, stages
from experiments.pipeline import run_stages


class Trained(NamedTuple):
    """A trained network, ready to be quantized.

    Attributes:
      apply: `(variables, x [B, H, W, C]) -> logits [B, K]`, batch norm folded.
      variables: its variables.
      data: both splits of the data set it was trained on.
    """

    apply: networks.Apply
    variables: networks.Variables
    data: networks.Data


def load(config: Any, workdir: str | pathlib.Path) -> Trained:
    """Trains the dense network of a config, or loads it where that is done.

    Args:
      config: of an experiment.
      workdir: the experiment's; the stage `train` is in it or will be.

    Returns:
      The folded network.
    """
    stage = run_stages(stages.STAGES[:1], config, workdir)["train"]
    data = networks.load_data(config.data)
    dense, init = networks.dense(config.model, data.num_classes)
    like = jax.eval_shape(init, jax.random.key(0), data.example)
    variables = networks.load(stage.directory, like)
    folded, variables = cj.fold_batch_norm(dense.apply, variables, data.example)
    return Trained(folded, variables, data)


def batches(data: networks.Data, images: jax.Array, *, size: int, count: int) -> list[jax.Array]:
    """Prepares the first images of a split in batches.

    Args:
      data: where they are from.
      images: uint8 [N, H, W, C].
      size: images in a batch; the last one may have less.
      count: how many images.

    Returns:
      float32 arrays, normalised.
    """
    prepare = jax.jit(data.prepare)
    images = images[:count]
    return [prepare(images[i : i + size]) for i in range(0, images.shape[0], size)]
