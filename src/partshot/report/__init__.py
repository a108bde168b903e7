"""The report: one self-contained HTML file with scores, predictions, errors and training curves.

`write_report` takes a list of sections, dataclasses that render themselves as HTML: `numbers` (headline, comparison of
methods, IoU per part, confusion matrix), `gallery` (images), `curves` (training), `notes` (recipes, timing, left/right
pairs, skipped files). `words` summarizes scores in sentences, `sheet` writes a PNG overview. Empty sections are left
out.
"""

from partshot.report.curves import Curves
from partshot.report.gallery import Example, Gallery, shots_gallery, uncertain_gallery, worst_gallery
from partshot.report.notes import Mirror, Recipes, Skipped, Timing
from partshot.report.numbers import Confusion, Figure, Headline, Methods, PartBars
from partshot.report.page import Section, write_report
from partshot.report.sheet import write_sheet
from partshot.report.words import check_in_words, estimate_in_words, scores_in_words, table_in_words

__all__ = [
    "Confusion",
    "Curves",
    "Figure",
    "Gallery",
    "Headline",
    "Methods",
    "Mirror",
    "PartBars",
    "Example",
    "Recipes",
    "Section",
    "Skipped",
    "Timing",
    "check_in_words",
    "estimate_in_words",
    "scores_in_words",
    "shots_gallery",
    "table_in_words",
    "uncertain_gallery",
    "worst_gallery",
    "write_report",
    "write_sheet",
]
