"""Background sections of a report: recipes, time per stage, left/right pairs of parts, and skipped files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from partshot.recipe import Recipe
from partshot.report.page import Page

_MAX_FILES = 100  # skipped files that are listed; the others are counted


@dataclass(frozen=True)
class Recipes:
    """The settings needed to reproduce the result. recipes: name of the step -> its recipe."""

    recipes: Mapping[str, Recipe]
    heading: str = "Settings"

    def html(self, page: Page) -> str:
        return "".join(
            f"<details><summary>{escape(name)} <code>{recipe.fingerprint}</code></summary>"
            f"<pre>{escape(recipe.to_toml())}</pre></details>"
            for name, recipe in self.recipes.items()
        )


@dataclass(frozen=True)
class Timing:
    """Time per stage. stages: (name, seconds), in order."""

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
            f"<tr><th>total</th><td>{duration(total)}</td><td></td></tr></table>"
        )


@dataclass(frozen=True)
class Mirror:
    """Parts that swap labels under a horizontal flip. used: whether training used flips; None = unknown."""

    used: bool | None = None
    heading: str = "Left/right pairs"

    def html(self, page: Page) -> str:
        names, usage = page.parts.names, {None: "", True: _USED, False: _UNUSED}[self.used]
        pairs = "".join(
            f"<span>{page.swatch(a)}{escape(names[a])} ↔ {page.swatch(b)}{escape(names[b])}</span>"
            for a, b in page.parts.mirror
        )
        if not pairs:
            return f"<p>No parts form a left/right pair. {usage}</p>"
        text = 'These parts swap labels when an image is flipped horizontally. If a pair is wrong, edit "mirror" in'
        return f'<p>{text} <code>classes.json</code>. {usage}</p><div class="legend">{pairs}</div>'


@dataclass(frozen=True)
class Skipped:
    """Files that could not be read: (path, one-line reason)."""

    files: Sequence[tuple[Path, str]]
    heading: str = "Skipped images"

    def html(self, page: Page) -> str:
        if not self.files:
            return ""
        rows = "".join(
            f"<tr><th>{escape(Path(path).name)}</th><td>{escape(reason.removeprefix(f'{path}: '))}</td></tr>"
            for path, reason in self.files[:_MAX_FILES]
        )
        more = len(self.files) - _MAX_FILES
        rest = f"<p>and {more} more.</p>" if more > 0 else ""
        count = "1 image was" if len(self.files) == 1 else f"{len(self.files)} images were"
        return f'<p>{count} skipped because the file could not be read.</p><table class="files">{rows}</table>{rest}'


def duration(seconds: float) -> str:
    """Formats seconds as "8.2 s", "2 min 13 s" or "1 h 04 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


_USED = "Training used random horizontal flips."
_UNUSED = "Training used no horizontal flips, because the objects in this folder always face the same way."
