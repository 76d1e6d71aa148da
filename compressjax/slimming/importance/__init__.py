"""Which channels matter: a score for each channel of a group, the higher the more worth keeping."""

from compressjax.slimming.importance.activations import Statistic as Statistic
from compressjax.slimming.importance.activations import activation_mean as activation_mean
from compressjax.slimming.importance.activations import feature_rank as feature_rank
from compressjax.slimming.importance.activations import mean_magnitude as mean_magnitude
from compressjax.slimming.importance.activations import mean_rank as mean_rank
from compressjax.slimming.importance.activations import observe as observe
from compressjax.slimming.importance.activations import of_inputs as of_inputs
from compressjax.slimming.importance.base import Importance as Importance
from compressjax.slimming.importance.gradients import batch_gradients as batch_gradients
from compressjax.slimming.importance.gradients import diagonal_fisher as diagonal_fisher
from compressjax.slimming.importance.gradients import gradient_moments as gradient_moments
from compressjax.slimming.importance.gradients import of_weights as of_weights
from compressjax.slimming.importance.gradients import optimal_brain_damage as optimal_brain_damage
from compressjax.slimming.importance.gradients import taylor as taylor
from compressjax.slimming.importance.magnitude import batch_norm_scale as batch_norm_scale
from compressjax.slimming.importance.magnitude import geometric_median as geometric_median
from compressjax.slimming.importance.magnitude import l1 as l1
from compressjax.slimming.importance.magnitude import l2 as l2
from compressjax.slimming.importance.magnitude import lamp as lamp
from compressjax.slimming.importance.magnitude import random as random
from compressjax.slimming.importance.normalise import max_normalised as max_normalised
from compressjax.slimming.importance.normalise import mean_normalised as mean_normalised
from compressjax.slimming.importance.normalise import norm_normalised as norm_normalised
