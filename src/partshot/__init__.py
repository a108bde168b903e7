"""partshot: few-shot part segmentation, from a folder of images and 1-10 labels to a fast segmentation network.

The public names are imported on first use, so that `import partshot` is fast and does not load torch.
"""

from importlib import import_module

from partshot.telemetry import switch_off_telemetry

# Before any library is loaded: each reads its environment variable once.
switch_off_telemetry()

__version__ = "0.1.0"

# Public name -> module. At most 25 names; all others are imported from their own modules.
_MODULES = {
    "PartSet": "partshot.parts",
    "Pyramid": "partshot.pyramid",
    "Artifact": "partshot.artifact",
    "PartshotError": "partshot.errors",
    "Shots": "partshot.data.shots",
    "load_shots": "partshot.data.shots",
    "read_image": "partshot.data.images",
    "read_labels": "partshot.data.labels",
    "write_labels": "partshot.data.labels",
    "open_representation": "partshot.represent.choose",
    "Segmenter": "partshot.segmenter",
    "Student": "partshot.student",
    "run": "partshot.tasks.run",
    "fit": "partshot.tasks.fit",
    "pretrain": "partshot.tasks.pretrain",
    "distill": "partshot.tasks.distill",
    "predict": "partshot.tasks.predict",
    "write_toy": "partshot.toy.dataset",
}
__all__ = ["__version__", *_MODULES]  # noqa: PLE0604


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'partshot' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


def __dir__():
    return sorted(__all__)
