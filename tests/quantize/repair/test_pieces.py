"""A graph in pieces gives what it gives as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from repo_builder.core.errors import QuantizeError
from repo_builder.quantize.observe import open_session, run
from repo_builder.quantize.repair.pieces import Pieces


def test_every_end_is_what_the_whole_graph_makes(mobile_net, pictures) -> None:
    model, ends = mobile_net(), [("c0",), ("c1", "r0"), ("f",), ("y",)]
    names = [name for some in ends for name in some]
    exact = run(open_session(model, names, optimize=False), names, {"x": pictures})
    pieces, held = Pieces(model, ends), [{"x": pictures[:10]}, {"x": pictures[10:]}]
    for number, some in enumerate(ends):
        held = [pieces.run(number, batch) for batch in held]
        for name in some:
            found = np.concatenate([batch[name] for batch in held])
            np.testing.assert_allclose(found, exact[name], rtol=1e-5, atol=1e-6)
        assert all(len(batch) <= 3 for batch in held)  # what nobody reads any more is let go


def test_what_is_not_given_is_told(mobile_net, pictures) -> None:
    pieces = Pieces(mobile_net(), [("c0",), ("y",)])
    with pytest.raises(QuantizeError, match=r"does not run|refuses"):
        pieces.run(1, {"x": pictures})
