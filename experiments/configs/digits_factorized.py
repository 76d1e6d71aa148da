"""The demo with factors: cut, factorized, distilled, and verified as int8.

Command:  python -m experiments.run --config=experiments/configs/digits_factorized.py \
              --workdir=runs/digits_factorized
Cost:     under 5 minutes on 2 CPU cores, no download, no accelerator.
Reaches:  what `expect` says: the runner prints whether it was reached.

A quarter of the channels goes, then what is left comes down to six tenths of its MACs by SVD and
Tucker-2; the dense network teaches the factors, first as floats, then as int8.
"""

import ml_collections

from experiments.configs import digits


def get_config() -> ml_collections.ConfigDict:
    """The demo's settings with factors."""
    config = digits.get_config()
    config.title = "Handwritten digits: cut, factorized, int8"
    config.shrink.ratio = 0.25
    config.factorize.macs = 0.6
    return config
