"""What ``repo-builder tune`` does: serving configurations, loaded and measured on the real server in turn."""

from repo_builder.flows.tune.options import Collected, TuneOptions
from repo_builder.flows.tune.run import tune

__all__ = ["Collected", "TuneOptions", "tune"]
