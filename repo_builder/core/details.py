"""What only one kind of artifact has: a frozen type for the exported model, and one for each compile target.

A target's type names it in ``target``, by which the manifest is read back; a new target adds its type to
``EngineDetails``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from repo_builder.core.profiles import Profile, check_profiles
from repo_builder.core.records import FinetuneRecord, RepairRecord, Verdict


@dataclass(frozen=True, kw_only=True)
class OnnxDetails:
    """What is known of an exported model.

    Attributes:
        as_it_came: Whether no rule asks for anything, so that the graph is compiled as it is.
        calibration_samples: Number of samples that calibrated it; None where that is not known.
        weights: The weights' file, as the user knows it.
        weights_sha256: Its sha256; None where that is not known.
        alone: Why a request is one run, and nothing is put together with it; empty where it may be.
        read: File that the user's code read while the model was made → sha256: a change of one makes it again.
        data: Name of the data set.
        data_sha256: Hash of the held-out data; None where that is not known.
        finetuned: How it was fine-tuned; None where it was not.
        repairs: What was done so that int8 loses less, in turn, and what it gained.
        exporter: Who wrote a torch module's graph, and why, as in ``torch.export: a trace computes sizes in 4 nodes``;
            empty for an .onnx file.
    """

    as_it_came: bool = False
    calibration_samples: int | None = None
    weights: str = ""
    weights_sha256: str | None = None
    alone: str = ""
    read: dict[str, str] = field(default_factory=dict)
    data: str = ""
    data_sha256: str | None = None
    finetuned: FinetuneRecord | None = None
    repairs: tuple[RepairRecord, ...] = ()
    exporter: str = ""


Launch = Literal["CUDA graph", "kernel by kernel"]


@dataclass(frozen=True, kw_only=True)
class SpeedRecord:
    """A model timed in turns with another, its fp32 form if nothing else is said, at one batch size.

    Attributes:
        batch_size: The batch size.
        reference_us: Median time of the fp32 form, microseconds.
        candidate_us: Median time of the compiled one, microseconds.
        low: Lower end of the 95 % interval of how many times as fast it is, from the turns' ratios; None where only
            medians are known.
        high: Upper end of it.
        launched: How the runs of the reference and of the other were started; empty where there is but one way.
    """

    batch_size: int
    reference_us: float
    candidate_us: float
    low: float | None = None
    high: float | None = None
    launched: tuple[Launch, ...] = ()

    @property
    def speedup(self) -> float:
        """How many times as fast the compiled one is."""
        return self.reference_us / self.candidate_us

    @property
    def verdict(self) -> Literal["faster", "slower", "alike"]:
        """What can be said of it: nothing where the interval, or a median alone by less than 3 %, holds 1."""
        low, high = (self.low, self.high) if self.low and self.high else (self.speedup / 1.03, self.speedup * 1.03)
        return "faster" if low > 1 else "slower" if high < 1 else "alike"


@dataclass(frozen=True, kw_only=True)
class DropRecord:
    """What accuracy a choice of precisions costs, in percentage points, on the same samples as fp32.

    Attributes:
        points: Points lost: of top-1 where there are labels, else of samples whose class is fp32's.
        low: Lower end of the 95 % interval, from the samples that changed.
        high: Upper end of it.
        samples: Number of samples.
        labelled: Whether there are labels.
        changed: Samples that changed sides, either way.
    """

    points: float
    low: float
    high: float
    samples: int
    labelled: bool = True
    changed: int = 0

    @property
    def likely(self) -> float:
        """The points with one standard error on top: of many choices, those that chance favours lose by it."""
        spread = self.changed - self.samples * (self.points / 100) ** 2
        return self.points + 100 * math.sqrt(max(0.0, spread)) / self.samples


@dataclass(frozen=True, kw_only=True)
class TriedRecord:
    """One choice of precisions that a build tried.

    Attributes:
        what: What it is, as in ``without the first convolution``.
        left: Layers that it leaves in fp32.
        speed: Against all of them in fp32, one entry a batch size; empty where accuracy ruled it out.
        sqnr_db: Least signal to noise of an output on calibration samples, dB; None where it was not measured.
        fits: Whether the outputs keep what the recipe asks for; None where nobody looked at them.
        chosen: Whether it was taken.
        drop: Accuracy that it costs; None where outputs are no classes, and where it was not measured.
        held: The same on validation samples that chose nothing; None where they were not asked, or hold no classes.
        holds: Whether it keeps the limit on them, with a margin; None where they were not asked.
        size_bytes: Size of the model file; None where that was not told.
        front: Whether no other is at once as fast, as accurate and as small.
        against: What it was timed against; empty for fp32.
    """

    what: str
    left: tuple[str, ...] = ()
    speed: tuple[SpeedRecord, ...] = ()
    sqnr_db: float | None = None
    fits: bool | None = None
    chosen: bool = False
    drop: DropRecord | None = None
    held: DropRecord | None = None
    holds: bool | None = None
    size_bytes: int | None = None
    front: bool = False
    against: str = ""


@dataclass(frozen=True, kw_only=True)
class _Compiled:
    """What is known of a compiled model, whatever the target.

    Attributes:
        max_batch_size: Largest batch that the file takes; 0 where it does not batch.
        batching: Why it is that; empty where the recipe's was taken as it is.
        notes: Sentences for the user.
        calibration_samples: As of the exported model.
        weights_sha256: As of the exported model.
        onnx_sha256: sha256 of the exported model.fp32.onnx; None until the build has said so, as the next two.
        recipe_sha256: Hash of the recipe.
        data_sha256: Hash of the held-out data that scored it; None where none did.
        tried: The choices of precisions that were weighed, in turn; empty where all were kept as asked.
        searched: Whether a search chose the precisions.
    """

    max_batch_size: int
    batching: str = ""
    notes: tuple[str, ...] = ()
    calibration_samples: int | None = None
    weights_sha256: str | None = None
    onnx_sha256: str | None = None
    recipe_sha256: str | None = None
    data_sha256: str | None = None
    tried: tuple[TriedRecord, ...] = ()
    searched: bool = False


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeDetails(_Compiled):
    """What is known of a graph for ONNX Runtime.

    Attributes:
        target: ``onnxruntime``.
        backend: Triton's backend.
        accelerator: As in the recipe.
        onnxruntime_version: The version that wrote and loaded it.
        speed: One entry a batch size; empty where nothing was asked below fp32.
        precisions: One entry a layer, asked against what ONNX Runtime's own graph has; empty for an accelerator.
    """

    target: Literal["onnxruntime"] = "onnxruntime"
    backend: Literal["onnxruntime"] = "onnxruntime"
    accelerator: Literal["none", "cuda", "tensorrt"] = "none"
    onnxruntime_version: str = ""
    speed: tuple[SpeedRecord, ...] = ()
    precisions: tuple[Verdict, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TensorRTDetails(_Compiled):
    """What is known of a plan; what is not known is None or empty.

    Attributes:
        target: ``tensorrt``.
        backend: Triton's backend.
        tensorrt_version: The version that built it; it loads on no other.
        cuda_version: CUDA's version there.
        driver: The driver's version there.
        gpu: The GPU that it was tuned for.
        compute_capability: That GPU's, as in ``9.0``.
        profiles: The shapes that it takes.
        flags: Builder flags.
        constrained_layers: How many layers were held to a precision.
        pinned: Nodes of the graph that they belong to.
        tactic_sources: Tactic sources that were allowed.
        workspace_mib: Limit of the builder's scratch memory, MiB.
        optimization_level: Builder optimization level; None for the default.
        cached_tactics_bytes: Size of the timing cache that was there.
        build_seconds: How long the builds took together.
        builds: How many plans were built on the way.
        plan_bytes: Size of the plan.
        engine_layers: Number of its layers.
        precision_counts: Precision → layers of the recipe that run in it.
        precisions: One entry a layer of the recipe, asked against got.
        narrowed: Inputs and outputs that are int64 in the network and int32 in the plan, as TensorRT before 10 has
            them.
    """

    target: Literal["tensorrt"] = "tensorrt"
    backend: Literal["tensorrt"] = "tensorrt"
    tensorrt_version: str = ""
    cuda_version: str = ""
    driver: str = ""
    gpu: str = ""
    compute_capability: str = ""
    profiles: tuple[Profile, ...] = ()
    flags: tuple[str, ...] = ()
    constrained_layers: int | None = None
    pinned: tuple[str, ...] = ()
    tactic_sources: tuple[str, ...] = ()
    workspace_mib: int | None = None
    optimization_level: int | None = None
    cached_tactics_bytes: int | None = None
    build_seconds: float | None = None
    builds: int | None = None
    plan_bytes: int | None = None
    engine_layers: int | None = None
    precision_counts: dict[str, int] = field(default_factory=dict)
    precisions: tuple[Verdict, ...] = ()
    narrowed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse profiles that are not of the same inputs."""
        check_profiles(self.profiles)


EngineDetails = OnnxRuntimeDetails | TensorRTDetails
