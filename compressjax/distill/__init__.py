"""Distillation: losses that train a small student on what a large teacher knows.

Every loss is a pure function on arrays and gives one value an example, so it works with any model,
any batch weighting and any optimizer. How logits and features are computed is the caller's
business: `cj.capture` gives values inside any function by the names of its operations.
"""

from compressjax.distill.contrast import Bank as Bank
from compressjax.distill.contrast import contrastive as contrastive
from compressjax.distill.contrast import embed as embed
from compressjax.distill.contrast import init_bank as init_bank
from compressjax.distill.hints import adapt as adapt
from compressjax.distill.hints import hint as hint
from compressjax.distill.hints import init_adapter as init_adapter
from compressjax.distill.logits import decoupled as decoupled
from compressjax.distill.logits import hinton as hinton
from compressjax.distill.logits import logits_regression as logits_regression
from compressjax.distill.logits import soft_targets as soft_targets
from compressjax.distill.logits import virtual_teacher as virtual_teacher
from compressjax.distill.maps import attention_map as attention_map
from compressjax.distill.maps import attention_transfer as attention_transfer
from compressjax.distill.maps import gaussian_kernel as gaussian_kernel
from compressjax.distill.maps import linear_kernel as linear_kernel
from compressjax.distill.maps import neuron_selectivity as neuron_selectivity
from compressjax.distill.maps import polynomial_kernel as polynomial_kernel
from compressjax.distill.relations import relational_angle as relational_angle
from compressjax.distill.relations import relational_distance as relational_distance
from compressjax.distill.relations import similarity as similarity
from compressjax.distill.teachers import ensemble as ensemble
from compressjax.distill.teachers import mutual as mutual
from compressjax.distill.teachers import succession as succession
