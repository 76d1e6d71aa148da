"""VGG16 at a quarter of its width on CIFAR-10: the network of the slimming benchmarks.

Command:  python -m experiments.bench.network_slimming --config=experiments/configs/cifar10_vgg16.py
              --workdir=runs/cifar10_vgg16
Cost:     see that benchmark; TFDS downloads the data set.
Reaches:  `expect` is what the runner's whole chain should reach; it has not been measured.

Every layer has batch norm and no channels are added up, so each of the 13 convolutions is a group
of its own. At full width an epoch takes over half an hour on 2 CPU cores.
"""

import ml_collections

from compressjax import models
from experiments.configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    """The settings of `cifar10` with another network."""
    config = cifar10.get_config()
    config.title = "CIFAR-10, VGG16 x0.25: dense float to int8"
    config.model = ml_collections.ConfigDict(
        {"make": models.VGG16, "options": {"multiplier": 0.25}}
    )
    return config
