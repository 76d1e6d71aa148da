"""How many channels the digits network can lose, a round of cutting and training at a time.

Command:  python -m experiments.run --config=experiments/configs/digits_search.py \
              --workdir=runs/digits_search
Cost:     about a minute of processor time on 2 CPU cores.
Reaches:  what `expect` says: the program prints whether it was reached.

A fifth of the training split decides when to stop; the test split is counted once, at the end.
"""

import ml_collections

from experiments import search
from experiments.configs import digits


def get_config() -> ml_collections.ConfigDict:
    """The demo's data, network and training, and what the search adds."""
    demo = digits.get_config()
    config = ml_collections.ConfigDict()
    config.seed = demo.seed
    config.data = demo.data
    config.data.update({"train_split": "train[:80%]", "test_split": "train[80%:]"})
    config.model = demo.model
    config.train = demo.train
    config.search = ml_collections.ConfigDict(
        {
            "kind": search.channels,
            "options": {"round_to": 4},
            "levels": (0.25, 0.5, 0.625, 0.75, 0.875),
            "drop": 0.015,  # of accuracy on test_split that the dense network may lose
            "final_split": "test",
            "epochs": 20,
            "batch_size": 64,
            "learning_rate": 2e-3,
            "weight_decay": 0.0,
            "label_smoothing": 0.05,
            "save_every": 5,
        }
    )
    config.expect = ml_collections.ConfigDict({"dense_accuracy": 0.97, "level": 0.5})
    return config
