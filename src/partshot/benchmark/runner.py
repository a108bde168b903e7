"""bench: a named table, measured row by row: Markdown, JSON and a plot.

The story: open what is measured on, let every row of the table learn from the same splits of shots, write each result
down as soon as it is there, and put together what there is. Running it again goes on where it stopped. Which rows a
table has is tables.py's affair.
"""

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from partshot import __version__
from partshot.artifact import inside, replacing_file
from partshot.benchmark.datasets import TOYS, Field, open_dataset
from partshot.benchmark.kshot import Row, kshot, table_to_dict, table_to_markdown, tabulate
from partshot.benchmark.kshot import Table as Measured
from partshot.benchmark.methods import BenchRecipe, Entry, MethodBuilder
from partshot.benchmark.tables import PRETEXTS, TABLES, Table
from partshot.errors import BadRecipe, nearest
from partshot.machine import available_cores
from partshot.ops.precision import best_device
from partshot.recipe import Recipe
from partshot.tasks.pretrain import resolve
from partshot.train.journal import Journal, read_journal
from partshot.train.progress import print_status

# What is drawn at 64 px in minutes, and what real images of 128 px and more need.
PRESETS = {
    "toy": BenchRecipe(),
    "pack": BenchRecipe(size=128, seeds=(0, 1, 2, 3, 4), student_kimg=9),
}


def bench(
    table: str,
    data: str = "toy-face",
    out: Path = Path("partshot-bench"),
    work: Path | None = None,
    ks: Sequence[int] = (),
    seeds: Sequence[int] = (),
    size: int | None = None,
    kimg: float | int | None = None,
    preset: str | None = None,
    student_kimg: float | int | None = None,
    generator: Path | None = None,
    quiet: bool = False,
) -> Path:
    """Measures a table; returns out/TABLE-DATA.md, beside which lie .json, .png and recipes/.

    table: a key of tables.TABLES. data: a toy's name or a folder (see field.open_dataset). work: where rows, encoders
    and students are kept, out/work when None. ks, seeds, size: replace the recipe's. kimg: thousands of images that
    each encoder sees, preset: of the contrastive pretexts, see BenchRecipe.encoder_preset; student_kimg: of shots that
    each student sees. generator: a trained one of such images. Raises BadRecipe for an unknown table, one that needs a
    generator, or labels that are not there, BadArtifact for a generator that is none, and what opening the data raises,
    all before anything is trained.
    """
    if table not in TABLES:
        raise BadRecipe(f"unknown table '{table}'; {nearest(table, TABLES)}")
    out, work = Path(out), Path(work or Path(out) / "work")
    given = {"size": size, "encoder_kimg": kimg, "encoder_preset": preset, "student_kimg": student_kimg}
    recipe = _recipe(data, given | {"ks": tuple(ks) or None, "seeds": tuple(seeds) or None})
    for pretext in PRETEXTS:
        # Refuses a preset that one of them has not, before images are drawn.
        try:
            resolve(pretext, recipe.preset_of(pretext))
        except BadRecipe as error:
            raise BadRecipe(f"{pretext}: {error}; another for one pretext is given as A,moco=B") from error
    field = open_dataset(data, work, quiet)
    found = None if generator is None else inside(Path(generator), "representation")
    every = MethodBuilder(field, work, recipe, found, quiet)
    entries = TABLES[table].rows(every)
    _refuse_missing(entries, recipe, field)
    torch.set_num_threads(available_cores())

    total = sum(len(entry.ks or recipe.ks) for entry in entries) * len(recipe.seeds)
    rows, teller, page = [], _Teller(total, quiet), out
    # A table shows its rows in its own order, not in that of the splits.
    order = [entry.name for entry in entries]
    # Whole splits first, so that a run that is cut short has complete ones to show.
    for seed in recipe.seeds:
        for entry in entries:
            rows += _measure(entry, _journal(work, entry, recipe, field), seed, recipe, field, teller)
            rows.sort(key=lambda row: order.index(row.method))
            page = _write(out, table, field, recipe, entries, rows, total)
    return page


def _recipe(data: str, given: Mapping) -> BenchRecipe:
    row = PRESETS["toy" if data in TOYS else "pack"]
    return row.changed(**{key: value for key, value in given.items() if value is not None})


def _refuse_missing(entries: Sequence[Entry], recipe: BenchRecipe, field: Field) -> None:
    """BadRecipe for numbers of labels, or splits of them, that the Field has not."""
    for k in sorted({k for entry in entries for k in entry.ks or recipe.ks}):
        if field.splits is None and k > len(field.pool):
            raise BadRecipe(f"{k} labels of {field.title}: {len(field.pool)} are there to draw from; give smaller --ks")
        if field.splits is not None and not set(recipe.seeds) <= set(field.splits.get(k, ())):
            known = {k: sorted(by) for k, by in field.splits.items()}
            raise BadRecipe(
                f"{field.title}: split.json holds no k = {k} for all of --seeds {list(recipe.seeds)}; there are {known}"
            )


def _journal(work: Path, entry: Entry, recipe: BenchRecipe, field: Field) -> Journal:
    """Rows of one entry, under a name that changes with all that decides them."""
    told = {role: of.fingerprint for role, of in entry.recipes.items()}
    test = field.test if entry.test is None else entry.test
    state = f"{__version__}/{entry.name}/{entry.source}/{told}/{recipe.size}/{test.fingerprint}/{field.fingerprint}"
    name = "-".join("".join(c if c.isalnum() else " " for c in entry.name.lower()).split())
    return Journal(work / "rows" / field.name / f"{name}-{hashlib.sha256(state.encode()).hexdigest()[:8]}.jsonl")


class _Teller:
    """A line for each new row, with the time that is left."""

    def __init__(self, total: int, quiet: bool):
        self.total, self.quiet = total, quiet
        self.done, self.new, self.began = 0, 0, time.monotonic()

    def begin(self, name: str, seed: int) -> None:
        """Rows of that name are measured now."""
        print_status(f"{name}, draw {seed} ({self.done + self.new} of {self.total} rows are there)", self.quiet)

    def tell(self, row: Row) -> None:
        """One more row was measured."""
        self.new += 1
        left = (time.monotonic() - self.began) / self.new * (self.total - self.done - self.new) / 60
        line = f"{row.method}, k = {row.k}, draw {row.seed}: mIoU {row.score.miou:.3f}; about {left:.0f} min left"
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


def _measure(
    entry: Entry, journal: Journal, seed: int, recipe: BenchRecipe, field: Field, teller: _Teller
) -> list[Row]:
    """All rows of one entry on one draw, the new ones written down as they come."""
    journal.rewind(0)

    def keep(row: Row) -> None:
        journal.write(row.to_dict())
        teller.tell(row)

    test, before = field.test if entry.test is None else entry.test, teller.new
    ks, done = entry.ks or recipe.ks, [Row.from_dict(line) for line in read_journal(journal.path)]
    if not {(k, seed) for k in ks} <= {(row.k, row.seed) for row in done}:
        teller.begin(entry.name, seed)
    rows = kshot({entry.name: entry.fit}, field.pool, test, ks, [seed], field.splits, keep, done, _machine())
    teller.done += len(rows) - (teller.new - before)
    return rows


def _write(
    out: Path, name: str, field: Field, recipe: BenchRecipe, entries: Sequence[Entry], rows: Sequence[Row], total: int
) -> Path:
    """The page, its figures and its plot, of the rows that are there of `total`."""
    table, stem = tabulate(rows), f"{name}-{field.name}"
    there = Counter((row.method, row.k) for row in rows)
    fewer = [
        f"{entry.name} (k = {k}) {there[entry.name, k]}"
        for entry in entries
        for k in entry.ks or recipe.ks
        if there[entry.name, k] < len(recipe.seeds)
    ]
    unfinished = f"Unfinished: {len(rows)} of {total} rows are there. Splits so far: {', '.join(fewer)}."
    links = {entry.name: _link(out / "recipes", entry.recipes) for entry in entries}
    told = "Mean and deviation over the splits" if len(recipe.seeds) > 1 else "One draw,"
    machines = Counter(row.machine or "a machine that is not told" for row in rows)
    page = [
        f"# {TABLES[name].what}",
        "",
        f"Table `{name}` ({TABLES[name].source}) on {field.title}, read at {recipe.size} px. {told} "
        f"{', '.join(map(str, recipe.seeds))}; {len(field.test)} images to measure on, with background. "
        f"How each row was trained stands in its recipes. {_measured_on(machines)}",
        *([] if len(rows) == total else ["", unfinished]),
        "",
        _linked(table_to_markdown(table), links),
        _linked(table_to_markdown(table, "wiou"), links),
        f"![plot]({stem}.png)",
        "",
    ]
    card = {"table": name, "data": field.title, "machines": machines, "recipe": recipe.model_dump(mode="json")}
    _keep(out / f"{stem}.json", json.dumps({"card": card, "table": table_to_dict(table)}, indent=1))
    _keep(out / f"{stem}.md", "\n".join(page))
    _plot(out / f"{stem}.png", TABLES[name], entries, table)
    return out / f"{stem}.md"


def _machine() -> str:
    """On what rows are computed here."""
    device = best_device()
    cores = available_cores()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cores} CPU core{'s' * (cores > 1)}"
    return f"{where}, torch {torch.__version__.partition('+')[0]}"


def _measured_on(machines: Counter[str]) -> str:
    """A sentence on the machines, by how many rows each has measured."""
    if len(machines) == 1:
        return f"Measured on {next(iter(machines))}."
    return f"Measured on {'; '.join(f'{name} ({rows} of the rows)' for name, rows in machines.most_common())}."


def _link(folder: Path, recipes: Mapping[str, Recipe]) -> str:
    """Writes recipes as TOML, each once under its fingerprint; returns links to them."""
    links = []
    for role, recipe in recipes.items():
        name = f"{role}-{recipe.fingerprint}.toml"
        _keep(folder / name, recipe.to_toml())
        links.append(f"[{role}](recipes/{name})")
    return ", ".join(links) or "-"


def _linked(markdown: str, links: Mapping[str, str]) -> str:
    """A table with one more column, of the rows' recipes."""
    head, rule, *rows = markdown.splitlines()
    named = [f"{row} {links[row.removeprefix('| ').split(' | ')[0]]} |" for row in rows]
    return "\n".join([f"{head} recipes |", f"{rule}---|", *named, ""])


def _keep(path: Path, text: str) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _plot(path: Path, table: Table, entries: Sequence[Entry], measured: Measured) -> None:
    """mean IoU over labels, or over what the table varies, with deviations: a line each, or bars of a single number."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    lines = _lines(entries, measured)
    ticks = sorted({point[0] for points in lines.values() for point in points})
    if len(ticks) == 1:
        _, mean, deviation = zip(*(points[0] for points in lines.values()), strict=True)
        axes.barh([*lines], mean, xerr=deviation, color="#7a9cc6", capsize=3)
        axes.invert_yaxis()
        axes.set(xlabel="mean IoU", title=f"{table.what} ({table.over}: {ticks[0]:g})")
        axes.grid(alpha=0.3, axis="x")
    else:
        _draw_lines(axes, lines, ticks, table)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw_lines(axes: Axes, lines: Mapping[str, list], ticks: Sequence[float], table: Table) -> None:
    for i, (line, points) in enumerate(lines.items()):
        x, mean, deviation = zip(*sorted(points), strict=True)
        # There are ten colors; the eleventh line has the first one's and another mark.
        axes.errorbar(x, mean, deviation, marker="os^"[i // 10 % 3], capsize=3, label=line)
    if table.over in ("labels", "steps"):
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set(xlabel=table.over, ylabel="mean IoU", title=table.what)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _lines(entries: Sequence[Entry], measured: Measured) -> dict[str, list[tuple[float, float, float]]]:
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for entry in entries:
        for k, cell in measured.get(entry.name, {}).items():
            at = float(k) if entry.at is None else entry.at
            lines.setdefault(entry.line or entry.name, []).append((at, cell.miou, cell.miou_std))
    return lines
