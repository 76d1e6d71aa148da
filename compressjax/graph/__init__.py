"""The graph core: the only package that knows about jaxprs."""

from compressjax.graph.affine import Chain as Chain
from compressjax.graph.affine import affine_chain as affine_chain
from compressjax.graph.affine import affine_map as affine_map
from compressjax.graph.affine import channel_vector as channel_vector
from compressjax.graph.capture import capture as capture
from compressjax.graph.capture import capturing as capturing
from compressjax.graph.interpret import bind_arguments as bind_arguments
from compressjax.graph.interpret import bind_variables as bind_variables
from compressjax.graph.interpret import evaluate as evaluate
from compressjax.graph.interpret import interpret as interpret
from compressjax.graph.ir import Graph as Graph
from compressjax.graph.ir import Literal as Literal
from compressjax.graph.ir import Op as Op
from compressjax.graph.ir import Value as Value
from compressjax.graph.ir import substitute as substitute
from compressjax.graph.kernels import Kernel as Kernel
from compressjax.graph.kernels import kernel_of as kernel_of
from compressjax.graph.kernels import places as places
from compressjax.graph.kernels import readers as readers
from compressjax.graph.retrace import Retrace as Retrace
from compressjax.graph.retrace import template as template
from compressjax.graph.splice import Part as Part
from compressjax.graph.splice import splice as splice
from compressjax.graph.trace import trace as trace
