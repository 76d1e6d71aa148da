"""Training on the device: a pure state, a scanned epoch, exact resume, figures on disk."""

from compressjax.training.checkpoint import (
    CheckpointMismatchError,
    Checkpoints,
    DamagedCheckpointError,
)
from compressjax.training.evaluate import Score, evaluate
from compressjax.training.fit import Schedule, fit
from compressjax.training.loop import TrainState, init_state, make_epoch, steps_per_epoch
from compressjax.training.losses import Forward, distilled, from_apply, supervised
from compressjax.training.metrics import MetricsWriter, read_metrics
from compressjax.training.teacher import (
    CacheMismatchError,
    DamagedCacheError,
    Targets,
    Views,
    cache_logits,
    distilled_from_cache,
    load_logits,
)

__all__ = [
    "CacheMismatchError",
    "CheckpointMismatchError",
    "Checkpoints",
    "DamagedCacheError",
    "DamagedCheckpointError",
    "Forward",
    "MetricsWriter",
    "Schedule",
    "Score",
    "Targets",
    "TrainState",
    "Views",
    "cache_logits",
    "distilled",
    "distilled_from_cache",
    "evaluate",
    "fit",
    "from_apply",
    "init_state",
    "load_logits",
    "make_epoch",
    "read_metrics",
    "steps_per_epoch",
    "supervised",
]
