"""Warnings as lines for people: partshot's own are shown, a library's are for whoever calls it.

Knows Python's filters and nothing of who warns; every process that a person started, or that such a one started, calls
it once.
"""

import sys
import warnings


def own_warnings_alone() -> None:
    """Shows partshot's warnings as `warning: ...` and no others, unless Python was told which to show (-W)."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"partshot(\.|$)")
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
