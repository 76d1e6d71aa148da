"""compressjax: functional model compression for JAX.

A model is a pure function of its variables, `apply(variables, *inputs) -> outputs`. Every technique
here transforms that pair and gives back another pure function, so techniques compose in any order.
"""
