"""Types of recipe values with what they may not be; ``core/bounds.py`` says how it is told."""

from __future__ import annotations

from typing import Annotated

from repo_builder.core.bounds import Bound

_INT32 = 2**31 - 1  # config.pbtxt and TensorRT hold sizes in 32 bits

Count = Annotated[int, Bound(ge=1, le=_INT32)]
Counts = Annotated[tuple[Count, ...], Bound(nonempty=True)]
Natural = Annotated[int, Bound(ge=0, le=_INT32)]
Share = Annotated[float, Bound(gt=0, lt=1, must="is not a fraction between 0 and 1")]
Percent = Annotated[float, Bound(gt=0, le=100, must="is not in (0, 100]")]
Text = Annotated[str, Bound(pattern=r"[^\x00]+", must="is empty or holds a NUL character")]
Function = Annotated[
    str, Bound(pattern=r"[^\x00:]+:[A-Za-z_]\w*|[A-Za-z]:[^\x00:]+:[A-Za-z_]\w*", must="is not module:function")
]
Name = Annotated[
    str,
    Bound(
        pattern=r"[^\W_][\w.-]*",
        must="cannot name a folder",
        hint="use letters, digits, '-', '_' and '.'",
    ),
    # a file system takes 255 bytes, and folders beside it have longer names while they are written
    Bound(most_bytes=200),
]
EIGHT_BITS = Bound(
    ge=8,
    le=8,
    must="bits are not supported: a precision says its bits, int8 and fp8 have 8, int4 has 4",
    hint='remove num_bits; precision = "int4" is for weights of 4 bits',
)
