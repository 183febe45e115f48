"""repo-builder: from a trained model to a measured NVIDIA Triton deployment."""

import os

# ONNX Runtime reports to Microsoft, and keeps a device's number and a database of events in the user's cache folder,
# unless this is set before it is imported, here and in every process that is started from here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
