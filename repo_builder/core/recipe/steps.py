"""Steps of ``[pipeline]``, one table each. What a step takes and gives, and how it runs: ``pipeline/steps``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from repo_builder.core.bounds import Bound
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe.bounds import Count, Function, Natural, Text
from repo_builder.core.tensors import DType, TensorSpec

Layout = Literal["hwc", "chw"]
Number = Annotated[float, Bound(ge=-1e9, le=1e9)]  # beyond, fp32 pixels no longer differ
Numbers = Annotated[tuple[Number, ...], Bound(nonempty=True)]
_FRACTION = Bound(ge=0, le=1, must="is not a fraction between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A step.

    Attributes:
        inputs: Names of the tensors that it takes; left out, what the step before gives.
        outputs: Names of the tensors that it gives; left out, the step's own.
    """

    inputs: tuple[Text, ...] = ()
    outputs: tuple[Text, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DecodeImage(_Step):
    """An encoded image → its pixels, by Pillow.

    Attributes:
        step: ``decode_image``: an encoded image → uint8 pixels, rows, columns, channels, by Pillow.
        mode: ``rgb`` or ``grey``: three channels or one.
        formats: What is decoded; an image of another format is refused.
        height: Rows that every image is resized to (bilinear, with antialiasing); left out, as they come.
        width: Columns, likewise.
        most_pixels: An image of more is refused before it is decoded.
        instance_count: Instances of the step's model.
    """

    step: Literal["decode_image"] = "decode_image"
    mode: Literal["rgb", "grey"] = "rgb"
    formats: Annotated[tuple[Literal["jpeg", "png", "webp", "bmp"], ...], Bound(nonempty=True)] = ("jpeg", "png")
    height: Count | None = None
    width: Count | None = None
    most_pixels: Count = 50_000_000
    instance_count: Count = 1

    def __post_init__(self) -> None:
        """Refuse one side without the other."""
        _both(self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class Tokenize(_Step):
    """A text → its tokens, by the library tokenizers.

    Attributes:
        step: ``tokenize``: a text → ``input_ids``, ``attention_mask`` and ``token_type_ids``, by the library
            tokenizers.
        file: The tokenizer.json; relative to the recipe.
        length: Tokens that every text is cut or padded to; left out, the longest text of a request.
        most_tokens: Tokens that a text is cut to where ``length`` is left out.
        most_bytes: A text of more bytes is refused.
        dtype: ``int64`` or ``int32``.
        instance_count: Instances of the step's model.
    """

    step: Literal["tokenize"] = "tokenize"
    file: Text
    length: Count | None = None
    most_tokens: Count = 512
    most_bytes: Count = 65_536
    dtype: Literal["int64", "int32"] = "int64"
    instance_count: Count = 1


@dataclass(frozen=True, kw_only=True)
class Call(_Step):
    """A function of the user's.

    Attributes:
        step: ``call``: a function of yours, ``function(*arrays, **arguments)``, which gets and returns arrays whose
            first dimension counts samples.
        function: ``module:function``; the module goes into the model's folder.
        arguments: Keyword arguments of the function.
        gives: Tensors that it returns, in this order, batch left out.
        instance_count: Instances of the step's model.
    """

    step: Literal["call"] = "call"
    function: Function
    arguments: dict[str, Any] = field(default_factory=dict)
    gives: Annotated[tuple[TensorSpec, ...], Bound(nonempty=True)]
    instance_count: Count = 1


@dataclass(frozen=True, kw_only=True)
class Resize(_Step):
    """An image of another size.

    Attributes:
        step: ``resize``: an image → fp32 of another size, half-pixel centres, no antialiasing.
        height: Rows.
        width: Columns.
        shorter_side: Instead of both: the shorter side, the proportions kept.
        filter: ``linear``, ``nearest`` or ``cubic``.
        layout: ``hwc`` or ``chw``: where the image's channels are.
    """

    step: Literal["resize"] = "resize"
    height: Count | None = None
    width: Count | None = None
    shorter_side: Count | None = None
    filter: Literal["linear", "nearest", "cubic"] = "linear"
    layout: Layout = "hwc"

    def __post_init__(self) -> None:
        """Refuse no size, and two of them."""
        _both(self.height, self.width)
        if (self.shorter_side is None) == (self.height is None):
            raise RecipeError("needs a size", where="height", hint="give height and width, or shorter_side")


@dataclass(frozen=True, kw_only=True)
class Crop(_Step):
    """The middle of an image.

    Attributes:
        step: ``crop``: the middle of an image; one that is smaller gets a border of zeros.
        height: Rows.
        width: Columns.
        layout: ``hwc`` or ``chw``: where the image's channels are.
    """

    step: Literal["crop"] = "crop"
    height: Count
    width: Count
    layout: Layout = "hwc"


@dataclass(frozen=True, kw_only=True)
class Normalise(_Step):
    """Numbers brought to a range.

    Attributes:
        step: ``normalise``: ``(x * scale - mean) / std`` in fp32.
        scale: Factor, as 0.00392156862745098 (1/255) for 8-bit pixels.
        mean: Subtracted then: one number, or one a channel.
        std: Divides then: one number, or one a channel.
        layout: ``hwc`` or ``chw``: where channels are; of what is no image, they are the last or the first dimension.
    """

    step: Literal["normalise"] = "normalise"
    scale: Number = 1.0
    mean: Numbers = (0.0,)
    std: Numbers = (1.0,)
    layout: Layout = "hwc"

    def __post_init__(self) -> None:
        """Refuse a division by zero."""
        if not all(self.std):
            raise RecipeError("0 cannot divide", where="std")


@dataclass(frozen=True, kw_only=True)
class Turn(_Step):
    """Channels elsewhere.

    Attributes:
        step: ``layout``: an image with its channels last → with its channels first, or back.
        to: ``chw`` or ``hwc``.
    """

    step: Literal["layout"] = "layout"
    to: Layout = "chw"


@dataclass(frozen=True, kw_only=True)
class Cast(_Step):
    """Another type.

    Attributes:
        step: ``cast``: the same numbers in another type.
        dtype: A data type of numbers.
    """

    step: Literal["cast"] = "cast"
    dtype: DType

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        if self.dtype in (DType.STRING, DType.BF16):
            raise RecipeError(f"'{self.dtype.value}' is no type to cast to", where="dtype")


@dataclass(frozen=True, kw_only=True)
class Softmax(_Step):
    """Probabilities.

    Attributes:
        step: ``softmax``: one number a class → ``probabilities``.
    """

    step: Literal["softmax"] = "softmax"


@dataclass(frozen=True, kw_only=True)
class TopK(_Step):
    """The best classes.

    Attributes:
        step: ``top_k``: one number a class → the best ``classes``, their ``scores`` and their ``labels``, best first.
        k: How many.
        with_labels: Whether the names of the classes are given, too.
        labels: Names of the classes; left out, those of the data.
    """

    step: Literal["top_k"] = "top_k"
    k: Count = 1
    with_labels: bool = True
    labels: tuple[Text, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Boxes(_Step):
    """Boxes of a detector.

    Attributes:
        step: ``boxes``: boxes and one score a class → the best ``boxes`` (x1, y1, x2, y2), their ``scores`` and
            ``classes``, and their ``count``; rows behind the count are zeros. Takes one tensor ``[4 + classes, n]``, or
            boxes ``[n, 4]`` and scores ``[n, classes]``.
        form: ``cxcywh``, centre and size, or ``xyxy``, two corners.
        most: Boxes that are given.
        most_per_class: Boxes of one class among them.
        least_score: A score has to be above it.
        most_overlap: Of two boxes of a class that overlap by more (intersection over union), the better one stays.
    """

    step: Literal["boxes"] = "boxes"
    form: Literal["cxcywh", "xyxy"] = "cxcywh"
    most: Count = 100
    most_per_class: Count = 100
    least_score: Annotated[float, _FRACTION] = 0.25
    most_overlap: Annotated[float, _FRACTION] = 0.45


@dataclass(frozen=True, kw_only=True)
class MeanPool(_Step):
    """The mean of a text's tokens.

    Attributes:
        step: ``mean_pool``: vectors of tokens and their ``attention_mask`` → the mean of those that count.
    """

    step: Literal["mean_pool"] = "mean_pool"


@dataclass(frozen=True, kw_only=True)
class UnitLength(_Step):
    """A direction.

    Attributes:
        step: ``unit_length``: a vector → the same of length 1.
    """

    step: Literal["unit_length"] = "unit_length"


_Before = DecodeImage | Tokenize | Call | Resize | Crop | Normalise | Turn | Cast
Step = _Before | Softmax | TopK | Boxes | MeanPool | UnitLength


def _both(height: Natural | None, width: Natural | None) -> None:
    if (height is None) != (width is None):
        missing = "height" if height is None else "width"
        raise RecipeError(f"the {missing} is missing", where=missing, hint="give both, or neither")
