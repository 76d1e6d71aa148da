"""Fewer channels: smaller arrays that compute the same function."""

from compressjax.slimming.importance import Importance as Importance
from compressjax.slimming.importance import l1 as l1
from compressjax.slimming.importance import l2 as l2
from compressjax.slimming.shrink import Report as Report
from compressjax.slimming.shrink import Shrunk as Shrunk
from compressjax.slimming.shrink import shrink as shrink
