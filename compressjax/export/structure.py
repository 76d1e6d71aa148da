"""Checks that the bytes of a .tflite are a FlatBuffer, before anything reads them.

An offset that points outside the file ends the process of a C++ runtime. This walks every table,
vector and string within its bounds and says where one leaves the file; what the numbers in it mean
is `validate.py`'s question.
"""

from __future__ import annotations

import struct

from compressjax.export._require import require

# Field number -> width of a scalar in bytes, "text", "bytes<width>", a table or [tables].
_MODEL: dict[str, dict[int, int | str]] = {
    "Model": {
        0: 4, 1: "[OperatorCode]", 2: "[SubGraph]", 3: "text", 4: "[Buffer]", 5: "bytes4",
        6: "[Metadata]", 7: "[SignatureDef]",
    },
    "OperatorCode": {0: 1, 1: "text", 2: 4, 3: 4},
    "SubGraph": {0: "[Tensor]", 1: "bytes4", 2: "bytes4", 3: "[Operator]", 4: "text", 5: 4},
    "Tensor": {
        0: "bytes4", 1: 1, 2: 4, 3: "text", 4: "Quantization", 5: 1, 6: "Sparsity", 7: "bytes4",
        8: 1, 10: 4,
    },
    "Sparsity": {0: "bytes4", 1: "bytes4", 2: "[Dimension]"},
    "Dimension": {0: 1, 1: 4, 2: 1, 3: "Indices", 4: 1, 5: "Indices"},
    "Int32Vector": {0: "bytes4"},
    "Uint16Vector": {0: "bytes2"},
    "Uint8Vector": {0: "bytes1"},
    "Quantization": {0: "bytes4", 1: "bytes4", 2: "bytes4", 3: "bytes8", 4: 1, 6: 4},
    "Operator": {
        0: 4, 1: "bytes4", 2: "bytes4", 3: 1, 4: "Options", 5: "bytes1", 6: 1, 7: "bytes1",
        8: "bytes4", 9: 8, 10: 8, 13: 4,
    },
    "Buffer": {0: "bytes1", 1: 8, 2: 8},
    "Metadata": {0: "text", 1: 4},
    "SignatureDef": {0: "[TensorMap]", 1: "[TensorMap]", 2: "text", 4: 4},
    "TensorMap": {0: "text", 1: 4},
    "Options": {},
    "ReshapeOptions": {0: "bytes4"},
    "SqueezeOptions": {0: "bytes4"},
    "FullyConnectedOptions": {5: "bytes1"},
}  # fmt: skip
_OUTSIDE = "Only data in the file itself is read: put everything into one file."
_STABLEHLO = (
    "LiteRT runs it on slow reference kernels, if at all, and no delegate takes it: "
    "compressjax.export.check names the operation of the model and what to write instead."
)
# Parts of the format that no file for a phone's CPU kernels needs, and that cannot be checked;
# with what to do.
_REFUSED: dict[str, dict[int, tuple[str, str]]] = {
    "Model": {8: ("external buffer groups", _OUTSIDE), 9: ("external buffers", _OUTSIDE)},
    "Tensor": {9: ("a tensor of several types", "Convert the model without them.")},
    "Quantization": {5: ("custom quantization", "Quantize with scales and zero points.")},
    "Operator": {
        11: ("an operation of StableHLO", _STABLEHLO),
        12: ("an operation of StableHLO", _STABLEHLO),
    },
}
_INDEX_VECTORS = {1: "Int32Vector", 2: "Uint16Vector", 3: "Uint8Vector"}
_CONTROL_FLOW = {
    "IfOptions": "IF",
    "WhileOptions": "WHILE",
    "CallOptions": "CALL",
    "CallOnceOptions": "CALL_ONCE",
    "VarHandleOptions": "VAR_HANDLE",
}


class _Bytes:
    """Walks the tables of a FlatBuffer, refusing every step that leaves it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.tables_left = len(data) // 4  # a table takes 4 bytes or more

    def fail(self, where: str, what: str) -> ValueError:
        return ValueError(
            f"damaged .tflite: {where} {what} (file of {len(self.data)} bytes). "
            "Export or download the file again."
        )

    def unsupported(self, where: str, what: str, advice: str) -> ValueError:
        return ValueError(f"unsupported .tflite: {where} {what}. {advice}")

    def number(self, code: str, at: int, where: str) -> int:
        if at < 0 or at + struct.calcsize(code) > len(self.data):
            raise self.fail(where, f"is at byte {at}, outside the file")
        return struct.unpack_from("<" + code, self.data, at)[0]

    def table(self, at: int, kind: str, where: str) -> None:
        self.tables_left -= 1
        if self.tables_left < 0:
            raise self.fail(where, "belongs to more tables than the file can hold")
        fields, size = self.fields(at, where)
        for index, offset in enumerate(fields):
            if offset == 0:
                continue
            if index in _REFUSED.get(kind, {}):
                part, advice = _REFUSED[kind][index]
                raise self.unsupported(where, f"uses {part}, which is not supported", advice)
            form = _MODEL[kind].get(index, 1)
            width = form if isinstance(form, int) else 4
            if offset < 4 or offset + width > size:
                raise self.fail(f"{where}, field {index},", "lies outside its table")
            if form == "Options":
                self.options(at, at + offset, fields, where)
            elif form == "Indices":
                number = self.number("B", at + fields[index - 1], where) if fields[index - 1] else 0
                if number not in _INDEX_VECTORS:
                    raise self.fail(where, f"has indices of the unknown type {number}")
                self.follow(at + offset, _INDEX_VECTORS[number], f"{where}, field {index},")
            elif isinstance(form, str):
                self.follow(at + offset, form, f"{where}, field {index},")

    def fields(self, at: int, where: str) -> tuple[tuple[int, ...], int]:
        vtable = at - self.number("i", at, where)
        length = self.number("H", vtable, f"the layout of {where}")
        size = self.number("H", vtable + 2, f"the layout of {where}")
        if length < 4 or length % 2 or size < 4 or vtable + length > len(self.data):
            raise self.fail(f"the layout of {where}", "is not a FlatBuffer table")
        if at + size > len(self.data):
            raise self.fail(where, "runs past the end")
        return struct.unpack_from(f"<{length // 2 - 2}H", self.data, vtable + 4), size

    def follow(self, at: int, form: str, where: str) -> None:
        target = at + self.number("I", at, where)
        if form in _MODEL:
            self.table(target, form, where)
            return
        count = self.number("I", target, where)
        vector = form.startswith("[")
        width = 4 if vector else int(form.removeprefix("bytes")) if form != "text" else 1
        if target + 4 + count * width > len(self.data):
            raise self.fail(where, f"of {count} items runs past the end")
        if form == "text":
            self.text(target + 4, count, where)
        if vector:
            for i in range(count):
                entry = target + 4 + 4 * i
                child = entry + self.number("I", entry, where)
                self.table(child, form[1:-1], f"{form[1:-1]} {i}")

    def text(self, at: int, count: int, where: str) -> None:
        try:
            self.data[at : at + count].decode()
        except UnicodeDecodeError as error:
            raise self.fail(where, "is not UTF-8 text") from error

    def options(self, table: int, at: int, fields: tuple[int, ...], where: str) -> None:
        schema = require("ai_edge_litert.schema_py_generated")
        number = self.number("B", table + fields[3], where) if fields[3] else 0
        names = {value: name for name, value in vars(schema.BuiltinOptions).items()}
        name = names.get(number)
        if not isinstance(name, str) or number == 0:
            raise self.fail(where, f"has options of the unknown type {number}")
        reader = getattr(schema, name)
        vectors = any(method.endswith("Length") for method in vars(reader))
        if name in _CONTROL_FLOW:
            raise self.unsupported(
                where,
                f"is {_CONTROL_FLOW[name]}, and this reader does not follow control flow or state",
                "LiteRT may run the file all the same. To have it read here, write loops out "
                "(lax.scan with unroll=True, or a Python loop), choose with jnp.where in place of "
                "lax.cond, and export again.",
            )
        if vectors and name not in _MODEL:
            raise self.unsupported(
                where,
                f"has {name}, whose lists are not checked, which is not supported",
                "Replace the operation and export again.",
            )
        self.follow(at, name if name in _MODEL else "Options", f"the options of {where}")


def check(data: bytes) -> None:
    """Checks that every table, vector and string of a .tflite lies inside the file.

    Args:
        data: the file.

    Raises:
        TypeError: `data` is not bytes.
        ValueError: the file is truncated or damaged, or uses a part of the format that cannot be
            checked (external buffers, control flow, StableHLO operations). What follows the
            FlatBuffer in the file, such as the ZIP of a model's associated files, is not looked at.

    Example:
        >>> check(b'not a model')
        Traceback (most recent call last):
        ...
        ValueError: not a .tflite: the file has 11 bytes and no identifier TFL3 at byte 4...
    """
    if not isinstance(data, bytes):
        raise TypeError(f"a model is bytes (the content of a .tflite), found {type(data).__name__}")
    if len(data) < 16 or data[4:8] != b"TFL3":
        raise ValueError(
            f"not a .tflite: the file has {len(data)} bytes and no identifier TFL3 at byte 4. "
            "Give the bytes that compressjax.export.tflite returned."
        )
    walk = _Bytes(data)
    walk.table(walk.number("I", 0, "the root"), "Model", "the model")
