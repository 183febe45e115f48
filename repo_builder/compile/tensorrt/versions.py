"""What differs between the TensorRT versions that plans are built with: one table, read once per build.

Everything else that this package uses is the same from 8.5 to 11: explicit batch, tensors named in ``get_tensor_*``
and ``set_tensor_address``, ``execute_async_v3``, the engine inspector, timing caches. ``trt.nptype`` is never used (it
breaks on numpy 1.24 and later, and newer types have no numpy equal): ``repo_builder.core.tensors`` holds the table.

Plans have been built and run with 8.5.3.1 and 8.6.0. A strongly typed TensorRT, that for RTX, compiles this project's
graphs in the test suite (tests/compile/tensorrt/test_strongly_typed.py). Of 10 and 11 it is proven that their published
bindings have every name that is used, and that one overload of every method that is called or overridden, constructors
among them, has the parameters that arguments are given for, in their order, and none beyond them without a default
(tests/compile/tensorrt/test_versions.py). Not proven there is what only running tells: that arguments of our types are
converted, which precisions come out, how the inspector names fused layers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from repo_builder.core.errors import CompileError

# The tactic sources that exist in every version and need no further library: TensorRT 10 no longer calls cuBLAS,
# cuBLASLt or cuDNN, and 11 has dropped their names.
TACTIC_SOURCES = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one version wants to be spoken to.

    Attributes:
        network_flags: Names in ``NetworkDefinitionCreationFlag`` of an explicit-batch network.
        weakly_typed: Whether precision is allowed by builder flags and pinned by per-layer constraints; where not, the
            types of the graph's tensors are the precisions.
        optimization_level: Whether ``IBuilderConfig.builder_optimization_level`` is there.
        progress_monitor: Whether ``IProgressMonitor`` reports progress; where not, the logger's lines do.
        names_refused_node: Whether a parser error says the node's name and operator; where not, only its position.
        layer_normalization: Whether the parser knows opset 17's LayerNormalization.
        float8: Whether fp8 Q/DQ is parsed, which opset 19 brought, and its networks may be strongly typed.
    """

    network_flags: tuple[str, ...]
    weakly_typed: bool
    optimization_level: bool
    progress_monitor: bool
    names_refused_node: bool
    layer_normalization: bool = True
    float8: bool = False


# (major, minor) from which a row holds → the row
_TABLE: dict[tuple[int, int], Dialect] = {
    (8, 5): Dialect(
        network_flags=("EXPLICIT_BATCH",),
        weakly_typed=True,
        optimization_level=False,
        progress_monitor=False,
        names_refused_node=False,
        layer_normalization=False,
    ),
    (8, 6): Dialect(
        network_flags=("EXPLICIT_BATCH",),
        weakly_typed=True,
        optimization_level=True,
        progress_monitor=False,
        names_refused_node=False,
    ),
    (10, 0): Dialect(
        network_flags=(),
        weakly_typed=True,
        optimization_level=True,
        progress_monitor=True,
        names_refused_node=True,
        float8=True,
    ),
    (11, 0): Dialect(
        network_flags=("STRONGLY_TYPED",),
        weakly_typed=False,
        optimization_level=True,
        progress_monitor=True,
        names_refused_node=True,
        float8=True,
    ),
}
# From which compute capability on GPUs have fp8 units (Ada, Hopper): NVIDIA, "Working with Quantized Types".
_FLOAT8_CAPABILITY = (8, 9)


def strongly_typed(row: Dialect) -> Dialect:
    """Return how a version is spoken to where the types of the graph's tensors are to be the precisions."""
    return dataclasses.replace(row, network_flags=("STRONGLY_TYPED",), weakly_typed=False)


def why_no_float8(version: str, capability: str) -> str:
    """Return why a TensorRT builds no fp8 layers for a GPU, an empty text where it does.

    Args:
        version: As for ``dialect``.
        capability: Compute capability, as in ``9.0``.
    """
    if not dialect(version).float8:
        return f"TensorRT {version} parses no fp8 Q/DQ (opset 19), which TensorRT 10 does"
    if tuple(int(part) for part in capability.split(".")) < _FLOAT8_CAPABILITY:
        least = ".".join(map(str, _FLOAT8_CAPABILITY))
        return f"a GPU of compute capability {capability} has no fp8 units, which begin with {least}"
    return ""


def dialect(version: str) -> Dialect:
    """Return the row for a version.

    Args:
        version: As ``tensorrt.__version__`` has it, ``8.5.3.1``.

    Raises:
        CompileError: The version is older than the table.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    rows = [row for since, row in sorted(_TABLE.items()) if since <= (major, minor)]
    if not rows:
        raise CompileError(
            f"TensorRT {version} is too old",
            hint="install 8.5.3 or newer: pip install 'repo-builder[tensorrt]'",
        )
    return rows[-1]
