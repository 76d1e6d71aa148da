"""Every family of image networks is cut, and computes what its masked original does."""

import pytest

from experiments.bench import architectures, topologies


@pytest.mark.parametrize("network", architectures.architectures(), ids=lambda network: network.name)
def test_is_cut_and_equals_the_masked_original(network):
    found = topologies.row(network, ratio=0.5, round_to=1)
    assert found.difference < 1e-5
    assert found.change > 1e-3, "the cut changed nothing"
    assert found.parameters < 0.4 and found.macs < 0.7
