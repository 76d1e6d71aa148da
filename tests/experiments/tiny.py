"""The digits config, so small that all its stages take seconds: for the tests of the runner."""

import ml_collections

from experiments.configs import digits


def get_config() -> ml_collections.ConfigDict:
    """The demo with two thin layers and hardly any training."""
    config = digits.get_config()
    config.model.options = {"widths": (8, 16), "strides": (2, 2)}
    for section, epochs in (("train", 6), ("prune", 2), ("distil", 2), ("quantize", 1)):
        config[section].epochs = epochs
        config[section].save_every = 1
    config.quantize.calibration_batches = 2
    return config
