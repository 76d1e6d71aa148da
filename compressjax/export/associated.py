"""The files that travel behind a model: a ZIP archive appended to the FlatBuffer.

LiteRT's tools keep labels there, uncompressed, and runtimes do not look at it. Whoever rewrites a
model must write them again, since the archive counts its offsets from the start of the whole file;
`flatbuffer.read` and `flatbuffer.write` do it with the functions of this module.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping

NAME = "TFLITE_METADATA"  # the metadata that says what the files are
_WHEN = (1980, 1, 1, 0, 0, 0)  # ZIP's first day: the same files give the same bytes
_FORMS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UNIX, _MODE = 3, 0o644 << 16
_ERRORS = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError,
    OverflowError, struct.error, zlib.error,
)  # fmt: skip


def files(data: bytes) -> dict[str, bytes]:
    """Reads the files behind a model.

    Args:
        data: the .tflite.

    Returns:
        Their contents by name, in the order of the archive; none where there is no archive.

    Raises:
        ValueError: the archive is damaged, or holds more than the file has bytes.

    Example:
        >>> files(attach(b'model', {'labels.txt': b'cat'}))
        {'labels.txt': b'cat'}
        >>> files(b'model')
        {}
    """
    source = io.BytesIO(data)
    if not zipfile.is_zipfile(source):
        return {}
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > len(data):
                raise ValueError("it holds more than the file, so it is compressed or overlaps")
            if any(entry.compress_type not in _FORMS for entry in entries):
                raise ValueError("it is compressed in a way that LiteRT's tools do not read")
            return {entry.filename: archive.read(entry) for entry in entries}
    except _ERRORS as error:
        raise ValueError(
            f"damaged .tflite: the ZIP archive behind the model cannot be read ({error})"
        ) from error


def attach(data: bytes, contents: Mapping[str, bytes]) -> bytes:
    """Puts files behind a model.

    Args:
        data: the FlatBuffer, with nothing behind it.
        contents: the files by name.

    Returns:
        The model, followed by an uncompressed archive; just the model where there are no files.
    """
    if not contents:
        return data
    whole = io.BytesIO()
    whole.write(data)
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, _WHEN)
            entry.create_system, entry.external_attr = _UNIX, _MODE
            archive.writestr(entry, content)
    return whole.getvalue()
