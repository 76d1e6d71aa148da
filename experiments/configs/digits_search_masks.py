"""How many weights of the digits network can be zero, a round of pruning and training at a time.

Command:  python -m experiments.run --config=experiments/configs/digits_search_masks.py \
              --workdir=runs/digits_search_masks
Cost:     about a minute of processor time on 2 CPU cores.
Reaches:  what `expect` says: the program prints whether it was reached.
"""

import ml_collections

from compressjax import pruning
from experiments import search
from experiments.configs import digits_search


def get_config() -> ml_collections.ConfigDict:
    """The search for channels, with masks."""
    config = digits_search.get_config()
    config.search.kind = search.masks
    config.search.options = {"budget": pruning.global_, "select": "**/kernel"}
    config.search.levels = (0.5, 0.75, 0.9, 0.95, 0.975, 0.99)
    config.expect.level = 0.9
    return config
