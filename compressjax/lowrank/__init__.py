"""Low rank: one layer becomes two or three thinner ones.

How a layer is decomposed (`methods`), how many ranks it keeps (`rank`) and what it was seen to do
on data (`evidence`) are separate questions; `factorize` joins them.
"""

from compressjax.lowrank.budget import macs as macs
from compressjax.lowrank.budget import measured as measured
from compressjax.lowrank.budget import params as params
from compressjax.lowrank.evidence import observe as observe
from compressjax.lowrank.factorize import Factored as Factored
from compressjax.lowrank.factorize import Report as Report
from compressjax.lowrank.factorize import Row as Row
from compressjax.lowrank.factorize import factorize as factorize
from compressjax.lowrank.methods import Method as Method
from compressjax.lowrank.methods import Moments as Moments
from compressjax.lowrank.methods import cp as cp
from compressjax.lowrank.methods import separable as separable
from compressjax.lowrank.methods import spatial as spatial
from compressjax.lowrank.methods import svd as svd
from compressjax.lowrank.methods import tucker2 as tucker2
from compressjax.lowrank.rank import Rule as Rule
from compressjax.lowrank.rank import energy as energy
from compressjax.lowrank.sensitivity import Scan as Scan
from compressjax.lowrank.sensitivity import sensitivity as sensitivity
from compressjax.lowrank.sensitivity import spend as spend
from compressjax.lowrank.vbmf import vbmf as vbmf
