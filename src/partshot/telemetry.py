"""Nothing is sent: the libraries' own reports to their makers are switched off before any of them is loaded.

onnxruntime 1.31 looks up its maker's host some seconds after it is imported, from native code, and its own call to stop
that (`disable_telemetry_events`) comes too late. The variables below are read when a library is loaded, so
`partshot/__init__.py` sets them before anything else is imported; processes that this one starts inherit them.
Knows the names of the switches; imports none of the libraries.
"""

import os

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub and its native hf_xet, which timm loads
    "DO_NOT_TRACK": "1",  # the convention that others follow, see donottrack.sh
}
"""Environment variable -> the value that switches reports off."""


def switch_off_telemetry() -> None:
    """Sets the switches in this process's environment, also over a value that would let a library send."""
    os.environ.update(SWITCHES)
