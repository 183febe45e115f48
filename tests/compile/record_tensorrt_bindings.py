"""Record what published TensorRT bindings offer: python record_tensorrt_bindings.py > tensorrt_bindings.json

The bindings are extension modules that link libnvinfer and its kin and call a handful of functions of theirs. Those are
replaced by empty libraries made here, which is enough to import the module and read its classes and docstrings; nothing
can be run. Kept of a method is the first line of its docstring, its signature; where that is ``(*args, **kwargs)``, the
overloads that the docstring numbers, one a line. Needs pip with access to a registry, CPython 3.10 as python3.10,
gcc, readelf and nm.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# version → distribution that holds the extension module
PUBLISHED = {
    "8.5.3.1": "tensorrt",
    "8.6.1": "tensorrt-bindings",
    "10.0.1": "tensorrt-cu12-bindings",
    "10.13.3.9": "tensorrt-cu12-bindings",
    "11.0.0.114": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu12-bindings",
}
CLASSES = (
    "Builder", "IBuilderConfig", "INetworkDefinition", "ILayer", "ITensor", "IOptimizationProfile", "OnnxParser",
    "ParserError", "ITimingCache", "IHostMemory", "Runtime", "ICudaEngine", "EngineInspector", "IExecutionContext",
    "ILogger", "IProgressMonitor", "Logger",
)  # fmt: skip
ENUMS = (
    "BuilderFlag", "NetworkDefinitionCreationFlag", "TacticSource", "MemoryPoolType", "ProfilingVerbosity",
    "LayerInformationFormat", "DataType", "TensorIOMode", "LayerType",
)  # fmt: skip

READ = """
import importlib.util, json, re, sys
spec = importlib.util.spec_from_file_location("tensorrt", sys.argv[1])
trt = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trt)
classes, enums = json.loads(sys.argv[2])
def signatures(item):
    lines = (item.__doc__ or "").strip().splitlines() or [""]
    overloads = [found[1] for line in lines if (found := re.match(r"\\d+\\. (\\w+\\(self: .*)", line))]
    return overloads or lines[:1]
def methods(kind):
    names = [name for name in dir(kind) if name == "__init__" or not name.startswith("__")]
    return {name: "\\n".join(signatures(getattr(kind, name))) for name in names}
print(json.dumps({
    "classes": {name: methods(getattr(trt, name)) for name in classes if hasattr(trt, name)},
    "enums": {name: list(getattr(trt, name).__members__) for name in enums if hasattr(trt, name)},
}))
"""


def record(version: str, distribution: str, folder: Path) -> dict[str, object]:
    """Download one wheel, import its extension module and return what it offers."""
    pip = ["python3.10", "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    subprocess.run([*pip, f"{distribution}=={version}"], check=True, stdout=sys.stderr)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith("/tensorrt.so"))
        archive.extract(member, folder)
    module = folder / member
    tell = {"check": True, "text": True, "stdout": subprocess.PIPE}
    needed = re.findall(r"\[(libnv\w+\.so\.\d+)\]", subprocess.run(["readelf", "-d", module], **tell).stdout)
    names = subprocess.run(["nm", "-D", "--undefined-only", module], **tell).stdout.split()
    wanted = [name for name in names if re.search(r"INTERNAL|PluginRegistry|NvOnnx|initLibNv|nvuff|nvcaffe", name)]
    source = folder / "empty.c"
    source.write_text("".join(f'__asm__(".globl {name}\\n{name}:\\n xor %eax,%eax\\n ret\\n");\n' for name in wanted))
    for library in needed:
        link = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", source, "-o", folder / library]
        subprocess.run(link, check=True)
    program = ["python3.10", "-c", READ, module, json.dumps([CLASSES, ENUMS])]
    done = subprocess.run(program, **tell, env={**os.environ, "LD_LIBRARY_PATH": str(folder)})
    return {"wheel": wheel.name, **json.loads(done.stdout)}


def main() -> None:
    """Print all records as one JSON document."""
    found: dict[str, object] = {}
    for version, distribution in PUBLISHED.items():
        with tempfile.TemporaryDirectory() as folder:
            found[version] = record(version, distribution, Path(folder))
    rows = ",\n".join(f"{json.dumps(version)}: {json.dumps(offer)}" for version, offer in found.items())
    print(f"{{\n{rows}\n}}")


if __name__ == "__main__":
    main()
