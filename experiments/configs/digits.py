"""The demo: a small CNN on the embedded handwritten digits, dense float to verified int8.

Command:  python -m experiments.run --config=experiments/configs/digits.py --workdir=runs/digits
Cost:     under 5 minutes on 2 CPU cores, no download, no accelerator.
Reaches:  what `expect` says: the runner prints whether it was reached.

Data: 1,437 images to train on, 360 to test on, of the same 13 writers (see compressjax/data).
"""

import ml_collections

from compressjax import models, quant, slimming


def get_config() -> ml_collections.ConfigDict:
    """Every setting of the run; `--config.section.key=value` changes one."""
    config = ml_collections.ConfigDict()
    config.title = "Handwritten digits: dense float to int8"
    config.seed = 0
    config.data = ml_collections.ConfigDict(
        {
            "name": "digits",
            "directory": "",  # empty: where TFDS keeps data sets
            "train_split": "train",
            "test_split": "test",
            "shift": 1,
            "flip": False,
            "degrees": 10.0,
        }
    )
    config.model = ml_collections.ConfigDict(
        {"make": models.SmallCNN, "options": {"widths": (32, 64, 128)}}
    )
    config.train = ml_collections.ConfigDict(
        {
            "epochs": 40,
            "batch_size": 64,
            "learning_rate": 4e-3,
            "weight_decay": 1e-3,
            "label_smoothing": 0.05,
            "save_every": 10,
        }
    )
    config.prune = ml_collections.ConfigDict(
        {
            "epochs": 12,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
            "label_smoothing": 0.05,
            "save_every": 6,
            "sparsity": 0.5,
            "until": 0.6,  # share of the steps after which the sparsity is reached
            "updates": 10,  # how often masks are computed until then
            "select": "**/kernel",
        }
    )
    config.shrink = ml_collections.ConfigDict(
        {
            "ratio": 0.5,
            "macs": 0.0,  # if not 0, the part of the MACs to come down to, in place of the ratio
            "round_to": 8,
            "importance": slimming.l1,
            "ranking": slimming.per_group,
        }
    )
    config.factorize = ml_collections.ConfigDict(
        {
            "macs": 0.0,  # if not 0, the part of the shrunk network's MACs to come down to
            "round_to": 8,
            "method": None,  # what `lowrank` has; None: SVD, and Tucker-2 for windows
            "select": "**/kernel",
        }
    )
    config.distil = ml_collections.ConfigDict(
        {
            "epochs": 60,
            "batch_size": 64,
            "learning_rate": 4e-3,
            "weight_decay": 0.0,
            "save_every": 10,
            "views": 0,  # if not 0, the teacher runs over so many augmented views, once
            "temperature": 4.0,
            "alpha": 0.7,
        }
    )
    config.quantize = ml_collections.ConfigDict(
        {
            "spec": quant.int8,
            "observer": quant.moving_average,
            "calibration_batches": 8,
            "epochs": 6,
            "batch_size": 64,
            "learning_rate": 3e-4,
            "weight_decay": 0.0,
            "save_every": 3,
            "temperature": 4.0,
            "alpha": 0.7,
        }
    )
    config.export = ml_collections.ConfigDict({"via": "jax2tf", "verify_both": True})
    config.package = ml_collections.ConfigDict({"author": "", "license": "", "version": ""})
    config.benchmark = ml_collections.ConfigDict({"threads": 1})
    config.expect = ml_collections.ConfigDict(
        {
            "dense_accuracy": 0.98,  # at least
            "accuracy_drop": 0.005,  # at most, dense to int8
            "times_smaller": 8.0,  # at least, dense file to int8 file
            "differing": 0,  # values between JAX and LiteRT, over all layers and the test set
        }
    )
    return config
