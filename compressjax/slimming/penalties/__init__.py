"""Sparsifying training: penalties that make whole channels fade before they are cut."""

from compressjax.slimming.penalties.scales import PenaltyState as PenaltyState
from compressjax.slimming.penalties.scales import network_slimming as network_slimming
