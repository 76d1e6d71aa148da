"""How one layer becomes several: a file for each decomposition."""

from compressjax.lowrank.methods.base import Method as Method
from compressjax.lowrank.methods.base import Moments as Moments
from compressjax.lowrank.methods.base import Ranks as Ranks
from compressjax.lowrank.methods.cp import cp as cp
from compressjax.lowrank.methods.separable import separable as separable
from compressjax.lowrank.methods.spatial import spatial as spatial
from compressjax.lowrank.methods.svd import svd as svd
from compressjax.lowrank.methods.tucker import tucker2 as tucker2
