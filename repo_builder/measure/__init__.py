"""Measuring a served model: accuracy first, then latency and throughput, through the running server.

The client side needs numpy and tritonclient, nothing else. What is measured is described by the frozen dataclasses of
``results``; ``accuracy`` is the one scorer for every form of a model, served or not.
"""
