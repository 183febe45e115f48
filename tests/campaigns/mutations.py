"""How inputs are damaged: bytes of any format, lines of text, values of JSON, parts of an ONNX graph."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import onnx

NUMBERS = (
    "0", "-1", "1", "255", "2147483648", "-2147483649", "9223372036854775808", "1e308", "1e400", "-0.0", "nan", "inf",
    "-inf", "0.5", "1" + "0" * 30, "1" + "0" * 5000, "0x7fffffff", "1_000_000_000_000",
)  # fmt: skip
TEXTS = (
    '""', '"\\u0000"', '"a\\nb"', '"../../../etc/passwd"', '"/dev/full"', f'"{"A" * 300}"', f'"{"é" * 200}"',
    '"%s%n"', '"<script>alert(1)</script>"', '"[/x]"', '"."', '".."', '"builtins:eval"', '"x:y:z"', '":"', '"a:"',
    '"²"', '"C:\\\\x"', '"package:../../x.safetensors"', '" "', '"[[["', '"(?P<"', '"**"',
)  # fmt: skip
ODD = (
    "[]", "{}", "[[]]", "[{}]", "true", "1979-05-27T07:32:00Z", "[1,[2,[3]]]", "{a={b={c=1}}}", "[" * 60 + "]" * 60,
    "[" * 3000 + "]" * 3000, "{a=" * 200 + "1" + "}" * 200, "[nan]", "[-1]", "[1.5]", "['a']",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 2**63, 2**70, 10**30, "", "x", "\0", "a/../../b",
    [], {}, [[]], [None], {"a": None}, "1", "nan", [1, 2, 3], -(2**63), "é" * 100, "[/x]", "a\nb",
)  # fmt: skip
_SPOTS = (
    (re.compile(r'(?<![\w"])-?\d+(\.\d+)?'), NUMBERS),
    (re.compile(r'"(?:[^"\\]|\\.)*"'), TEXTS),
    (re.compile(r"(?<=[=:] )[^\n]+"), ODD + NUMBERS + TEXTS),
)


def bytes_of(data: bytes, rnd: random.Random) -> bytes:
    """Flip, cut, repeat and overwrite bytes."""
    found = bytearray(data)
    for _ in range(rnd.choice([1, 1, 1, 2, 4, 16])):
        found = found or bytearray(1)
        at = rnd.randrange(len(found))
        way = rnd.randrange(8)
        if way == 0:
            found[at] ^= 1 << rnd.randrange(8)
        elif way == 1:
            found[at] = rnd.choice([0, 255, 127, 128, 34, 92, 10, 13, 91, 123, 44, 58, 45, rnd.randrange(256)])
        elif way == 2:
            del found[at:]
        elif way == 3:
            del found[at : at + rnd.randrange(1, 64)]
        elif way == 4:
            found[at:at] = bytes(found[rnd.randrange(len(found)) :][: rnd.randrange(1, 64)])
        elif way == 5:
            found[at:at] = rnd.randbytes(rnd.randrange(1, 8))
        elif way == 6:
            found[at : at + 4] = struct.pack("<I", rnd.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000]))
        else:
            found[at : at + 8] = struct.pack("<Q", rnd.choice([0, 1, 2**63 - 1, 2**64 - 1, 1 << 40]))
    return bytes(found)


def text_of(text: str, rnd: random.Random) -> bytes:
    """Put odd numbers, texts and values in place of what is there; drop, repeat and exchange lines."""
    for _ in range(rnd.choice([1, 1, 2, 3])):
        way, lines = rnd.randrange(7), text.split("\n")
        if way < 3:
            pattern, choices = _SPOTS[way]
            if found := list(pattern.finditer(text)):
                spot = rnd.choice(found)
                text = text[: spot.start()] + rnd.choice(choices) + text[spot.end() :]
            continue
        if way == 6:
            return bytes_of(text.encode(), rnd)
        first, second = rnd.randrange(len(lines)), rnd.randrange(len(lines))
        if way == 3:
            del lines[first]
        elif way == 4:
            lines.insert(second, lines[first])
        else:
            lines[first], lines[second] = lines[second], lines[first]
        text = "\n".join(lines)
    return text.encode("utf-8", "surrogatepass")


def json_of(value: Any, rnd: random.Random) -> bytes:
    """Change values, drop keys, put one part in another's place, nest deeply."""
    value = copy.deepcopy(value)
    for _ in range(rnd.choice([1, 1, 1, 2, 3])):
        spots = list(_spots(value))
        if not spots:
            break
        with suppress(KeyError, IndexError, OverflowError, TypeError):
            _change(spots, rnd)
    text = json.dumps(value).encode()
    chance = rnd.random()
    if chance < 0.08:
        return bytes_of(text, rnd)
    if chance < 0.1:
        return rnd.choice([b"[" * 100_000, b'{"a":' * 50_000, b'{"schema":' + b"9" * 5000 + b"}"])
    return text


def _spots(node: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _spots(node[key])


def _change(spots: list[tuple[Any, Any]], rnd: random.Random) -> None:
    parent, key = rnd.choice(spots)
    old, way = parent[key], rnd.randrange(6)
    if way <= 2:
        parent[key] = copy.deepcopy(rnd.choice(VALUES))
    elif way == 3:
        del parent[key]
    elif way == 4:
        other, place = rnd.choice(spots)
        parent[key] = copy.deepcopy(other[place])
    elif isinstance(old, dict):
        old[rnd.choice(["", "x", "\0", "name", "<b>"])] = rnd.choice(VALUES)
    elif isinstance(old, list):
        parent[key] = old * rnd.choice([0, 2, 50])
    elif isinstance(old, str):
        parent[key] = old * rnd.choice([0, 2, 100])
    elif isinstance(old, int | float):
        parent[key] = old * rnd.choice([-1, 1e6, 2**40])


def model_of(proto: onnx.ModelProto, rnd: random.Random) -> bytes:
    """Damage the file, or the graph in it."""
    if rnd.random() < 0.5:
        return bytes_of(proto.SerializeToString(), rnd)
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    for _ in range(rnd.choice([1, 1, 2, 3])):
        with suppress(IndexError, ValueError, TypeError):
            rnd.choice(_GRAPH)(model, rnd)
    return model.SerializeToString()


def _dimension(model: onnx.ModelProto, rnd: random.Random) -> None:
    shape = rnd.choice([*model.graph.input, *model.graph.output]).type.tensor_type.shape
    if rnd.random() < 0.5:
        shape.dim.add().dim_value = rnd.choice([0, -1, 2**62, 7])
    else:
        rnd.choice(list(shape.dim)).dim_value = rnd.choice([0, -1, -5, 2**31, 2**62, 1, 3])


def _type(model: onnx.ModelProto, rnd: random.Random) -> None:
    value = rnd.choice([*model.graph.input, *model.graph.output])
    value.type.tensor_type.elem_type = rnd.choice([0, 1, 7, 8, 9, 10, 11, 14, 16, 17, 23, 999, -1])


def _name(model: onnx.ModelProto, rnd: random.Random) -> None:
    names = ["", 'a"b', "a\nb", "x/y:0", "é" * 50, "A" * 1000, "\0", '] }\nname: "evil"']
    rnd.choice([*model.graph.input, *model.graph.output]).name = rnd.choice(names)


def _node(model: onnx.ModelProto, rnd: random.Random) -> None:
    node = rnd.choice(list(model.graph.node))
    way = rnd.randrange(4)
    if way == 0:
        kinds = ["", "Foo", "Gemm", "Conv", "QuantizeLinear", "DequantizeLinear", "Loop", "If", "Relu"]
        node.op_type = rnd.choice(kinds)
    elif way == 1:
        names = ["", "nope", node.output[0], model.graph.node[-1].output[0]]
        node.input[rnd.randrange(len(node.input))] = rnd.choice(names)
    elif way == 2:
        model.graph.node.remove(node)
    else:
        model.graph.node.add().CopyFrom(node)


def _constant(model: onnx.ModelProto, rnd: random.Random) -> None:
    tensor = rnd.choice(list(model.graph.initializer))
    way = rnd.randrange(4)
    if way == 0:
        tensor.dims[:] = rnd.choice([[], [0], [2**40], [-1], [1, 2, 3], [2**31, 2**31]])
    elif way == 1:
        tensor.data_type = rnd.choice([0, 1, 2, 3, 7, 8, 10, 16, 23, 99])
    elif way == 2:
        tensor.raw_data = tensor.raw_data[: rnd.randrange(max(1, len(tensor.raw_data)))]
    else:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        place = rnd.choice(["../../../../etc/passwd", "nope", "", ".", "a\0b"])
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", place
        tensor.ClearField("raw_data")


def _opset(model: onnx.ModelProto, rnd: random.Random) -> None:
    model.opset_import[0].version = rnd.choice([0, -1, 1, 7, 13, 99, 2**40])


_GRAPH = (_dimension, _type, _name, _node, _node, _constant, _constant, _opset)
