"""Steps before and behind a network: what they take and give, as ONNX graphs or as Python that Triton runs.

    [pipeline] ─ chain (every tensor checked) ─ parts (what runs as one model) ─ graphs, folders ─ in this process

There is one implementation of each step: the very nodes, or the very file, that is served is what calibration and every
comparison in this process run.
"""
