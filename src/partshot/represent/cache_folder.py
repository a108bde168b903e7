"""Where things are kept between runs: one folder, which the user may move or do without. Loads no library."""

import os
import sys
from pathlib import Path

VARIABLE = "PARTSHOT_CACHE"
"""The environment variable that names the cache's folder; empty, nothing is kept."""


def cache_folder() -> Path | None:
    """Where things are kept between runs: what PARTSHOT_CACHE says, else the platform's place; None keeps nothing."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(given).expanduser() if given.strip() else None
    try:
        home = Path.home()
    except RuntimeError:  # an account without a home
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "partshot" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "partshot"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "partshot"
