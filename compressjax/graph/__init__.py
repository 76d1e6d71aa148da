"""The graph core: the only package that knows about jaxprs."""

from compressjax.graph.interpret import bind_arguments as bind_arguments
from compressjax.graph.interpret import evaluate as evaluate
from compressjax.graph.interpret import interpret as interpret
from compressjax.graph.trace import Graph as Graph
from compressjax.graph.trace import Literal as Literal
from compressjax.graph.trace import Op as Op
from compressjax.graph.trace import Value as Value
from compressjax.graph.trace import substitute as substitute
from compressjax.graph.trace import trace as trace
from compressjax.graph.retrace import Retrace as Retrace
from compressjax.graph.retrace import template as template
