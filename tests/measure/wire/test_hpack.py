from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core.errors import MeasureError
from repo_builder.measure.wire import hpack

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300)


@given(st.dictionaries(TEXT.filter(bool), TEXT, max_size=6))
def test_literals_come_back(fields: dict[str, str]) -> None:
    assert hpack.decode(hpack.encode(fields.items())) == fields


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        # RFC 7541, C.2.1 to C.2.4
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", {"custom-key": "custom-header"}),
        ("040c2f73616d706c652f70617468", {":path": "/sample/path"}),
        ("100870617373776f726406736563726574", {"password": "secret"}),
        ("82", {":method": "GET"}),
        # C.4.1: Huffman
        (
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            {":method": "GET", ":scheme": "http", ":path": "/", ":authority": "www.example.com"},
        ),
        # C.6.1
        (
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
            {
                ":status": "302",
                "cache-control": "private",
                "date": "Mon, 21 Oct 2013 20:13:21 GMT",
                "location": "https://www.example.com",
            },
        ),
        ("20880f0d023130", {":status": "200", "content-length": "10"}),  # a table size update first
    ],
)  # fmt: skip
def test_examples_of_the_rfc(block: str, fields: dict[str, str]) -> None:
    assert hpack.decode(bytes.fromhex(block)) == fields


def test_integers_of_the_rfc() -> None:
    assert hpack._integer(1337, 5).hex() == "1f9a0a"
    assert hpack._read_integer(bytes.fromhex("1f9a0a"), 0, 5) == (1337, 3)


@pytest.mark.parametrize("block", ["c0", "40", "400a6375", "ff", "00"])
def test_damaged_blocks_are_one_sentence(block: str) -> None:
    with pytest.raises(MeasureError, match="cannot be read"):
        hpack.decode(bytes.fromhex(block))
