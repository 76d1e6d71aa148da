"""Sparsifying training: penalties that make whole channels fade before they are cut."""

from compressjax.slimming.penalties.base import PenaltyState as PenaltyState
from compressjax.slimming.penalties.base import Strength as Strength
from compressjax.slimming.penalties.base import Strengths as Strengths
from compressjax.slimming.penalties.coupling import everything as everything
from compressjax.slimming.penalties.coupling import kernels as kernels
from compressjax.slimming.penalties.coupling import made as made
from compressjax.slimming.penalties.lasso import group_lasso as group_lasso
from compressjax.slimming.penalties.lasso import proximal_group_lasso as proximal_group_lasso
from compressjax.slimming.penalties.scales import network_slimming as network_slimming
from compressjax.slimming.penalties.scales import proximal_slimming as proximal_slimming
from compressjax.slimming.penalties.squares import growing as growing
from compressjax.slimming.penalties.squares import importance_weighted as importance_weighted
from compressjax.slimming.penalties.squares import staircase as staircase
