"""The pages of sense and of a search: whole, and what they draw is what was measured."""

from __future__ import annotations

import dataclasses
import re

from repo_builder.core.details import DropRecord, SpeedRecord, TriedRecord
from repo_builder.core.records import LayerRecord
from repo_builder.report import precision_page
from repo_builder.report.spots import Spot, spot_chart
from repo_builder.results.sensing import LayerSense, Sensed


def speed(ratio: float) -> tuple[SpeedRecord, ...]:
    return (SpeedRecord(batch_size=1, reference_us=100, candidate_us=100 / ratio, low=ratio * 0.98, high=ratio * 1.02),)


def sensed(name: str, ratio: float) -> LayerSense:
    saved = 100 * (1 - 1 / ratio)
    drop = DropRecord(points=0.5, low=-0.1, high=1.1, samples=256)
    return LayerSense(
        name=name, type="Conv2d", precision="int8", speed=speed(ratio), saved_us=(saved, saved - 2, saved + 2),
        sqnr_db=30, drop=drop,
    )  # fmt: skip


def assert_cells_say_what_they_are(page: str) -> None:
    """On a narrow page a row is a card of its cells, each under its column's heading."""
    tables = re.findall(r"<table>.*?</table>", page, re.DOTALL)
    assert tables
    for table in tables:
        heads = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table.partition("<tbody>")[0])
        cells = re.findall(r'<td data-label="([^"]*)"', table)
        assert table.count("<td") == len(cells) > 0
        assert set(cells) <= set(heads)


FOUND = Sensed(
    model="net", target="onnxruntime", clock="CPU time of one thread", samples=256, seconds=3, fresh=2,
    rows=(sensed("fast<1>", 1.2), sensed("slow", 0.8)), everything=sensed("all", 2.0), unmeasured=("left",),
)  # fmt: skip
TRIED = (
    TriedRecord(what="all in fp32", speed=speed(1.0), sqnr_db=200, size_bytes=400, front=True),
    TriedRecord(what="all in int8", speed=speed(2.0), sqnr_db=30, size_bytes=100, fits=False, front=True),
    TriedRecord(what="int8 but a", speed=speed(1.5), sqnr_db=40, size_bytes=200, chosen=True, front=True),
    TriedRecord(what="int8 but b", speed=speed(0.9), against="int8 but a"),
    TriedRecord(what="int8 but c", speed=speed(1.7), sqnr_db=35, fits=True, holds=False),
)


def closed(page: str) -> None:
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    for tag in ("section", "table", "tr", "td", "th", "svg", "text", "figure", "ul", "li", "dl"):
        assert len(re.findall(rf"<{tag}[\s>]", body)) == body.count(f"</{tag}>"), tag
    assert "<script" not in page
    assert not re.search(r'(src|href)="http', page)


def test_the_page_of_sense_tells_every_layer_and_what_was_left_out() -> None:
    page = precision_page.sense_page(FOUND, {"cpu": "Some CPU"})
    assert_cells_say_what_they_are(page)
    closed(page)
    for text in ("fast&lt;1&gt;", "slow", "16.7 µs", "left", "Some CPU", "2.00 times as fast as fp32"):
        assert text in page, text
    assert "fast<1>" not in page


def test_the_page_of_a_search_tells_every_trial_and_marks_the_one_that_was_taken() -> None:
    layers = (LayerRecord(name="a", type="Conv2d", asked="fp32"),)
    page = precision_page.search_page("net", TRIED, layers, ("Verdict: serve int8 here.",), {"limit": 0.3})
    assert_cells_say_what_they_are(page)
    closed(page)
    for text in (
        "Verdict: serve int8 here.",
        "beyond the limit",
        "taken",
        "no faster, not looked at",
        "chose nothing",
        "0.90 times as fast as",
    ):
        assert text in page, text
    chart = str(precision_page.search_chart(TRIED))
    assert chart.count('class="dot') == 4 + 3  # four points against fp32, three keys of the legend
    assert "<polyline" in chart
    assert precision_page.search_chart([dataclasses.replace(TRIED[0], speed=())]) is None


def test_points_stand_where_their_values_are_and_labels_do_not_meet() -> None:
    spots = [
        Spot(label=f"layer number {place}", x=place / 50, y=float(place % 7), ring=place == 0) for place in range(30)
    ]
    chart = str(spot_chart("t", "d", spots, ("x", "y"), legend=()))
    places = [float(item) for item in re.findall(r'class="dot f0" cx="([\d.]+)"', chart)]
    assert places == sorted(places, reverse=True)
    assert 0 < chart.count('class="note"') < 30
