"""Where time and memory go: the arena as LiteRT plans it, kernels as its profiler names them."""

import functools

import numpy as np
import pytest

from compressjax.export import arena_bytes, compare, flatbuffer, profile, tflite
from compressjax.export._profiler import SEPARATOR
from compressjax.export.profile import parse
from compressjax.export.runtime import Session
from tests.support import plans

_PLANS = {"resnet": plans.resnet, "mobile": plans.mobile, "pools": plans.pools}

ONE = """
======= Run Order =======
      [node type]  [start] [first] [avg ms]     [%]  [cdf%] [mem KB] [times called] [Name]
  Delegate/Convert (NC)  0.000  0.001  0.001  5.000%  5.000%  0.000  10  [Delegate]:0
  Delegate/Convolution (NHWC, QC8) IGEMM  0.0  0.010  0.011  55.0%  60.0%  0.0  10  [Delegate]:1
  AVERAGE_POOL_2D  0.000  0.015  0.015  40.000%  100.000%  0.000  10  [Builtin]:2

======= Top by Computation Time =======
  AVERAGE_POOL_2D  0.000  0.015  0.015  40.000%  100.000%  0.000  10  [Builtin]:2

Timings (microseconds): count=3 curr=200
"""
MADE = [("QUANTIZE", "input_0"), ("CONV_2D", "conv"), ("AVERAGE_POOL_2D", "pool")]


@functools.cache
def _file(name: str) -> bytes:
    model = plans.Model(_PLANS[name]())
    return tflite(model, {}, *model.example(), via="litert")


@pytest.mark.parametrize("name", _PLANS)
def test_the_arena_is_as_large_as_litert_makes_it(name):
    data = _file(name)
    interpreter = Session(data, reference=True).interpreter
    graph = flatbuffer.read(data).subgraphs[0]
    ends = []
    for index in [*graph.inputs, *(i for op in graph.operators for i in op.outputs)]:
        tensor = interpreter.tensor(int(index))()
        start = tensor.__array_interface__["data"][0]
        ends += [start, start + tensor.nbytes]
        del tensor  # LiteRT refuses to move tensors that somebody holds
    measured = max(ends) - min(ends)
    assert measured <= arena_bytes(data) < measured + 64


def test_models_take_turns():
    turns = compare({"a": _file("resnet"), "b": _file("mobile"), "c": _file("resnet")}, rounds=4)
    assert list(turns) == ["a", "b", "c"]
    assert turns["a"].ratio == turns["a"].ratio_low == turns["a"].ratio_high == 1
    for turn in turns.values():
        assert 0 < turn.min <= turn.p50 <= turn.p90
        assert 0 < turn.ratio_low <= turn.ratio <= turn.ratio_high


def test_compare_refuses():
    with pytest.raises(ValueError, match="found 0 models"):
        compare({})
    with pytest.raises(ValueError, match="rounds=1"):
        compare({"a": _file("resnet")}, rounds=1)
    with pytest.raises(ValueError, match="warmup=0"):
        compare({"a": _file("resnet")}, warmup=0)
    with pytest.raises(FileNotFoundError):
        compare({"a": "missing.tflite"})


def test_kernels_of_a_real_model(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(_file("pools"))
    kernels = profile(path, rounds=2, repeats=2, warmup=1)
    unpacked = flatbuffer.read(_file("pools"))
    graph = unpacked.subgraphs[0]
    names = {
        flatbuffer.text(graph.tensors[int(op.outputs[0])].name): flatbuffer.op_name(unpacked, op)
        for op in graph.operators
    }
    left = [kernel for kernel in kernels if not kernel.delegated]
    assert {kernel.operation for kernel in left} == {"AVERAGE_POOL_2D"}
    assert all(names[kernel.name] == "AVERAGE_POOL_2D" for kernel in left)
    assert [kernel.name for kernel in kernels if "Max Pooling" in kernel.operation] == [
        name for name, kind in names.items() if kind == "MAX_POOL_2D"
    ]
    assert all(kernel.seconds >= 0 for kernel in kernels)


def test_layers_are_named_in_order():
    kernels = profile(_file("mobile"), rounds=1, repeats=1, warmup=0)
    sorts = ("Convolution", "Fully Connected")
    layers = [kernel.name for kernel in kernels if kernel.operation.startswith(sorts)]
    kinds = ("conv", "depthwise_conv", "dense")
    assert layers == [step.name for step in plans.mobile().steps if step.kind in kinds]


def test_what_the_profiler_says():
    (convert, conv, pool) = parse([ONE], MADE)
    assert convert == ("Convert (NC)", "", pytest.approx(1e-6), True)
    assert conv == ("Convolution (NHWC, QC8) IGEMM", "conv", pytest.approx(11e-6), True)
    assert pool == ("AVERAGE_POOL_2D", "pool", pytest.approx(8e-6), False)
    assert parse([ONE], [*MADE, ("CONV_2D", "other")])[1].name == "", "two layers, one kernel"
    merged = ONE.replace("0.0  10  [Delegate]:1", "0.0  20  [Delegate]:1")
    assert parse([merged], MADE)[1].seconds == pytest.approx(11e-6), "of one call of the model"


def test_summaries_are_of_all_calls_so_far():
    two = ONE.replace("  10  [", "  20  [").replace("curr=200", "curr=600")
    three = ONE.replace("  10  [", "  30  [").replace("curr=200", "curr=660")
    conv = parse([ONE, two, three], MADE)[1]
    rounds = [0.55 * 200 / 10, 0.55 * 400 / 10, 0.55 * 60 / 10]
    np.testing.assert_allclose(conv.seconds, 1e-6 * np.median(rounds))


def test_profile_refuses(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no profile of LiteRT"):
        parse(["nothing" + SEPARATOR], MADE)
    with pytest.raises(ValueError, match="rounds=0"):
        profile(_file("resnet"), rounds=0)
    with pytest.raises(ValueError, match="damaged"):
        profile(_file("resnet")[:-100])
    monkeypatch.setitem(profile.__globals__, "_library", lambda: str(tmp_path / "libLiteRt.so"))
    with pytest.raises(ValueError, match=r"gives no profile of this model \(exit code 1\): error"):
        profile(_file("resnet"), rounds=1, repeats=1)
