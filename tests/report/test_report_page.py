"""The page: whole, self-contained, readable without sight, and drawn by a real browser where there is one."""

from __future__ import annotations

import dataclasses
import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from repo_builder.report import page, svg
from repo_builder.results import Level, PerfRun

VOID = {"meta", "br", "img", "link", "hr", "input"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Reader(HTMLParser):
    """Collects what a page holds, and that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.svgs: list[dict[str, str | None]] = []
        self.named: list[set[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes.append((tag, dict(attrs)))
        if tag == "svg":
            self.svgs.append(dict(attrs))
            self.named.append(set())
        if tag in ("title", "desc") and self.open and self.open[-1] == "svg":
            self.named[-1].add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open, f"never closed: {reader.open}"
    return reader


def test_the_page_holds_every_part(perf_run: PerfRun) -> None:
    found = read(page.render(perf_run))
    text = " ".join(" ".join(found.text).split())
    for part in (
        "Verdict",
        "Against the baseline",
        "Accuracy through the server",
        "Confusion matrix",
        "Accuracy ladder",
        "Latency and throughput",
        "Distribution of latencies",
        "Where the time goes",
        "The gap explained",
        "The machine meanwhile",
        "Precision of every layer",
        "Environment",
    ):
        assert part in text
    assert text.index("Verdict") < text.index("Accuracy through the server")
    assert "of which preprocess" in text
    assert "feature_layers.0" in text
    assert "request timed out <in queue> & gave up" in text


def test_the_page_needs_nothing_from_elsewhere(perf_run: PerfRun) -> None:
    html = page.render(perf_run)
    found = read(html)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(found.count)
    assert not [
        value for _, attributes in found.attributes for name, value in attributes.items() if name in ("src", "href")
    ]
    assert "url(" not in html
    assert "@import" not in html


def test_what_a_search_tried_is_one_click_away(perf_run: PerfRun, tmp_path: Path) -> None:
    html = page.render(dataclasses.replace(perf_run, searched=str(tmp_path / 'a "b" & c/search.html')))
    addresses = [value for _, found in read(html).attributes for name, value in found.items() if name == "href"]
    assert addresses == [(tmp_path / 'a "b" & c/search.html').as_uri()]


def test_charts_have_words_for_who_cannot_see_them(perf_run: PerfRun) -> None:
    found = read(page.render(perf_run))
    charts = [
        (attributes, named)
        for attributes, named in zip(found.svgs, found.named, strict=True)
        if attributes.get("role") == "img"
    ]
    keys = [attributes for attributes in found.svgs if attributes.get("role") != "img"]
    assert len(charts) == 4
    assert all(named == {"title", "desc"} for _, named in charts)
    assert all(attributes.get("aria-hidden") == "true" for attributes in keys)
    headed = [attributes["aria-labelledby"] for tag, attributes in found.attributes if tag == "section"]
    ids = {attributes["id"] for _, attributes in found.attributes if "id" in attributes}
    assert set(headed) <= ids
    assert len(headed) == len(set(headed))


def test_a_table_of_very_many_classes_is_left_out(perf_run: PerfRun) -> None:
    assert perf_run.accuracy is not None
    assert "<caption>Confusion matrix" in page.render(perf_run)
    for count, confusion in ((200, ((0,) * 200,) * 200), (5000, ())):
        many = dataclasses.replace(perf_run.accuracy, classes=tuple(map(str, range(count))), confusion=confusion)
        assert "<caption>Confusion matrix" not in page.render(dataclasses.replace(perf_run, accuracy=many))


def test_dark_and_print_are_thought_of(perf_run: PerfRun) -> None:
    html = page.render(perf_run)
    assert "@media (prefers-color-scheme: dark)" in html
    assert "@media print" in html
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", html))
    for block in re.findall(r":root \{(.*?)\}", html, re.S):
        assert used <= set(re.findall(r"(--[a-z0-9]+):", block)), "a colour without a value in one of the schemes"


def test_numbers_of_charts_are_numbers(perf_run: PerfRun) -> None:
    for _, attributes in read(page.render(perf_run)).attributes:
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
            if attributes.get(name) is not None and attributes.get("class") != "chart":
                assert np.isfinite(float(attributes[name] or "nan"))


def test_what_users_name_cannot_break_the_page(perf_run: PerfRun) -> None:
    evil = '<script>alert("x")</script>'
    assert perf_run.accuracy is not None
    accuracy = dataclasses.replace(perf_run.accuracy, classes=(evil, *perf_run.accuracy.classes[1:]))
    level = dataclasses.replace(perf_run.levels[0], level=Level(mode="trace", trace=evil))
    run = dataclasses.replace(perf_run, model=evil, accuracy=accuracy, levels=(level, *perf_run.levels), stopped=evil)
    assert "script" not in read(page.render(run)).count


def test_a_bare_run_is_a_page_too(perf_run: PerfRun) -> None:
    bare = PerfRun(
        model="m",
        model_version="1",
        backend="b",
        server=perf_run.server,
        date="2024-01-01",
        accuracy_skipped="switched off",
    )
    found = read(page.render(bare))
    assert "svg" not in found.count
    assert "Accuracy was not measured: switched off." in " ".join(found.text)


def pixels(png: bytes) -> np.ndarray:
    """Return a PNG's pixels, (height, width, channels): enough of the format for what browsers write."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    channels = {2: 3, 6: 4}[kind]
    assert depth == 8
    place, packed = 8, b""
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        if png[place + 4 : place + 8] == b"IDAT":
            packed += png[place + 8 : place + 8 + size]
        place += size + 12
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    image = np.zeros((height, width * channels), np.uint8)
    for number, row in enumerate(rows):
        image[number] = unfilter(row, image[number - 1] if number else np.zeros_like(image[0]), channels)
    return image.reshape(height, width, channels)[:, :, :3]


def unfilter(row: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    kind, data = int(row[0]), row[1:].copy()
    if kind == 2:
        return data + above
    if kind == 0:
        return data
    for place in range(len(data)):
        left = int(data[place - step]) if place >= step else 0
        up, corner = int(above[place]), int(above[place - step]) if place >= step else 0
        guess = left + up - corner
        nearest = min((left, up, corner), key=lambda item: (abs(guess - item), (left, up, corner).index(item)))
        data[place] = (int(data[place]) + {1: left, 3: (left + up) // 2, 4: nearest}[kind]) & 255
    return data


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it(perf_run: PerfRun, tmp_path: Path, scheme: str) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome is installed")
    source, shot = tmp_path / "run.html", tmp_path / "run.png"
    source.write_text(page.render(perf_run), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    dark = [f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"]
    place = [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900", f"--screenshot={shot}"]
    subprocess.run([browser, *options, *dark, *place, source.as_uri()], check=True, capture_output=True, timeout=300)
    image = pixels(shot.read_bytes()).astype(int)
    brightness = image.mean(axis=2)
    assert (np.median(brightness) > 200) == (scheme == "light")
    contrast = np.abs(brightness - np.median(brightness))
    assert 0.005 < (contrast > 60).mean() < 0.5  # there is something to read, and it is not a blot


def test_lines_stand_in_order_of_load(perf_run: PerfRun) -> None:
    """Whatever the order of measuring, as that of a search."""
    turned = dataclasses.replace(perf_run, levels=perf_run.levels[::-1], knee=None)
    found = page.render(turned)
    rows = re.findall(r'<tr[^>]*><th scope="row">([^<]*×[^<]*)', found[found.index('id="latency"') :])[:6]
    assert [item for item in rows] == [
        "concurrency 1 × batch 1",
        "concurrency 4 × batch 1",
        "concurrency 16 × batch 1",
        "concurrency 1 × batch 8",
        "concurrency 4 × batch 8",
        "150 requests/s (Poisson) × batch 1",
    ]


def test_every_cell_says_on_a_narrow_page_what_it_is(perf_run: PerfRun) -> None:
    found = page.render(perf_run)
    for table in re.findall(r"<table>.*?</table>", found, re.DOTALL):
        heads = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table.partition("<tbody>")[0])
        cells = re.findall(r'<td data-label="([^"]*)"', table)
        assert table.count("<td") == len(cells)
        assert set(cells) <= set(heads)


@pytest.mark.parametrize(
    "label", ["x", "y" * 30, "concurrency 64 × batch 8 × ids[128] × mask[128] × more[3, 224, 224]"]
)
def test_labels_of_rows_stay_inside_the_chart(label: str) -> None:
    drawn = str(svg.bar_chart("t", "d", [(label, (1.0, 2.0))], ("a", "b"), "{:g}".format))
    x = re.findall(r'<text x="([\d.]+)"', drawn.partition(f">{label}<")[0])[-1]
    width = len(label) * svg._LETTER if "textLength" not in drawn else svg.WIDTH - float(x) - svg.RIGHT
    start = float(x) - (width if 'text-anchor="end"' in drawn.partition(f">{label}<")[0] else 0)
    assert start >= 0
    assert start + width <= svg.WIDTH


def test_facts_with_units_are_said_as_people_say_them() -> None:
    facts = page.flatten({"gpus": [{"name": "H100", "memory_mib": 81559}], "boot_s": 2.5, "cores": 8})
    assert facts == {"gpus[0].name": "H100", "gpus[0].memory": "85.5 GB", "boot": "2.50 s", "cores": "8"}
