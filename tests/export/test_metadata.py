"""Metadata is read back as it was written, by others too, and changes nothing that runs."""

import base64
import functools
import importlib.util
import io
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax.export import Metadata, flatbuffer
from tests.support import plans

SAID = Metadata(
    name="digits",
    description="Hand-written digits, 1 to 3",
    version="1.2",
    author="Ada",
    license="Apache-2.0",
    labels=("one", "zwei", "drei ß"),
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
)
# Written by MediaPipe 1.2.2's own schema classes, with parts that `Metadata` has no place for.
THEIRS = zlib.decompress(base64.b64decode(
    "eNpNUT1Lw1AUPa3Rxg8wSIaCHTI4dLAhqf4AzeQiuApdnsmjDbRpaQJWXRwc3FwcRPwNTo4Ogj9AR1c3f0BFt3hvcosNHO"
    "67JyfnnXvTAHDoeb4NBw3UYcPCGkxiDTqDOGCL4BF2CdMK8Euwq8Ai9b7rufxuhbA/UmFPt9pMLHAfKZCUHEGe7AtyNorK"
    "uCbckYA1dfCzIXfPHoMYFMwRMOdVplwVL6sUVy3xoWjQCVCjGvZVmuoUy3RO1ECnbjbJUGZPw+FYi69d+MxvwMDMj+frEx"
    "4I74QPwlWe56bMUXz/WHvh+vrd3KsUyYFn0bDkSc58D+/m4jYOPs+jAJc64P7++Cfo3HwFnfW3YEra2UymzGn+z1kxJZ8p"
    "uzHlvqb8L0t6zhFKnUg9k9lPVBb2qC7xbuOJ7qclHw9UV4umO1ajnuT13TY2qR6oJGqdjuMs04kTxd04S7cd38mGzk7hVV"
    "LAH12WTgg="
))  # fmt: skip
X = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


@functools.cache
def _file() -> bytes:
    return cj.export.tflite(lambda v, x: x.mean((1, 2)) @ v, jnp.eye(3), X[:1], via="litert")


@functools.cache
def _int8() -> bytes:
    model = plans.Model(plans.resnet())
    return cj.export.tflite(model, {}, *model.example(), via="litert")


def _metadata_buffer(model: bytes) -> bytes:
    unpacked = flatbuffer.read(model)
    (entry,) = [e for e in unpacked.metadata if flatbuffer.text(e.name) == "TFLITE_METADATA"]
    return bytes(unpacked.buffers[entry.buffer].data)


def _damaged(model: bytes, change) -> bytes:
    """The file with another metadata buffer."""
    unpacked = flatbuffer.read(model)
    (entry,) = [e for e in unpacked.metadata if flatbuffer.text(e.name) == "TFLITE_METADATA"]
    buffer = unpacked.buffers[entry.buffer]
    buffer.data = np.frombuffer(change(bytes(buffer.data)), np.uint8)
    return flatbuffer.write(unpacked)


def test_what_is_said_is_read_and_runs_as_before():
    said = cj.export.with_metadata(_file(), SAID)
    assert cj.export.metadata(said) == SAID
    np.testing.assert_array_equal(cj.export.run(said, X), cj.export.run(_file(), X))
    assert cj.export.with_metadata(_file(), SAID) == said
    few = Metadata(mean=(127.5,), std=(127.5,))
    assert cj.export.metadata(cj.export.with_metadata(_file(), few)) == few
    assert cj.export.metadata(cj.export.with_metadata(_file(), Metadata())) == Metadata()


def test_int8_files_keep_their_codes():
    labels = tuple(map(str, range(flatbuffer.read(_int8()).subgraphs[0].tensors[-1].shape[-1])))
    said = cj.export.with_metadata(_int8(), Metadata(labels=labels))
    x = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(cj.export.run(said, x), cj.export.run(_int8(), x))
    assert cj.export.metadata(said).labels == labels


def test_labels_are_a_file_in_an_uncompressed_archive():
    said = cj.export.with_metadata(_file(), SAID)
    with zipfile.ZipFile(io.BytesIO(said)) as archive:
        (entry,) = archive.infolist()
        assert (entry.filename, entry.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
        assert archive.read(entry).decode() == "one\nzwei\ndrei ß\n"
    assert not zipfile.is_zipfile(io.BytesIO(cj.export.with_metadata(_file(), Metadata())))


def test_labels_name_the_classes_of_a_top_k():
    said = cj.export.with_metadata(cj.export.with_top_k(_file(), 2), Metadata(labels=SAID.labels))
    labels = cj.export.metadata(said).labels
    classes = cj.export.run(said, X)[1]
    logits = cj.export.run(_file(), X)
    best = [labels[i] for i in classes[:, 0]]
    assert best == [SAID.labels[i] for i in logits.argmax(-1)]


def test_the_schema_of_the_tools_reads_it():
    schema = _schema()
    for file, output, kind in ((_file(), 0, 2), (cj.export.with_top_k(_file(), 2), 1, 3)):
        said = cj.export.with_metadata(file, SAID)
        read = schema.ModelMetadataT.InitFromPackedBuf(_metadata_buffer(said), 0)
        texts = (read.name, read.description, read.version, read.author, read.license)
        assert tuple(map(flatbuffer.text, texts)) == (
            SAID.name, SAID.description, SAID.version, SAID.author, SAID.license
        )  # fmt: skip
        (graph,) = read.subgraphMetadata
        (image,) = graph.inputTensorMetadata
        assert image.content.contentProperties.colorSpace == schema.ColorSpaceType.RGB
        (unit,) = image.processUnits
        np.testing.assert_array_equal(unit.options.mean, np.float32(SAID.mean))
        np.testing.assert_array_equal(unit.options.std, np.float32(SAID.std))
        (labels,) = graph.outputTensorMetadata[output].associatedFiles
        assert (labels.name, labels.type) == (b"labels.txt", kind)


def _schema():
    """MediaPipe's generated reader, which is plain Python: pip install mediapipe runs this test."""
    package = importlib.util.find_spec("mediapipe")
    if package is None:
        pytest.skip("needs the package mediapipe (pip install mediapipe)")
    path = f"{package.submodule_search_locations[0]}/tasks/metadata/metadata_schema_py_generated.py"
    spec = importlib.util.spec_from_file_location("metadata_schema_py_generated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_others_wrote_is_read():
    unpacked = flatbuffer.read(cj.export.with_metadata(_file(), Metadata()))
    (entry,) = [e for e in unpacked.metadata if flatbuffer.text(e.name) == "TFLITE_METADATA"]
    unpacked.buffers[entry.buffer].data = np.frombuffer(THEIRS, np.uint8)
    unpacked.associated = {"names.txt": "one\r\nzwei\r\ndrei ß\r\n".encode(), "more": b""}
    assert cj.export.metadata(flatbuffer.write(unpacked)) == SAID


def test_metadata_is_replaced():
    twice = cj.export.with_metadata(cj.export.with_metadata(_file(), SAID), SAID)
    assert twice == cj.export.with_metadata(_file(), SAID)
    other = Metadata(name="another", labels=("a", "b", "c"))
    assert cj.export.metadata(cj.export.with_metadata(twice, other)) == other


def test_rewriting_keeps_the_labels():
    said = cj.export.with_metadata(_file(), SAID)
    assert flatbuffer.write(flatbuffer.read(said)) == said
    unpacked = flatbuffer.read(said)
    unpacked.description = "longer than it was, so that the archive moves " * 3
    assert cj.export.metadata(flatbuffer.write(unpacked)) == SAID
    assert cj.export.metadata(cj.export.dynamic_batch(said)) == SAID


def test_files_with_metadata_are_not_put_together():
    said = cj.export.with_metadata(_file(), SAID)
    with pytest.raises(ValueError, match="file 0 of the chain has metadata.*with_metadata"):
        cj.export.chain(said, _file())
    with pytest.raises(ValueError, match="signature 'b' has metadata"):
        cj.export.merge({"a": _file(), "b": said})
    merged = cj.export.with_metadata(cj.export.merge({"a": _file(), "b": _file()}), SAID)
    assert cj.export.metadata(merged) == SAID
    np.testing.assert_array_equal(cj.export.run(merged, X, signature="b"), cj.export.run(said, X))


def test_what_does_not_fit_is_refused():
    def said(**fields):
        return cj.export.with_metadata(_file(), Metadata(**fields))

    with pytest.raises(ValueError, match=r"2 labels, and outputs of shape \[1, 3\]"):
        said(labels=("a", "b"))
    with pytest.raises(ValueError, match=r"labels\[1\] is 'b\\nc': a label is one line"):
        said(labels=("a", "b\nc", "d"))
    with pytest.raises(TypeError, match="one string, 'abc'"):
        said(labels="abc")
    with pytest.raises(TypeError, match="name is 3, expected a string"):
        said(name=3)
    with pytest.raises(ValueError, match="mean has 2 numbers and std 1.*1, 8, 8, 3"):
        said(mean=(1.0, 2.0), std=(1.0,))
    with pytest.raises(ValueError, match="std above 0"):
        said(mean=(0.0,), std=(0.0,))
    with pytest.raises(ValueError, match="no metadata.*with_metadata"):
        cj.export.metadata(_file())
    with pytest.raises(ValueError, match="not a .tflite"):
        cj.export.with_metadata(b"", SAID)


def test_damaged_metadata_is_refused():
    said = cj.export.with_metadata(_file(), SAID)
    with pytest.raises(ValueError, match=r"form b'M999', expected b'M001'"):
        cj.export.metadata(_damaged(said, lambda data: data[:4] + b"M999" + data[8:]))
    for end in range(8, len(_metadata_buffer(said)), 5):
        try:
            cj.export.metadata(_damaged(said, lambda data, end=end: data[:end]))
        except ValueError as error:
            assert "damaged" in str(error)
    rng = np.random.default_rng(0)

    def noise(data: bytes) -> bytes:
        codes = np.frombuffer(data, np.uint8).copy()
        codes[rng.integers(8, len(codes), 3)] = rng.integers(0, 256, 3)
        return codes.tobytes()

    for _ in range(200):
        try:
            assert isinstance(cj.export.metadata(_damaged(said, noise)), Metadata)
        except ValueError as error:
            assert "damaged" in str(error)


def test_a_damaged_archive_is_refused():
    said = cj.export.with_metadata(_file(), SAID)
    text = said.rindex(b"one\nzwei")
    with pytest.raises(ValueError, match="archive behind the model cannot be read"):
        cj.export.metadata(said[:text] + b"ONE" + said[text + 3 :])
    with pytest.raises(ValueError, match=r"names the labels 'labels.txt'.*files \[\]"):
        cj.export.metadata(said[: said.rindex(b"PK\x03\x04")])
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", b"0" * 10_000_000)
    bare = said[: said.rindex(b"PK\x03\x04")]
    with pytest.raises(ValueError, match="holds more than the file"):
        cj.export.metadata(bare + compressed.getvalue())
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("labels.txt", b"one")
    with pytest.raises(ValueError, match="compressed in a way that LiteRT's tools do not read"):
        cj.export.metadata(bare + other.getvalue())
