"""The report: one HTML file that says how well it went, shows where it went wrong, and needs nothing beside itself.

`write_report` takes sections, plain values that are each defined in the file of their kind: `numbers` (headline,
methods, parts, confusion), `gallery` (images), `curves` (training), `notes` (recipes, timing, mirror pairs, skipped
files). `words` turns tables into sentences, `sheet` makes a PNG for other pages. A section with nothing to show is left
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
