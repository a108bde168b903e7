"""Disables the telemetry of third-party libraries before they are loaded.

onnxruntime 1.31 looks up its vendor's host some seconds after import, from native code; its own function
`disable_telemetry_events` runs too late to prevent this. Libraries read the environment variables below when they are
loaded. `partshot/__init__.py` therefore sets them before anything else is imported, and child processes inherit them.
This file imports none of the libraries.
"""

import os

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub and its native hf_xet, which timm loads
    "DO_NOT_TRACK": "1",  # a convention of other tools, see donottrack.sh
}
"""Environment variable -> value that disables telemetry."""


def switch_off_telemetry() -> None:
    """Sets the variables in the environment of this process and overrides existing values."""
    os.environ.update(SWITCHES)
