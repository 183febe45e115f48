"""``[quantize.repair]``: what is done to a network so that int8 loses less, without training it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from repo_builder.core.bounds import Bound
from repo_builder.core.errors import RecipeError

Alpha = Annotated[float, Bound(ge=0, le=1, must="is not in 0 to 1")]


@dataclass(frozen=True, kw_only=True)
class RepairSpec:
    """``[quantize.repair]``: repairs of what int8 loses, in the order of these keys; each is measured.

    Attributes:
        equalize: Whether channels between two layers are brought to one size: what one layer makes smaller, the next
            takes larger (cross-layer equalisation). Exact in fp32 but for rounding.
        relu6: What becomes of a Clip between two such layers: ``keep`` leaves all three as they are, ``relu`` makes a
            Relu of it, which changes the network where values would be cut.
        smooth: Share of the sizes of a norm's outputs that moves into the weights of the linear layers that read them
            (SmoothQuant's alpha, 0.5 as a start). Exact in fp32 but for rounding; left out, nothing moves.
        rounding: How weights become codes: to the ``nearest``, or ``adaptive``, up or down as the layer's outputs ask.
        correct_bias: Whether the mean that a layer's outputs shift by, a channel, is taken back in its bias.
        keep: Which repairs stay: ``what helps`` on calibration samples that they have not seen, or ``all``.
    """

    equalize: bool = False
    relu6: Literal["keep", "relu"] = "keep"
    smooth: Alpha | None = None
    rounding: Literal["nearest", "adaptive"] = "nearest"
    correct_bias: bool = False
    keep: Literal["what helps", "all"] = "what helps"

    def __post_init__(self) -> None:
        """Refuse keys that say how a repair is done that is not asked for."""
        if self.relu6 != "keep" and not self.equalize:
            raise RecipeError("says how to equalize, and equalize is off", where="relu6", hint="set equalize = true")
        if self.keep == "all" and not self.asked:
            hint = "ask for a repair, as correct_bias = true"
            raise RecipeError("keeps all of no repairs", where="keep", hint=hint)

    @property
    def asked(self) -> bool:
        """Whether any repair is asked for."""
        return self.equalize or self.smooth is not None or self.rounding == "adaptive" or self.correct_bias
