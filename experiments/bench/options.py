"""The flags that several benchmarks have, defined once, so that one process may import them all.

Where a default is None, each benchmark has its own, which its docstring or its heading says.
"""

from absl import flags

from experiments.bench import timing

BATCH = flags.DEFINE_integer("batch", None, "Images at once.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", None, "Images that are used.", lower_bound=2)
TESTED = flags.DEFINE_integer(
    "tested", 10_000, "Images of the test split that count.", lower_bound=1
)
ROUNDS = flags.DEFINE_integer("rounds", None, "Times each program is measured.", lower_bound=2)
CLOCK = flags.DEFINE_enum_class(
    "clock",
    timing.Clock.WALL,
    timing.Clock,
    "What is measured. Processor seconds are steadier on a machine that others use.",
)
JSON = flags.DEFINE_bool("json", False, "Print JSON with the hardware and versions.")
TRAIN_EPOCHS = flags.DEFINE_integer(
    "train_epochs", 6, "Epochs from untrained weights.", lower_bound=1
)
FINETUNE_EPOCHS = flags.DEFINE_integer(
    "finetune_epochs", 6, "Epochs of fine-tuning.", lower_bound=1
)
TRAIN_RATE = flags.DEFINE_float("train_rate", 0.1, "Highest learning rate of SGD.")
FINETUNE_RATE = flags.DEFINE_float("finetune_rate", 0.05, "Highest learning rate of fine-tuning.")
TEMPERATURE = flags.DEFINE_float("temperature", 4.0, "Of a teacher's soft targets.")
ALPHA = flags.DEFINE_float("alpha", 0.9, "Weight of a teacher's soft targets.", 0.0, 1.0)
ROUND_TO = flags.DEFINE_integer(
    "round_to", 8, "Channels and ranks that are kept are multiples of this.", lower_bound=1
)
