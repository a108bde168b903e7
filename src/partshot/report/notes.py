"""The small print of a report: recipes, time per stage, mirror pairs, and files that were passed over.

Knows how such notes are laid out. Refuses to judge them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from partshot.recipe import Recipe
from partshot.report.page import Page

_MOST_FILES = 100  # skipped files that are listed one by one


@dataclass(frozen=True)
class Recipes:
    """The settings that make this result again: name of the step -> its recipe."""

    recipes: Mapping[str, Recipe]
    heading: str = "Recipe"

    def html(self, page: Page) -> str:
        return "".join(
            f"<details><summary>{escape(name)} <code>{recipe.fingerprint}</code></summary>"
            f"<pre>{escape(recipe.to_toml())}</pre></details>"
            for name, recipe in self.recipes.items()
        )


@dataclass(frozen=True)
class Timing:
    """Where the time went: (stage, seconds), in the order of the stages."""

    stages: Sequence[tuple[str, float]]
    heading: str = "Time"

    def html(self, page: Page) -> str:
        total = sum(seconds for _, seconds in self.stages)
        if not total:
            return ""
        bar = "".join(
            f'<i style="flex-grow:{seconds / total:.5f};background:var(--s{i % 8})"></i>'
            for i, (_, seconds) in enumerate(self.stages)
        )
        rows = "".join(
            f'<tr><th><i class="dot" style="background:var(--s{i % 8})"></i>{escape(stage)}</th>'
            f"<td>{duration(seconds)}</td><td>{seconds / total:.0%}</td></tr>"
            for i, (stage, seconds) in enumerate(self.stages)
        )
        return (
            f'<div class="stack">{bar}</div><table class="narrow">{rows}'
            f"<tr><th>together</th><td>{duration(total)}</td><td></td></tr></table>"
        )


@dataclass(frozen=True)
class Mirror:
    """Which parts trade places in a mirrored image. used: whether training mirrored images; None = not known."""

    used: bool | None = None
    heading: str = "Mirror pairs"

    def html(self, page: Page) -> str:
        names, said = page.parts.names, {None: "", True: _USED, False: _UNUSED}[self.used]
        pairs = "".join(
            f"<span>{page.swatch(a)}{escape(names[a])} ↔ {page.swatch(b)}{escape(names[b])}</span>"
            for a, b in page.parts.mirror
        )
        if not pairs:
            return f"<p>No part is taken to have a left and a right twin. {said}</p>"
        told = 'These parts trade places when an image is mirrored. If a pair is wrong, set "mirror" in'
        return f'<p>{told} <code>classes.json</code>. {said}</p><div class="legend">{pairs}</div>'


@dataclass(frozen=True)
class Skipped:
    """Files that could not be used: (path, one-line reason)."""

    files: Sequence[tuple[Path, str]]
    heading: str = "Skipped images"

    def html(self, page: Page) -> str:
        if not self.files:
            return ""
        rows = "".join(
            f"<tr><th>{escape(Path(path).name)}</th><td>{escape(reason.removeprefix(f'{path}: '))}</td></tr>"
            for path, reason in self.files[:_MOST_FILES]
        )
        more = len(self.files) - _MOST_FILES
        rest = f"<p>and {more} more.</p>" if more > 0 else ""
        count = "1 image" if len(self.files) == 1 else f"{len(self.files)} images"
        return f'<p>{count} could not be read and took no part.</p><table class="files">{rows}</table>{rest}'


def duration(seconds: float) -> str:
    """Seconds for people: "8.2 s", "2 min 13 s", "1 h 04 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


_USED = "Training mirrored images at random."
_UNUSED = "Training mirrored no image, since the things in this folder always face one way."
