"""``report.html``: one file that is whole, harmless, and says what ``report.md`` says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import EVIL, make_result, verdict, write_run

from distillcli.report.blocks import Bullets, Code, Gallery, Interval, Picture, Sentence, Table, section
from distillcli.report.curves import draw_curves
from distillcli.report.documents import write_report
from distillcli.report.format import clean
from distillcli.report.markdown import escaped
from distillcli.report.page import MOST_IMAGE_BYTES, page
from distillcli.report.sections import report_sections
from distillcli.runs.disagreements import Disagreement, read_disagreements, write_disagreements
from distillcli.runs.predictions import Predictions, write_predictions
from distillcli.runs.result import from_json

VOID = {"meta", "img", "br", "hr", "link", "input", "wbr"}
CLASSES = [*EVIL, "</style><b>", "数字"]


class Page(HTMLParser):
    """Raises AssertionError where elements are not closed in order. ``words``: the text outside pictures."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.titles: list[str] = []
        self.words = ""
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, "only there a slash closes an element"
        self._attributes(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"svg", "style", "title"} & set(self.open):
            self.words += data
        if "h2" in self.open:
            self.titles.append(data)

    def _attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                self.links.append(value or "")
            if name == "aria-label":
                self.labels.append(value or "")


def flat(words: str) -> str:
    return " ".join(words.split())


def full_run(folder: Path, names: list[str] = CLASSES) -> Path:
    """A run with everything a report can show, its classes called ``names``."""
    result = {**make_result(), "verdict": verdict("helps", 2.5, 0.4, 4.6, 250), "warnings": ["look", names[0]]}
    generator = np.random.default_rng(0)
    for role, top1 in (("student", 60.0), ("teacher", 90.0), ("baseline", 70.0)):
        result[role]["per_class"] = {name: {"top1": top1 - 3 * k, "count": 20 + k} for k, name in enumerate(names)}
        result[role]["calibrated"] = {"temperature": 1.5, "nll": 0.123, "ece": 0.012, "brier": 0.1}
        run = folder if role == "student" else folder.parent / role
        result[role]["run"] = str(run)
        run.mkdir(parents=True, exist_ok=True)
        labels, sure = generator.integers(0, len(names), 300), generator.uniform(0.3, 1, 300).astype(np.float32)
        write_predictions(run, Predictions(labels, generator.permutation(labels), sure, sure))
    one = {"difference": -10.0, "gained": 1, "lost": 3, "images": 20, "p_value": 0.01, "adjusted": 0.04}
    result["verdict"]["by_class"] = {name: {**one, "difference": 5.0 * k - 10} for k, name in enumerate(names)}
    write_run(folder, result)
    (folder / "environment.json").write_text('{"device": "cpu AVX2", "threads": 2}', "utf-8")
    (folder / "disagreements").mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "disagreements" / "01.png")
    write_disagreements(folder, "control", [Disagreement("01.png", "a/<b>.png", names[0], names[1], names[2])])
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = full_run(tmp_path_factory.mktemp("runs") / "run")
    draw_curves(folder)
    write_report(folder)
    return folder


def test_a_page_is_whole_and_asks_for_nothing(written: Path) -> None:
    content = (written / "report.html").read_text("utf-8")
    found = Page(content)
    assert len(set(found.ids)) == len(found.ids)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(found.tags)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in found.links)
    anchors = {link[1:] for link in found.links if link[0] == "#"} | set(re.findall(r"url\(#([^)]+)\)", content))
    assert anchors <= set(found.ids)
    assert not re.search(r"url\((?!#)|@import|https?:", content)
    assert found.tags.count("svg") == 5, "the bar, two curves, classes, reliability"
    assert found.tags.count("img") == 1


def test_user_text_is_text(written: Path) -> None:
    found = Page((written / "report.html").read_text("utf-8"))
    for name in CLASSES:
        assert flat(clean(name)) in flat(found.words)
    assert not {"\x1b", "\x07"} & set(found.words)


def test_the_page_says_what_markdown_says(written: Path) -> None:
    """Every text of every section, in both; and the same titles in the same order."""
    html, markdown = (written / "report.html").read_text("utf-8"), (written / "report.md").read_text("utf-8")
    found, sections = Page(html), report_sections(read(written), written)
    words = flat(found.words)
    titles = [one.title for one in sections if one.title]
    assert found.titles == titles
    assert re.findall(r"^## (.+)$", markdown, re.MULTILINE) == titles
    for block in (block for one in sections for block in one.blocks):
        match block:
            case Sentence(text) | Code(text):
                texts = [text]
            case Interval(headline, text):
                texts = [headline, text]
            case Table(grid):
                texts = [cell for row in grid for cell in row]
            case Bullets(items):
                texts = list(items)
            case Gallery(captions, images):
                texts = [*captions, *(line for _, lines in images for line in lines)]
            case Picture():
                texts = []
                assert block.shows in found.labels
        for text in texts:
            assert flat(clean(text)) in words
            assert flat(escaped(text)) in flat(markdown) or text in markdown


def read(folder: Path) -> Any:
    import json

    return from_json(json.loads((folder / "result.json").read_text("utf-8")))


def test_a_run_with_nothing_gives_a_page(tmp_path: Path) -> None:
    write_report(tmp_path)
    assert "incomplete" in Page((tmp_path / "report.html").read_text("utf-8")).words


@pytest.mark.parametrize("evil", EVIL)
def test_every_block_is_escaped(evil: str, tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    blocks = (
        *(Sentence(evil), Interval(evil, evil, 1, 0, 2), Table([["", evil], [evil, evil]]), Bullets((evil,))),
        *(Code(evil, "sh"), Picture(evil, list), Gallery((evil,), ((tmp_path / "a.png", (evil,)),))),
    )
    found = Page(page(evil, [section(evil, *blocks), section(evil, *blocks, folded=True)]))
    assert not {"script", "b"} & set(found.tags)
    assert flat(found.words).count(flat(clean(evil))) == 1 + 2 * 11
    assert found.labels == [clean(evil)] * 2


@pytest.mark.parametrize(
    ("low", "difference", "high", "mood"),
    [(0.4, 2.5, 4.6, "good"), (-4.6, -2.5, -0.4, "bad"), (-1.5, 1.0, 3.6, "open"), (0.0, 0.0, 0.0, "open")],
)
def test_the_bar_shows_the_interval_to_scale(low: float, difference: float, high: float, mood: str) -> None:
    content = page("x", [section("", Interval("a", "b", difference, low, high))])
    line = r'<line class="{}" x1="([\d.]+)" x2="([\d.]+)"'
    zero, start, middle, end = (
        float(found[group])
        for name, group in (("zero", 1), ("range", 1), ("middle", 1), ("range", 2))
        if (found := re.search(line.format(name), content)) is not None
    )
    assert f'class="verdict {mood}"' in content
    assert 0 < min(zero, start) <= max(zero, end) < 100
    scale = (end - start) / (high - low) if high > low else 1
    assert middle - zero == pytest.approx(scale * difference, abs=0.05)
    assert start - zero == pytest.approx(scale * low, abs=0.05)


def test_large_images_and_foreign_paths_are_left_out(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > MOST_IMAGE_BYTES
    content = page("x", [section("", Gallery(("a",), ((tmp_path / "large.png", ("b",)),)))])
    assert "img" not in Page(content).tags
    (tmp_path / "disagreements").mkdir()
    write_disagreements(tmp_path, "control", [Disagreement("../large.png", "a", "b", "c", "d")])
    assert read_disagreements(tmp_path) is None
