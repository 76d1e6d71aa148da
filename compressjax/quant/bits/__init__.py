"""Mixed precision: how many bits each layer needs, and how to share out what a budget allows."""

from compressjax.quant.bits.allocate import Allocation as Allocation
from compressjax.quant.bits.allocate import Budget as Budget
from compressjax.quant.bits.allocate import Table as Table
from compressjax.quant.bits.allocate import allocate as allocate
from compressjax.quant.bits.allocate import fix as fix
from compressjax.quant.bits.allocate import rules as rules
from compressjax.quant.bits.allocate import total as total
from compressjax.quant.bits.costs import operations as operations
from compressjax.quant.bits.costs import size as size
from compressjax.quant.bits.front import Front as Front
from compressjax.quant.bits.front import pareto as pareto
from compressjax.quant.bits.sensitivity import Trace as Trace
from compressjax.quant.bits.sensitivity import accuracy as accuracy
from compressjax.quant.bits.sensitivity import divergence as divergence
from compressjax.quant.bits.sensitivity import hessian as hessian
from compressjax.quant.bits.sensitivity import hessian_trace as hessian_trace
