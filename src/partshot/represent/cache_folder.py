"""The cache folder, which the user can move or switch off. Standard library only."""

import os
import sys
from pathlib import Path

VARIABLE = "PARTSHOT_CACHE"
"""Environment variable with the path of the cache folder; if empty, the cache is off."""


def cache_folder() -> Path | None:
    """The cache folder: PARTSHOT_CACHE, else the platform's default; None if the cache is off."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(given).expanduser() if given.strip() else None
    try:
        home = Path.home()
    except RuntimeError:  # an account without a home directory
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "partshot" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "partshot"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "partshot"
