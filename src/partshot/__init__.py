"""partshot: from a folder of images and 1-10 labeled ones to a fast network that segments the parts.

The public names, each imported only when it is first asked for, so that `import partshot` needs neither torch nor time.
"""

from importlib import import_module

from partshot.telemetry import switch_off_telemetry

# Before any library is loaded: each reads its switch once.
switch_off_telemetry()

__version__ = "0.1.0"

# name -> module it lives in. At most 25: what is not here is imported from its own file.
_WHERE = {
    "PartSet": "partshot.parts",
    "Pyramid": "partshot.pyramid",
    "Artifact": "partshot.artifact",
    "PartshotError": "partshot.errors",
    "Shots": "partshot.data.shots",
    "load_shots": "partshot.data.shots",
    "read_image": "partshot.data.images",
    "read_labels": "partshot.data.labels",
    "write_labels": "partshot.data.labels",
    "Segmenter": "partshot.segmenter",
    "Student": "partshot.student",
    "run": "partshot.tasks.run",
    "fit": "partshot.tasks.fit",
    "pretrain": "partshot.tasks.pretrain",
    "distill": "partshot.tasks.distill",
    "predict": "partshot.tasks.predict",
    "write_toy": "partshot.toy.dataset",
}
__all__ = ["__version__", *_WHERE]  # noqa: PLE0604


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'partshot' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)


def __dir__():
    return sorted(__all__)
