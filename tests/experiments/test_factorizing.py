"""The benchmark of factorizing runs each of its rows; times are not tested."""

from compressjax import models
from experiments.bench import factorizing


def test_rows_of_a_network_of_convolutions():
    model = models.ResNet8(num_classes=4, widths=(4, 4, 4))
    named = ["svd at half the ranks", "tucker2 at half the ranks"]
    assert set(named) < set(factorizing.rows(model))
    found = factorizing.measure(model, 8, named)
    assert list(found["rows"]) == named
    assert found["memory"] > 0
    for name, row in found["rows"].items():
        assert 0 < row["macs"] < 1
        assert sorted(row["seconds"]) == ["processor", "wall"]
        assert factorizing.line(name, row).startswith(name)
