"""Fewer channels: smaller arrays that compute the same function."""

from compressjax.slimming.importance import Importance as Importance
from compressjax.slimming.importance import l1 as l1
from compressjax.slimming.importance import l2 as l2
from compressjax.slimming.penalties import group_lasso as group_lasso
from compressjax.slimming.penalties import growing as growing
from compressjax.slimming.penalties import importance_weighted as importance_weighted
from compressjax.slimming.penalties import network_slimming as network_slimming
from compressjax.slimming.penalties import proximal_group_lasso as proximal_group_lasso
from compressjax.slimming.penalties import proximal_slimming as proximal_slimming
from compressjax.slimming.penalties import staircase as staircase
from compressjax.slimming.selection import Ranking as Ranking
from compressjax.slimming.selection import global_ as global_
from compressjax.slimming.selection import per_group as per_group
from compressjax.slimming.shrink import Report as Report
from compressjax.slimming.shrink import Shrunk as Shrunk
from compressjax.slimming.shrink import find_groups as find_groups
from compressjax.slimming.shrink import shrink as shrink
from compressjax.slimming.targets import Target as Target
from compressjax.slimming.targets import macs as macs
from compressjax.slimming.targets import measured as measured
from compressjax.slimming.targets import num_bytes as num_bytes
from compressjax.slimming.targets import params as params
