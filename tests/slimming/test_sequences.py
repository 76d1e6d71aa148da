"""`shrink` equals the whole network with zeros where it is cut: attention, embeddings, gates."""

import jax
import pytest

from compressjax import slimming, tree
from tests.support.reference import agree, check, in_double, widths
from tests.support.sequences import SEQUENCES, relative_bias, transformer
from tests.support.topologies import TOKENS, linen


@pytest.mark.parametrize("body", SEQUENCES, ids=lambda body: body.__name__)
def test_equals_the_network_with_zeros(body):
    inputs, expected = SEQUENCES[body]
    fn, variables = linen(body, *inputs)
    shrunk = check(fn, variables, *inputs)
    assert widths(shrunk) == expected
    assert tree.size(shrunk.variables) < 0.75 * tree.size(variables)
    with jax.enable_x64(True):
        agree(fn, shrunk, in_double(variables), *in_double(inputs))


def test_attention_cuts_heads_their_widths_and_the_residual_stream():
    fn, variables = linen(transformer, TOKENS)
    shrunk = slimming.shrink(fn, variables, TOKENS, round_to=1)
    assert list(shrunk.report.frozen) == ["params/head/bias[0]", "params/head/kernel[1]"]
    shapes = {path: leaf.shape for path, leaf in tree.paths(shrunk.variables["params"]).items()}
    assert shapes["att/out/kernel"] == (2, 4, 6)
    assert shapes["att/key/kernel"] == (6, 2, 4)
    assert {shapes[f"LayerNorm_{i}/scale"] for i in range(3)} == {(6,)}


def test_a_bias_of_each_head_is_cut_with_its_head():
    fn, variables = linen(relative_bias, TOKENS)
    shrunk = slimming.shrink(fn, variables, TOKENS, round_to=1)
    assert shrunk.variables["params"]["table"].shape == (9, 2)
