"""The report, parsed back from the HTML file, with its images decoded."""

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
    """Checks that tags are closed in order; browsers would guess otherwise."""

    EMPTY = {"meta", "input", "img", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "srcset", "action")]
        assert not any(key.startswith("on") for key, _ in attrs)
        if tag not in self.EMPTY and tag not in ("line", "polyline", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

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


def test_report_is_valid_self_contained_and_escaped(tmp_path):
    text = written(tmp_path, *everything(), title=NASTY)
    page = parse(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert "http:" not in text and "https:" not in text and "url(//" not in text
    assert "default-src 'none'" in text  # so browsers block any resource that is left
    assert NASTY in "".join(page.text)  # shown as text, which the parser has unescaped
    assert page.tags.count("section") == 13
    assert 'name="viewport"' in text and "prefers-color-scheme:dark" in text
    assert "130 images were skipped" in text and "and 30 more" in text


def test_empty_sections_are_left_out(tmp_path):
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
    assert page.tags.count("section") == 1


def test_embedded_masks_match_the_labels(tmp_path):
    truth, wrong = pngs(written(tmp_path, Gallery("g", [Example("a", IMAGE, TRUTH, prediction=GUESS)])))[::2]
    shown = np.array(truth.convert("RGBA"))
    assert (shown[TRUTH == 0, 3] == 0).all()  # the background is transparent
    assert (shown[TRUTH == 2] == (*PARTS.colors[2], 255)).all()
    assert (shown[TRUTH == 255, :3] == 150).all()
    opaque = np.array(wrong.convert("RGBA"))[..., 3] == 255
    assert np.array_equal(opaque, (TRUTH != GUESS) & (TRUTH != 255))


def test_share_of_wrong_pixels_counts_labeled_ones_only(tmp_path):
    text = written(tmp_path, Gallery("g", [Example("a", IMAGE, TRUTH, prediction=GUESS)]))
    assert f"wrong: {8 * 4 / (23 * 36):.1%}" in text


def test_columns_follow_the_given_labels(tmp_path):
    def captions(**known):
        return re.findall(r"<figcaption>([^<]+)", written(tmp_path, Gallery("g", [Example("a", IMAGE, **known)])))

    assert captions(prediction=GUESS) == ["image", "prediction"]
    assert captions(teacher=GUESS, prediction=GUESS) == [
        "image", "teacher", "prediction", "differs from the teacher: 0.0%",
    ]  # fmt: skip
    assert captions(truth=TRUTH) == ["image", "truth"]


def test_an_image_shown_twice_is_embedded_once(tmp_path):
    images = [Example(name, IMAGE, TRUTH, prediction=GUESS) for name in "abc"]
    text = written(tmp_path, Gallery("one", images), Gallery("two", images))
    assert text.count("data:image/jpeg") == 1


def test_galleries_sort_by_score_and_uncertainty(tmp_path):
    def names(gallery):
        return re.findall(r"<h3>([^<]+)", written(tmp_path, gallery))

    scored = [Example(f"s{s}", IMAGE, score=s) for s in (0.9, 0.1, 0.5)]
    assert names(worst_gallery(scored, most=2)) == ["s0.1", "s0.5"]
    uncertain = [Example(f"u{u}", IMAGE, uncertainty=np.full((24, 36), u)) for u in (0.2, 0.8)]
    assert names(uncertain_gallery(uncertain)) == ["u0.8", "u0.2"]


def noisy(count: int) -> list[Example]:
    # Noise is the worst case for JPEG and PNG.
    labels = RNG.integers(0, 4, (700, 500)).astype(np.uint8)
    noise = [RNG.integers(0, 255, (700, 500, 3)).astype(np.uint8) for _ in range(count)]
    return [Example(str(i), image, labels, labels, labels) for i, image in enumerate(noise)]


def test_images_have_full_resolution_within_the_size_limit(tmp_path):
    text = written(tmp_path, Gallery("g", noisy(4)))
    assert text.count("<article>") == 4 and max(pngs(text)[0].size) == 320
    assert len(text) <= LIMIT


def test_images_get_smaller_then_fewer_to_meet_the_size_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("partshot.report.page.LIMIT", 300_000)
    smaller = written(tmp_path, Gallery("g", noisy(4)))
    assert smaller.count("<article>") == 4 and max(pngs(smaller)[0].size) < 320
    monkeypatch.setattr("partshot.report.page.LIMIT", 100_000)
    fewer = written(tmp_path, Gallery("g", noisy(8)))
    assert 1 <= fewer.count("<article>") < 8 and len(fewer) <= 100_000


def test_best_of_each_column_is_bold(tmp_path):
    nothing = np.zeros_like(GUESS)
    table = {"a": {1: cell(nothing)}, "b": {1: cell(GUESS)}}
    text = written(tmp_path, Methods(table))
    assert f"<b>{table['b'][1].miou:.3f}</b>" in text and f"<b>{table['a'][1].miou:.3f}</b>" not in text
    assert "polyline" not in text  # no line for a single k


def test_confusion_is_normalized_by_row_and_lists_the_largest_errors_first(tmp_path):
    counts = np.array([[90, 10, 0, 0], [0, 1, 3, 0], [0, 0, 50, 0], [0, 0, 0, 0]])
    text = written(tmp_path, Confusion(counts))
    listed = re.findall(r"<li><b>([^<]+)</b> of <b>([^<]+)</b> is predicted as <b>([^<]+)</b>", text)
    assert listed == [("75 %", "left wing", "right wing"), ("10 %", "background", "left wing")]
    assert "not in these masks" in text


def test_curves_skip_gaps_and_use_log_axes_for_large_ranges(tmp_path):
    lines = [
        {"images": i, "seconds": i, "loss": 10.0 ** (-i / 100), "late": None if i < 300 else i} for i in range(500)
    ]
    text = written(tmp_path, Curves({"run": lines, "torn": [{"images": 1, "loss": 2.0}]}))
    assert text.count("<svg") == 2  # loss and late; not the counter, the clock or a single point
    assert ">1e-4</text>" in text and ">300</text>" in text
    assert "torn" not in text
    coordinates = [float(v) for pair in re.findall(r'points="([^"]+)"', text) for v in re.split("[ ,]", pair)]
    assert coordinates and np.isfinite(coordinates).all() and min(coordinates) >= 0 and max(coordinates) <= 320


def test_left_right_pairs_are_shown(tmp_path):
    assert "left wing ↔ " in written(tmp_path, Mirror())
    assert "no horizontal flips" in written(tmp_path, Mirror(False))


def test_durations_are_formatted():
    assert [duration(s) for s in (8.24, 133.0, 3870.0)] == ["8.2 s", "2 min 13 s", "1 h 04 min"]


def test_table_in_words_compares_with_the_best_other_method():
    nothing, perfect = np.zeros_like(GUESS), np.where(TRUTH == 255, 0, TRUTH).astype(np.uint8)
    lead = table_in_words({"student": {1: cell(perfect), 5: cell(perfect)}, "forest": {5: cell(nothing)}}, "student", 9)
    assert "With 5 labeled images, student has a mean IoU of 0.750 on 9 held-out images" in lead
    assert "above the best other method (forest, 0.1" in lead and "standard deviation" not in lead
    assert "With one labeled image, its mean IoU is 0.750." in lead
    close = {"student": {1: cell(perfect, nothing)}, "forest": {1: cell(perfect, perfect)}}
    assert "0.289 below the best other method" in table_in_words(close, "student", 9)
    even = {"student": {1: cell(perfect, nothing)}, "forest": {1: cell(nothing, GUESS)}}
    assert "below the standard deviation over 2 seeds" in table_in_words(even, "student", 9)
    assert "Not measured yet" not in lead
    first = table_in_words({"head": {1: cell(perfect)}}, "head", 9, ["student", "auto_shot"])
    assert first.startswith("Not measured yet: student, auto_shot. With one labeled image, head has")
    alone = {"student": {1: cell(perfect)}, "mean teacher": {1: cell(perfect)}}  # one network under two names
    assert "other method" not in table_in_words(alone, "student", 9)


def test_scores_estimates_and_checks_in_words():
    assert "best part is b (0.500), the worst is a (0.200)" in scores_in_words(0.5, {"bg": 1.0, "a": 0.2, "b": 0.5}, 1)
    expected = SimpleNamespace(miou=0.612, error=0.04, share=0.25, corrected=True)
    assert "Expected mean IoU of the final student: 0.61 ± 0.04" in estimate_in_words(expected, 5)
    assert "some of the 5 labeled images, for 25% of the schedule" in estimate_in_words(expected, 5)
    expected.corrected = False
    assert "Mean IoU in cross-validation: 0.61 ± 0.04" in estimate_in_words(expected, 5)
    assert "label a second image" in estimate_in_words(None, 1)
    assert "trained on all labeled images" in estimate_in_words(None, 5)
    measured = SimpleNamespace(miou=0.612, error=0.04, images=7, per_part={"bg": 1.0, "a": 0.2, "b": 0.5}, absent=())
    text = check_in_words(measured)
    assert "Measured mean IoU of the final student: 0.61 ± 0.04, on 7 images with held-out masks" in text
    assert "is the standard error" in text and "worst is a (0.200)" in text and "neither" not in text
    measured.error, measured.images, measured.absent = float("nan"), 1, ("c",)
    text = check_in_words(measured)
    assert "student: 0.61, on one image with a held-out mask" in text and "One image gives no standard error" in text
    assert "not in the mean: c." in text
