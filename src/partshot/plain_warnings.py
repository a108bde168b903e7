"""Shows partshot's own warnings in a short format and hides those of libraries.

Called once in each process of the command line, worker processes included.
"""

import sys
import warnings


def show_only_own_warnings() -> None:
    """Shows only partshot's warnings, as `warning: ...`; does nothing if Python was started with -W."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"partshot(\.|$)")
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
