"""What ``repo-builder perf`` does: joins the recipe, its held-out samples and the build with the measuring stage."""

from repo_builder.flows.perf.options import Collected, PerfOptions, Tolerances
from repo_builder.flows.perf.run import perf
from repo_builder.measure.load.abilities import Asks

__all__ = ["Asks", "Collected", "PerfOptions", "Tolerances", "perf"]
