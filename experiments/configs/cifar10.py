"""ResNet-8 on CIFAR-10, dense float to verified int8.

Command:  python -m experiments.run --config=experiments/configs/cifar10.py --workdir=runs/cifar10
Cost:     100 to 150 s an epoch on 2 CPU cores, 103 epochs; TFDS downloads the data set.
Reaches:  `expect` is what it should reach; the whole run has not been measured. Three epochs of the
          first stage (--config.train.epochs=3) gave 67.20 % on a copy of the data set whose images
          were encoded as JPEG, on 2 CPU cores with seed 0.

The network is that of MLPerf Tiny (Banbury et al., 2021). Data in TFDS form somewhere else:
`--config.data.name=NAME --config.data.directory=DIR`.
"""

import ml_collections

from compressjax import models
from experiments.configs import digits


def get_config() -> ml_collections.ConfigDict:
    """The demo's settings with another data set and network, and longer training."""
    config = digits.get_config()
    config.title = "CIFAR-10, ResNet-8: dense float to int8"
    config.data.update({"name": "cifar10", "shift": 4, "flip": True, "degrees": 0.0})
    config.model = ml_collections.ConfigDict({"make": models.ResNet8, "options": {}})
    config.train.update({"epochs": 60, "batch_size": 128, "weight_decay": 5e-3})
    config.prune.update({"epochs": 10, "batch_size": 128})
    config.shrink.ratio = 0.25
    config.distil.update({"epochs": 30, "batch_size": 128})
    config.quantize.update({"epochs": 3, "batch_size": 128, "calibration_batches": 16})
    config.expect.update({"dense_accuracy": 0.80, "accuracy_drop": 0.02, "times_smaller": 5.0})
    return config
