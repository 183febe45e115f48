"""What every room shares: errors, files, tensors, graphs, recipes, artifacts, the machine. It knows no stage."""

import os

# Recent ONNX Runtimes keep a device id and a database of events in the user's cache folder and report them. They
# read this variable once, when it is first imported, and child processes (Triton's stubs) inherit it; a user who sets
# it to 0 gets the reports.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
