"""MobileNetV2 at a quarter of its width on CIFAR-10, dense float to verified int8.

Command:  python -m experiments.run --config=experiments/configs/cifar10_mobilenet.py \
              --workdir=runs/cifar10_mobilenet
Cost:     hours on 2 CPU cores, minutes on a GPU; TFDS downloads the data set.
Reaches:  what `expect` says: the runner prints whether it was reached.

The first two strides are 1, as is usual for images of 32 by 32 (Sandler et al., 2018).
"""

import ml_collections

from compressjax import models
from experiments.configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    """The settings of ResNet-8 with another network."""
    config = cifar10.get_config()
    config.title = "CIFAR-10, MobileNetV2 x0.25: dense float to int8"
    config.model = ml_collections.ConfigDict(
        {
            "make": models.MobileNetV2,
            "options": {"multiplier": 0.25, "strides": (1, 1, 1, 2, 2, 1, 2, 1)},
        }
    )
    config.expect.update({"times_smaller": 4.0})
    return config
