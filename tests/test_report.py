"""The report as its reader gets it: parsed back from the file, with images decoded from it."""

import base64
import html.parser
import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from partshot.data.shots import Shots
from partshot.metrics import score, summarize
from partshot.parts import PartSet
from partshot.recipe import Recipe
from partshot.report import (
    Confusion,
    Curves,
    Example,
    Figure,
    Gallery,
    Headline,
    Methods,
    Mirror,
    PartBars,
    Recipes,
    Skipped,
    Timing,
    check_in_words,
    estimate_in_words,
    scores_in_words,
    shots_gallery,
    table_in_words,
    uncertain_gallery,
    worst_gallery,
    write_report,
)
from partshot.report.notes import duration
from partshot.report.page import LIMIT

NASTY = '<script>alert("x")</script>&\''
PARTS = PartSet(("background", "left wing", "right wing", NASTY), mirror=((1, 2),))
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 255, (24, 36, 3)).astype(np.uint8)
TRUTH = np.zeros((24, 36), np.uint8)
TRUTH[4:12, 4:20], TRUTH[12:20, 4:20], TRUTH[0] = 1, 2, 255
GUESS = np.where(TRUTH == 255, 0, TRUTH).astype(np.uint8)
GUESS[4:12, 4:8] = 3


class Demo(Recipe):
    kimg: float = 1.5
    name: str = NASTY


class Nesting(html.parser.HTMLParser):
    """Every tag that opens closes in order, as a browser would otherwise guess."""

    EMPTY = {"meta", "input", "img", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "srcset", "action")]
        assert not any(key.startswith("on") for key, _ in attrs)
        if tag not in self.EMPTY and tag not in ("line", "polyline", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(text: str) -> Nesting:
    page = Nesting()
    page.feed(text)
    assert page.open == []
    return page


def written(tmp_path: Path, *sections, title: str = "Birds") -> str:
    return write_report(tmp_path / "report.html", title, PARTS, sections).read_text(encoding="utf-8")


def pngs(text: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(blob))) for blob in found]


def cell(*predictions):
    return summarize([score([TRUTH], [guess], PARTS) for guess in predictions])


def everything():
    images = [Example(NASTY, IMAGE, TRUTH, GUESS, TRUTH, score=0.5, note=NASTY)]
    nothing = np.zeros_like(GUESS)
    table = {"student": {1: cell(GUESS, nothing), 10: cell(GUESS)}, NASTY: {1: cell(nothing), 10: cell(nothing)}}
    shots = Shots((IMAGE,), (TRUTH,), (NASTY,), PARTS)
    lines = [{"step": i, "images": 8 * i, NASTY: 1 / (i + 1), "lr": None if i < 5 else 0.1} for i in range(400)]
    return [
        Headline(NASTY, [Figure(NASTY, NASTY, NASTY)]),
        Methods(table, note=NASTY),
        PartBars({NASTY: table["student"][10].per_part}, dict.fromkeys(PARTS.names, 0.25)),
        Gallery(NASTY, images, note=NASTY, prediction=NASTY),
        worst_gallery(images),
        uncertain_gallery([Example("u", IMAGE, prediction=GUESS, uncertainty=np.full((24, 36), 0.5))]),
        Confusion(score([TRUTH], [GUESS], PARTS).confusion, note=NASTY),
        Curves({NASTY: lines}),
        shots_gallery(shots),
        Mirror(True),
        Recipes({NASTY: Demo()}),
        Timing([(NASTY, 3.0), ("fit", 130.0)]),
        Skipped([(Path(f"/x/{i}.jpg"), NASTY) for i in range(130)]),
    ]


def test_everything_at_once_is_sound_self_contained_and_escaped(tmp_path):
    text = written(tmp_path, *everything(), title=NASTY)
    page = parse(text)
    assert "script" not in page.seen and "link" not in page.seen
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert "http:" not in text and "https:" not in text and "url(//" not in text
    assert "default-src 'none'" in text  # and a browser would refuse whatever slipped through
    assert NASTY in "".join(page.text)  # shown as text, which the parser has unescaped
    assert page.seen.count("section") == 13
    assert 'name="viewport"' in text and "prefers-color-scheme:dark" in text
    assert "130 images could not be read" in text and "and 30 more" in text


def test_sections_with_nothing_to_show_are_left_out(tmp_path):
    empty = [
        Methods({}),
        PartBars({}),
        Gallery("none", []),
        worst_gallery([Example("unscored", IMAGE)]),
        uncertain_gallery([Example("sure", IMAGE)]),
        Confusion(np.zeros((4, 4), int)),
        Curves({"torn": []}),
        Timing([]),
        Skipped([]),
        Recipes({}),
    ]
    page = parse(written(tmp_path, Headline("Only this."), *empty))
    assert page.seen.count("section") == 1


def test_masks_come_out_as_they_went_in(tmp_path):
    truth, wrong = pngs(written(tmp_path, Gallery("g", [Example("a", IMAGE, TRUTH, prediction=GUESS)])))[::2]
    shown = np.array(truth.convert("RGBA"))
    assert (shown[TRUTH == 0, 3] == 0).all()  # the background lets the image through
    assert (shown[TRUTH == 2] == (*PARTS.colors[2], 255)).all()
    assert (shown[TRUTH == 255, :3] == 150).all()
    opaque = np.array(wrong.convert("RGBA"))[..., 3] == 255
    assert np.array_equal(opaque, (TRUTH != GUESS) & (TRUTH != 255))


def test_share_of_wrong_pixels_counts_labeled_ones_only(tmp_path):
    text = written(tmp_path, Gallery("g", [Example("a", IMAGE, TRUTH, prediction=GUESS)]))
    assert f"wrong: {8 * 4 / (23 * 36):.1%}" in text


def test_without_masks_columns_follow_what_is_known(tmp_path):
    def captions(**known):
        return re.findall(r"<figcaption>([^<]+)", written(tmp_path, Gallery("g", [Example("a", IMAGE, **known)])))

    assert captions(prediction=GUESS) == ["image", "prediction"]
    assert captions(teacher=GUESS, prediction=GUESS) == [
        "image", "teacher", "prediction", "differs from the teacher: 0.0%",
    ]  # fmt: skip
    assert captions(truth=TRUTH) == ["image", "truth"]


def test_a_image_that_is_shown_often_is_embedded_once(tmp_path):
    images = [Example(name, IMAGE, TRUTH, prediction=GUESS) for name in "abc"]
    text = written(tmp_path, Gallery("one", images), Gallery("two", images))
    assert text.count("data:image/jpeg") == 1


def test_galleries_put_the_interesting_first(tmp_path):
    def names(gallery):
        return re.findall(r"<h3>([^<]+)", written(tmp_path, gallery))

    scored = [Example(f"s{s}", IMAGE, score=s) for s in (0.9, 0.1, 0.5)]
    assert names(worst_gallery(scored, most=2)) == ["s0.1", "s0.5"]
    doubted = [Example(f"u{u}", IMAGE, uncertainty=np.full((24, 36), u)) for u in (0.2, 0.8)]
    assert names(uncertain_gallery(doubted)) == ["u0.8", "u0.2"]


def noisy(count: int) -> list[Example]:
    # Noise is the worst that JPEG and PNG can meet.
    labels = RNG.integers(0, 4, (700, 500)).astype(np.uint8)
    noise = [RNG.integers(0, 255, (700, 500, 3)).astype(np.uint8) for _ in range(count)]
    return [Example(str(i), image, labels, labels, labels) for i, image in enumerate(noise)]


def test_images_are_as_sharp_as_the_budget_allows(tmp_path):
    text = written(tmp_path, Gallery("g", noisy(4)))
    assert text.count("<article>") == 4 and max(pngs(text)[0].size) == 320
    assert len(text) <= LIMIT


def test_images_shrink_and_then_get_fewer_to_keep_the_page_small(tmp_path, monkeypatch):
    monkeypatch.setattr("partshot.report.page.LIMIT", 300_000)
    smaller = written(tmp_path, Gallery("g", noisy(4)))
    assert smaller.count("<article>") == 4 and max(pngs(smaller)[0].size) < 320
    monkeypatch.setattr("partshot.report.page.LIMIT", 100_000)
    fewer = written(tmp_path, Gallery("g", noisy(8)))
    assert 1 <= fewer.count("<article>") < 8 and len(fewer) <= 100_000


def test_best_of_each_column_is_bold(tmp_path):
    nothing, table = np.zeros_like(GUESS), {}
    table = {"a": {1: cell(nothing)}, "b": {1: cell(GUESS)}}
    text = written(tmp_path, Methods(table))
    assert f"<b>{table['b'][1].miou:.3f}</b>" in text and f"<b>{table['a'][1].miou:.3f}</b>" not in text
    assert "polyline" not in text  # one k makes no line


def test_confusion_is_normalized_by_row_and_says_the_worst_first(tmp_path):
    counts = np.array([[90, 10, 0, 0], [0, 1, 3, 0], [0, 0, 50, 0], [0, 0, 0, 0]])
    text = written(tmp_path, Confusion(counts))
    claims = re.findall(r"<li><b>([^<]+)</b> of <b>([^<]+)</b> is taken for <b>([^<]+)</b>", text)
    assert claims == [("75 %", "left wing", "right wing"), ("10 %", "background", "left wing")]
    assert "not in these masks" in text


def test_curves_pass_over_gaps_and_take_large_ranges_as_logarithms(tmp_path):
    lines = [
        {"images": i, "seconds": i, "loss": 10.0 ** (-i / 100), "late": None if i < 300 else i} for i in range(500)
    ]
    text = written(tmp_path, Curves({"run": lines, "torn": [{"images": 1, "loss": 2.0}]}))
    assert text.count("<svg") == 2  # loss and late; neither the counter nor the clock, nor a single point
    assert ">1e-4</text>" in text and ">300</text>" in text
    assert "torn" not in text
    drawn = [float(v) for pair in re.findall(r'points="([^"]+)"', text) for v in re.split("[ ,]", pair)]
    assert drawn and np.isfinite(drawn).all() and min(drawn) >= 0 and max(drawn) <= 320


def test_mirror_pairs_are_shown(tmp_path):
    assert "left wing ↔ " in written(tmp_path, Mirror())
    assert "mirrored no image" in written(tmp_path, Mirror(False))


def test_durations_read_like_speech():
    assert [duration(s) for s in (8.24, 133.0, 3870.0)] == ["8.2 s", "2 min 13 s", "1 h 04 min"]


def test_a_table_in_words_names_the_rival_and_owns_up_to_the_spread():
    nothing, perfect = np.zeros_like(GUESS), np.where(TRUTH == 255, 0, TRUTH).astype(np.uint8)
    lead = table_in_words({"student": {1: cell(perfect), 5: cell(perfect)}, "forest": {5: cell(nothing)}}, "student", 9)
    assert "From 5 labeled images the student reaches a mean IoU of 0.750 on 9 images it never saw" in lead
    assert "above the best of the other methods (forest, 0.1" in lead and "within the spread" not in lead
    assert "From one labeled image it reaches 0.750." in lead
    close = {"student": {1: cell(perfect, nothing)}, "forest": {1: cell(perfect, perfect)}}
    assert "0.289 below the best of the other methods" in table_in_words(close, "student", 9)
    even = {"student": {1: cell(perfect, nothing)}, "forest": {1: cell(nothing, GUESS)}}
    assert "within the spread over 2 seeds" in table_in_words(even, "student", 9)
    assert "still being measured" not in lead
    first = table_in_words({"head": {1: cell(perfect)}}, "head", 9, ["student", "auto_shot"])
    assert first.startswith("Unfinished; still being measured: student, auto_shot. From one labeled image the head")
    alone = {"student": {1: cell(perfect)}, "mean teacher": {1: cell(perfect)}}  # one network under two names
    assert "other methods" not in table_in_words(alone, "student", 9)


def test_other_words():
    assert "best part is b (0.500), its weakest a (0.200)" in scores_in_words(0.5, {"bg": 1.0, "a": 0.2, "b": 0.5}, 1)
    expected = SimpleNamespace(miou=0.612, error=0.04, share=0.25)
    assert "mean IoU of the delivered student: 0.61 ± 0.04" in estimate_in_words(expected, 5)
    assert "some of the 5 labeled images, for 25% of the" in estimate_in_words(expected, 5)
    assert "label a second one" in estimate_in_words(None, 1)
    assert "has seen all labeled images" in estimate_in_words(None, 5)
    measured = SimpleNamespace(miou=0.612, error=0.04, images=7, per_part={"bg": 1.0, "a": 0.2, "b": 0.5}, absent=())
    text = check_in_words(measured)
    assert "mean IoU of the delivered student: 0.61 ± 0.04, on 7 images whose masks were kept apart" in text
    assert "is a standard error" in text and "weakest a (0.200)" in text and "Neither" not in text
    measured.error, measured.images, measured.absent = float("nan"), 1, ("c",)
    text = check_in_words(measured)
    assert "student: 0.61, on one image whose mask was" in text and "One image has no standard error" in text
    assert "not in the mean: c." in text
