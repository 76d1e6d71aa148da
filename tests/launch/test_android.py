"""A scripted adb that answers as a phone does: what is asked of it, and what is made of it.

The words of `benchmark_model` are those of its source (google-ai-edge/LiteRT, tflite/tools/benchmark)
and of logs of real phones (tensorflow issues 43541 and 56301, XNNPACK issue 999); what its model
puts out on the scripted phone is what LiteRT here computes from the file that was pushed.
"""

# ruff: noqa: E501 - the tool's lines are as long as they are

import functools
import hashlib
import json
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax.export import runtime
from compressjax.export.join import select
from launch import adb, android, tool

SCRIPT = """#!{python} -IS
import hashlib, pathlib, shlex, sys, time
phone = pathlib.Path({phone!r})
words = sys.argv[1:]
with open(phone / "log.txt", "a") as log:
    log.write(shlex.join(words) + "\\n")
if words == ["devices"]:
    print("* daemon started successfully\\nList of devices attached")
    print((phone / "devices.txt").read_text())
    sys.exit(0)
assert words[:2] == ["-s", "pixel"], words
verb, rest = words[2], words[3:]
disk = phone / "disk"


def there(path):
    return disk / path.lstrip("/")


if verb == "push":
    if (phone / "full").exists():
        print("adb: error: failed to copy: No space left on device", file=sys.stderr)
        sys.exit(1)
    there(rest[1]).write_bytes(pathlib.Path(rest[0]).read_bytes())
elif verb == "pull":
    if not there(rest[0]).exists():
        print("adb: error: failed to stat remote object: No such file or directory", file=sys.stderr)
        sys.exit(1)
    pathlib.Path(rest[1]).write_bytes(there(rest[0]).read_bytes())
elif verb == "shell":
    command = shlex.split(rest[0].removesuffix(" 2>&1; echo status=$?"))
    status = 0
    if command[0] == "mkdir":
        there(command[-1]).mkdir(parents=True, exist_ok=True)
    elif command[0] == "rm":
        if (phone / "gone").exists():
            sys.exit("adb: error: device 'pixel' not found")
        if command[1] == "-rf" and there(command[-1]).exists():
            for file in there(command[-1]).iterdir():
                file.unlink()
            there(command[-1]).rmdir()
        elif command[1] == "-f":
            there(command[-1]).unlink(missing_ok=True)
    elif command[0] == "getprop":
        abis = "ro.product.cpu.abilist"
        print({{"ro.product.model": "Pixel 9", abis: "arm64-v8a,armeabi"}}.get(command[1], ""))
    elif command[0].endswith("benchmark_model"):
        flags = dict(word.lstrip("-").split("=", 1) for word in command[1:])
        assert there(flags["graph"]).exists() and there(command[0]).exists()
        kind = "gpu" if "use_gpu" in flags else "nnapi" if "use_nnapi" in flags else "cpu"
        print((phone / f"{{kind}}.txt").read_text())
        if (phone / "slow").exists():
            time.sleep(60)
        if (phone / f"{{kind}}.status").exists():
            print("Segmentation fault")
            status = 139
        if "output_filepath" in flags:
            files = [item.split(":")[1] for item in flags["input_layer_value_files"].split(",")]
            content = b"".join(there(file).read_bytes() for file in [flags["graph"], *files])
            answer = phone / "answers" / hashlib.sha256(content).hexdigest()
            kept = (phone / "kept").read_text() if (phone / "kept").exists() else None
            if kept is None or (kept == "some" and flags["num_runs"] == "1"):
                there(flags["output_filepath"]).write_bytes(answer.read_bytes()[: 5 if kept else None])
    print(f"status={{status}}")
"""

LOGS = {
    "cpu": """INFO: STARTING!
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing 5 out of 5 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1.
INFO: Explicitly applied XNNPACK delegate, and the model graph will be completely executed by the delegate.
INFO: Initialized session in 3.337ms.
INFO: count=1 first=119614 curr=119614 min=119614 max=119614 avg=119614 std=0 p5=1 median=2 p95=3
INFO: count=50 first=2100 curr=2000 min=1990 max=2200 avg=2010.5 std=9 p5=1991 median=2005 p95=2100

INFO: Inference timings in us: Init: 3337, First inference: 2100, Warmup (avg): 2050.5, Inference (avg): 2010.5
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE
INFO: Memory footprint delta from the start of the tool (MB): init=1.25 overall=2.5
""",
    "gpu": """INFO: Created TensorFlow Lite delegate for GPU.
VERBOSE: Replacing 3 out of 5 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 2 partitions for the whole graph.
VERBOSE: Replacing 2 out of 4 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 3 partitions for the whole graph.
INFO: Explicitly applied GPU delegate, and the model graph will be partially executed by the delegate w/ 2 delegate kernels.
INFO: count=50 first=9 curr=9 min=9 max=9 avg=900 std=1
INFO: Inference timings in us: Init: 842225, First inference: 1150, Warmup (avg): 950, Inference (avg): 900
""",
    "nnapi": """INFO: NNAPI accelerators available: [nnapi-reference]
INFO: Though NNAPI delegate is explicitly applied, the model graph will not be executed by the delegate.
INFO: Inference timings in us: Init: 10, First inference: 4000, Warmup (avg): 4000, Inference (avg): 4.1e+03
""",
}  # fmt: skip


def _fn(variables, x, y):
    return jnp.tanh(x @ variables["a"]) @ variables["b"], y * 2.0


@functools.cache
def _model(int8_io: bool = False, quantized: bool = True):
    draw = np.random.default_rng(0).normal
    variables = {"a": jnp.asarray(draw(size=(6, 5))), "b": jnp.asarray(draw(size=(5, 4)))}
    inputs = [np.float32(draw(size=(5, 6))), np.float32(draw(size=(5, 3)))]
    first = [value[:1] for value in inputs]
    if not quantized:
        return cj.export.tflite(_fn, variables, *first, via="litert"), inputs, None
    q = cj.quantize(_fn)
    qv = q.calibrate(variables, [tuple(inputs)])
    data = cj.export.tflite(q, qv, *first, via="litert", int8_io=int8_io)
    return data, inputs, [np.asarray(out) for out in q.apply(qv, *inputs)]


def _elf(machine: int) -> bytes:
    return b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little")


@pytest.fixture
def phone(tmp_path):
    folder = tmp_path / "phone"
    (folder / "disk").mkdir(parents=True)
    (folder / "answers").mkdir()
    (folder / "devices.txt").write_text("pixel\tdevice\n")
    for kind, text in LOGS.items():
        (folder / f"{kind}.txt").write_text(text)
    script = tmp_path / "adb"
    script.write_text(SCRIPT.format(python=sys.executable, phone=str(folder)))
    script.chmod(0o755)
    (tmp_path / "tool").write_bytes(_elf(183))
    return folder


def _answer(phone: pathlib.Path, data: bytes, inputs, shift: int = 0) -> None:
    """What the phone puts out for each sample, `shift` added to the last output's bytes."""
    session = runtime.Session(data)
    details = session.interpreter.get_input_details()
    place = {int(d["index"]): i for i, d in enumerate(session.inputs)}
    for row in range(len(inputs[0])):
        stored = []
        for d in details:
            value = inputs[place[int(d["index"])]][row : row + 1]
            stored.append(
                runtime.quantize(value, *d["quantization"]) if d["dtype"] is np.int8 else value
            )
            session.interpreter.set_tensor(d["index"], stored[-1])
        session.interpreter.invoke()
        outputs = [
            session.interpreter.get_tensor(d["index"]).copy()
            for d in session.interpreter.get_output_details()
        ]
        first = outputs[-1].ravel()
        first[0] += np.sign(-first[0]) * shift  # towards 0, so that no code overflows
        name = hashlib.sha256(data + b"".join(x.tobytes() for x in stored)).hexdigest()
        (phone / "answers" / name).write_bytes(b"".join(value.tobytes() for value in outputs))


def _run(phone: pathlib.Path, *arguments: str) -> int:
    home = phone.parent
    fixed = ["android", f"--adb={home / 'adb'}", f"--tool={home / 'tool'}"]
    return android.main([*fixed, f"--model={home / 'model.tflite'}", *arguments])


@pytest.mark.parametrize("int8_io", [False, True])
def test_times_and_compares_with_q_apply(phone, capsys, int8_io):
    data, inputs, outputs = _model(int8_io)
    (phone.parent / "model.tflite").write_bytes(data)
    arrays = {f"input_{i}": value for i, value in enumerate(inputs)}
    arrays |= {f"output_{i}": value for i, value in enumerate(outputs)}
    np.savez(phone.parent / "reference.npz", **arrays)
    _answer(phone, data, inputs)
    report = phone.parent / "report.json"
    arguments = ["--delegate=cpu", "--delegate=gpu", f"--reference={phone.parent}/reference.npz"]
    assert _run(phone, *arguments, "--rows=3", f"--json={report}") == 0
    said = capsys.readouterr().out
    assert "Pixel 9 (, arm64-v8a,armeabi)" in said
    table = [line.split() for line in said.splitlines()]
    times = ["3.34", "2.100", "2.050", "2.010", "2.005", "1.990", "2.200", "1.25", "2.50"]
    assert ["cpu", "all", "5/5", *times] in [line[:12] for line in table]
    assert ["gpu", "partly", "3/5"] in [line[:3] for line in table]
    assert said.count("0 of 21 values differ, by up to 0 steps") == 2
    value = json.loads(report.read_text())
    assert value["delegates"]["gpu"]["median_ms"] is None
    assert value["delegates"]["cpu"]["outputs"]["rows"] == 3
    log = (phone / "log.txt").read_text()
    assert log.count("--num_runs=1 ") == 6 and "--num_runs=50" in log and "--use_gpu=true" in log
    assert not (phone / "disk" / adb.FOLDER.lstrip("/")).exists(), "the phone is left as it was"


def test_a_difference_fails(phone, capsys):
    data, inputs, outputs = _model(True)
    (phone.parent / "model.tflite").write_bytes(data)
    np.savez(phone.parent / "reference.npz", **{f"input_{i}": x for i, x in enumerate(inputs)})
    _answer(phone, data, inputs, shift=1)
    arguments = [f"--reference={phone.parent}/reference.npz"]
    assert _run(phone, *arguments) == 1
    assert (
        "FAILED: outputs on cpu 5 of 35 values differ, by up to 1 steps" in capsys.readouterr().out
    )
    assert _run(phone, *arguments, "--max_lsb=1") == 0


def test_float_outputs_are_compared_with_the_largest(phone, capsys):
    data, inputs, _ = _model(quantized=False)
    (phone.parent / "model.tflite").write_bytes(data)
    np.savez(phone.parent / "reference.npz", **{f"input_{i}": x for i, x in enumerate(inputs)})
    _answer(phone, data, inputs)
    assert _run(phone, f"--reference={phone.parent}/reference.npz") == 0
    assert "by up to 0 of the largest" in capsys.readouterr().out


def test_a_delegate_that_is_not_applied_is_said(phone, capsys):
    (phone.parent / "model.tflite").write_bytes(_model()[0])
    assert _run(phone, "--delegate=nnapi") == 1
    assert "FAILED: nnapi was not applied: the CPU ran the model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("", "no phone is ready (none is connected): plug it in, allow USB debugging"),
        ("pixel\tunauthorized\n", "no phone is ready (pixel is unauthorized)"),
        ("pixel\toffline\n", "no phone is ready (pixel is offline)"),
        ("pixel\tno permissions (udev)\n", "no phone is ready (pixel is no permissions (udev))"),
        ("pixel\tdevice\nother\tdevice\n", "several phones are connected: choose one with"),
    ],
)
def test_phones_that_are_not_there(phone, capsys, devices, message):
    (phone.parent / "model.tflite").write_bytes(_model()[0])
    (phone / "devices.txt").write_text(devices)
    assert _run(phone) == 2
    assert message in capsys.readouterr().err


def _without_timings(phone):
    (phone / "cpu.txt").write_text("ERROR: Failed to load model")


def _dies(phone):
    (phone / "cpu.status").touch()


def _dies_and_is_unplugged(phone):
    _dies(phone)
    # the folder is cleared before anything runs: unplug when the tool has died
    script = phone.parent / "adb"
    text = script.read_text()
    script.write_text(text.replace("status = 139", 'status = 139; (phone / "gone").touch()'))


def _full(phone):
    (phone / "full").touch()


def _slow(phone):
    (phone / "slow").touch()


def _no_tool(phone):
    (phone.parent / "tool").unlink()


def _app(phone):
    (phone.parent / "tool").write_bytes(b"PK\x03\x04" + bytes(20))


def _other_abi(phone):
    (phone.parent / "tool").write_bytes(_elf(62))


def _no_adb(phone):
    (phone.parent / "adb").unlink()


def _damaged(phone):
    (phone.parent / "model.tflite").write_bytes(_model()[0][:100])


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (_without_timings, "printed no timings with cpu: ERROR: Failed to load model"),
        (_dies, "benchmark_model ended with 139"),
        (_dies_and_is_unplugged, "benchmark_model ended with 139"),
        (_full, "No space left on device"),
        (_slow, "took more than 3 seconds"),
        (_no_tool, "is no file: docs/phone.md says where it is from"),
        (_app, "it is an app (.apk): take the native benchmark_model"),
        (_other_abi, "the tool is for x86_64, the phone pixel runs 'arm64-v8a,armeabi'"),
        (_no_adb, "install Android's platform tools, or give --adb"),
        (_damaged, "tflite"),
    ],
)
def test_what_goes_wrong_is_said(phone, capsys, breaks, message):
    (phone.parent / "model.tflite").write_bytes(_model()[0])
    breaks(phone)
    report = phone.parent / "report.json"
    slow = ["--timeout=3"] if breaks is _slow else []
    assert _run(phone, f"--json={report}", *slow) == 2
    assert message in capsys.readouterr().err
    assert not report.exists()
    left = (phone / "disk" / adb.FOLDER.lstrip("/")).exists()
    assert left == (breaks is _dies_and_is_unplugged), "what was pushed is removed"


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ("none", "benchmark_model wrote no outputs; it has to know --output_filepath"),
        ("some", "the phone wrote 5 bytes of outputs, expected 28: is its disk full"),
    ],
)
def test_outputs_that_are_not_written_are_no_outputs(phone, capsys, kept, message):
    data, inputs, _ = _model()
    (phone.parent / "model.tflite").write_bytes(data)
    np.savez(phone.parent / "reference.npz", **{f"input_{i}": x for i, x in enumerate(inputs)})
    _answer(phone, data, inputs)
    (phone / "kept").write_text(kept)
    assert _run(phone, f"--reference={phone.parent}/reference.npz") == 2
    assert message in capsys.readouterr().err


def test_one_signature_of_several_is_pushed(phone, capsys):
    data, inputs, _ = _model()
    whole = cj.export.merge({"serve": _model(quantized=False)[0], "int8": data})
    (phone.parent / "model.tflite").write_bytes(whole)
    np.savez(phone.parent / "reference.npz", **{f"input_{i}": x for i, x in enumerate(inputs)})
    _answer(phone, select(whole, "int8"), inputs)
    arguments = [f"--reference={phone.parent}/reference.npz", "--rows=1"]
    assert _run(phone, *arguments, "--signature=int8") == 0
    assert "0 of 7 values differ, by up to 0 steps" in capsys.readouterr().out
    assert _run(phone, *arguments, "--signature=other") == 2


def test_values_that_are_no_numbers_differ():
    data = _model(quantized=False)[0]
    bad, good = [np.full((1, 4), np.nan), np.ones((1, 3))], [np.ones((1, 4)), np.ones((1, 3))]
    found = android.compare(data, bad, good)
    assert found.differing == 4 and found.largest == np.inf
    assert android.compare(data, good, good).largest == 0


def test_reads_runs_that_all_took_the_same():
    # benchmark_model of StatWithPercentiles::OutputToStream with one distinct value
    found = tool.timing(
        "cpu",
        "INFO: count=50 curr=12(all same)\n"
        "INFO: Inference timings in us: Init: 3, First inference: 9, Warmup (avg): -nan, "
        "Inference (avg): 12\n",
    )
    assert (found.min_ms, found.max_ms, found.std_ms) == (0.012, 0.012, 0.0)
    assert np.isnan(found.warmup_ms) and found.applied == "nothing" and found.p95_ms is None


def test_a_delegate_that_was_taken_back_ran_nothing():
    printed = (
        "INFO: Replacing 347 out of 347 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 "
        "partitions for subgraph 0.\n{}"
        "INFO: Inference timings in us: Init: 3, First inference: 9, Warmup (avg): 9, "
        "Inference (avg): 12\n"
    )
    lost = "Restored original execution plan after delegate application failure.\n"
    assert tool.timing("gpu", printed.format(""))[1:4] == ("all", 347, 347)
    assert tool.timing("gpu", printed.format(lost))[1:4] == ("nothing", None, None)
    assert tool.timing("cpu", printed.format(""))[1:4] == ("nothing", None, None)


def test_a_reference_that_does_not_fit(phone, capsys):
    data, inputs, outputs = _model()
    (phone.parent / "model.tflite").write_bytes(data)
    _answer(phone, data, inputs)
    file = phone.parent / "reference.npz"
    np.savez(file, input_0=inputs[0])
    assert _run(phone, f"--reference={file}") == 2
    assert "lacks ['input_1']: it has ['input_0']" in capsys.readouterr().err
    np.savez(file, input_0=inputs[0], input_1=inputs[1][:2])
    assert _run(phone, f"--reference={file}") == 2
    assert "inputs have [5, 2] samples, expected equally many" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:50])
    assert _run(phone, f"--reference={file}") == 2
    assert "is no .npz or .npy of arrays" in capsys.readouterr().err
    np.savez(file, input_0=inputs[0], input_1=inputs[1], output_0=outputs[1], output_1=outputs[0])
    assert _run(phone, f"--reference={file}") == 2
    assert "output_0 of the reference has shape [5, 3], the model gives [5, 4]" in (
        capsys.readouterr().err
    )
