"""MobileNetV2 at a quarter of its width on CIFAR-10, dense float to verified int8.

Command:  python -m experiments.run --config=experiments/configs/cifar10_mobilenet.py
              --workdir=runs/cifar10_mobilenet
Cost:     103 epochs, each at least as long as those of `cifar10`; TFDS downloads the data set.
Reaches:  `expect` is what it should reach; the whole run has not been measured. `--until=train`
          gives the float network that the benchmarks of post-training quantization start from.

The depthwise layers and linear bottlenecks of this network are the hard case of int8, where those
of `cifar10` are easy. The strides leave 4x4 positions of a 32x32 image.
"""

import ml_collections

from compressjax import models
from experiments.configs import cifar10


def get_config() -> ml_collections.ConfigDict:
    """The settings of `cifar10` with another network."""
    config = cifar10.get_config()
    config.title = "CIFAR-10, MobileNetV2 x0.25: dense float to int8"
    config.model = ml_collections.ConfigDict(
        {
            "make": models.MobileNetV2,
            "options": {"multiplier": 0.25, "strides": (2, 1, 2, 1, 2, 1, 1, 1)},
        }
    )
    return config
