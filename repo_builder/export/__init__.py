"""ONNX with explicit precisions: what is written, checked and read back.

    torch_onnx.py   a torch module to ONNX (needs torch), by one of two exporters:
    capturing.py    torch.export, and captured_graph.py what is done to its graph
    tracing.py      the older one, which records a run
    choosing.py     which of them is taken, and why
    comparing.py    whether a graph computes what the module does
    opsets.py       a graph in an older operator set
    naming.py       names of layers and quantizers in a freshly exported graph
    precision.py    fp16 regions in an ONNX graph
    qdq.py          Q/DQ: a linter for what TensorRT parses, and the precision of every layer

``repo_builder.core.graphs`` says how layers are named.
"""
