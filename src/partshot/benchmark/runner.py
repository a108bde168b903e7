"""bench: measures a named table row by row and writes it as Markdown and JSON with a plot.

Every method is trained on the same splits of shots. Each row is saved as soon as it is measured, so a stopped run
resumes where it stopped. tables.py defines the rows of the tables.
"""

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from partshot import __version__
from partshot.artifact import replacing_file
from partshot.benchmark.datasets import TOYS, Dataset, open_dataset
from partshot.benchmark.kshot import Row, kshot, table_to_dict, table_to_markdown, tabulate
from partshot.benchmark.kshot import Table as Summaries
from partshot.benchmark.methods import BenchRecipe, Entry, MethodBuilder
from partshot.benchmark.tables import PRETEXTS, TABLES, Table
from partshot.errors import BadRecipe, nearest
from partshot.machine import available_cores
from partshot.ops.precision import best_device
from partshot.progress import print_status
from partshot.recipe import Recipe
from partshot.tasks.pretrain import resolve
from partshot.train.journal import Journal, read_journal

# For toys of 64 px, in minutes, and for real images of 128 px and more.
PRESETS = {
    "toy": BenchRecipe(),
    "pack": BenchRecipe(size=128, seeds=(0, 1, 2, 3, 4), student_kimg=9),
}
# Arguments of `bench` whose setting has a longer name in the recipe.
_SETTINGS = {"kimg": "encoder_kimg", "preset": "encoder_preset"}


def bench(
    table: str,
    data: str = "toy-face",
    out: Path = Path("partshot-bench"),
    recipe: BenchRecipe | None = None,
    *,
    work: Path | None = None,
    generator: Path | None = None,
    quiet: bool = False,
    **changes,
) -> Path:
    """Measures a table; returns out/TABLE-DATA.md. The same folder gets TABLE-DATA.json, TABLE-DATA.png and recipes/.

    table: a key of tables.TABLES. data: name of a toy, or a folder (see datasets.open_dataset). recipe: None takes the
    preset for toys or that for folders. work: folder for rows, encoders and students; None takes out/work. generator:
    folder of a trained generator of such images. changes: settings of the recipe to change: ks, seeds, size, kimg
    (encoder_kimg), preset (encoder_preset), student_kimg and the other settings of BenchRecipe; None and () change
    nothing.

    Raises, before anything is trained: BadRecipe for an unknown table or setting, a table that needs a generator, or
    splits that do not exist; BadArtifact if the generator cannot be read; and the errors of `open_dataset`.
    """
    if table not in TABLES:
        raise BadRecipe(f"unknown table '{table}'; {nearest(table, TABLES)}")
    out, work = Path(out), Path(work or Path(out) / "work")
    recipe = _changed(recipe or PRESETS["toy" if data in TOYS else "pack"], changes)
    for pretext in PRETEXTS:
        # Checks the preset of each pretext before images are generated.
        try:
            resolve(pretext, recipe.preset_of(pretext))
        except BadRecipe as error:
            raise BadRecipe(f"{error}; give another preset for one pretext as in A,moco=B") from error
    dataset = open_dataset(data, work, quiet)
    found = None if generator is None else Path(generator)
    entries = TABLES[table].rows(MethodBuilder(dataset, work, recipe, found, quiet))
    _refuse_missing(entries, recipe, dataset)
    torch.set_num_threads(available_cores())

    total = sum(len(entry.ks or recipe.ks) for entry in entries) * len(recipe.seeds)
    rows, progress, page = [], _Progress(total, quiet), out
    # The table shows its rows in its own order, not in the order in which they were measured.
    order = [entry.name for entry in entries]
    # One split after the other, so that a stopped run has complete splits to show.
    for seed in recipe.seeds:
        for entry in entries:
            rows += _measure(entry, _journal(work, entry, recipe, dataset), seed, recipe, dataset, progress)
            rows.sort(key=lambda row: order.index(row.method))
            page = _write(out, table, dataset, recipe, entries, rows, total)
    return page


def _changed(recipe: BenchRecipe, changes: Mapping) -> BenchRecipe:
    given = {_SETTINGS.get(key, key): value for key, value in changes.items()}
    for name in ("ks", "seeds"):
        given[name] = tuple(given.get(name) or ()) or None
    return recipe.changed(**{key: value for key, value in given.items() if value is not None})


def _refuse_missing(entries: Sequence[Entry], recipe: BenchRecipe, dataset: Dataset) -> None:
    """Raises BadRecipe for numbers of labels, or splits of them, that the dataset does not have."""
    for k in sorted({k for entry in entries for k in entry.ks or recipe.ks}):
        if dataset.splits is None and k > len(dataset.pool):
            raise BadRecipe(
                f"{dataset.title}: k = {k} given, but there are {len(dataset.pool)} labeled images; give smaller --ks"
            )
        if dataset.splits is not None and not set(recipe.seeds) <= set(dataset.splits.get(k, ())):
            known = {k: sorted(by) for k, by in dataset.splits.items()}
            raise BadRecipe(
                f"{dataset.title}: split.json has no k = {k} for all of --seeds {list(recipe.seeds)}; it has {known}"
            )


def _journal(work: Path, entry: Entry, recipe: BenchRecipe, dataset: Dataset) -> Journal:
    """The file with the rows of one entry. Its name changes with everything that affects the rows."""
    recipes = {role: one.fingerprint for role, one in entry.recipes.items()}
    test = dataset.test if entry.test is None else entry.test
    data = f"{test.fingerprint}/{dataset.fingerprint}"
    state = f"{__version__}/{entry.name}/{entry.source}/{recipes}/{recipe.size}/{data}"
    name = "-".join("".join(c if c.isalnum() else " " for c in entry.name.lower()).split())
    return Journal(work / "rows" / dataset.name / f"{name}-{hashlib.sha256(state.encode()).hexdigest()[:8]}.jsonl")


class _Progress:
    """Prints a line for each new row, with the remaining time."""

    def __init__(self, total: int, quiet: bool):
        self.total, self.quiet = total, quiet
        self.done, self.new, self.began = 0, 0, time.monotonic()

    def begin(self, name: str, seed: int) -> None:
        """Call before the rows of an entry on one split are measured."""
        print_status(f"{name}, split {seed} ({self.done + self.new} of {self.total} rows done)", self.quiet)

    def add(self, row: Row) -> None:
        """Call after each new row."""
        self.new += 1
        left = (time.monotonic() - self.began) / self.new * (self.total - self.done - self.new) / 60
        line = f"{row.method}, k = {row.k}, split {row.seed}: mIoU {row.score.miou:.3f}; about {left:.0f} min left"
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


def _measure(
    entry: Entry, journal: Journal, seed: int, recipe: BenchRecipe, dataset: Dataset, progress: _Progress
) -> list[Row]:
    """All rows of one entry on one split; new ones are saved as soon as they are measured."""
    journal.repair()
    machine, new = _machine(), {}

    def keep(row: Row) -> None:
        new[row.k] = replace(row, machine=machine)
        journal.write(new[row.k].to_dict())
        progress.add(row)

    test = dataset.test if entry.test is None else entry.test
    ks, done = entry.ks or recipe.ks, [Row.from_dict(line) for line in read_journal(journal.path)]
    if not {(k, seed) for k in ks} <= {(row.k, row.seed) for row in done}:
        progress.begin(entry.name, seed)
    rows = kshot({entry.name: entry.fit}, dataset.pool, test, ks, [seed], dataset.splits, keep, done)
    progress.done += len(rows) - len(new)
    return [new.get(row.k, row) for row in rows]


def _write(
    out: Path,
    name: str,
    dataset: Dataset,
    recipe: BenchRecipe,
    entries: Sequence[Entry],
    rows: Sequence[Row],
    total: int,
) -> Path:
    """Writes the page, its numbers as JSON and its plot from the rows measured so far, of `total`."""
    table, stem = tabulate(rows), f"{name}-{dataset.name}"
    counts = Counter((row.method, row.k) for row in rows)
    missing = [
        f"{entry.name} (k = {k}) {counts[entry.name, k]}"
        for entry in entries
        for k in entry.ks or recipe.ks
        if counts[entry.name, k] < len(recipe.seeds)
    ]
    unfinished = f"Unfinished: {len(rows)} of {total} rows measured. Splits so far: {', '.join(missing)}."
    links = {entry.name: _link(out / "recipes", entry.recipes) for entry in entries}
    splits = "Mean and standard deviation over splits" if len(recipe.seeds) > 1 else "One split,"
    machines = Counter(row.machine or "an unknown machine" for row in rows)
    page = [
        f"# {TABLES[name].what}",
        "",
        f"Table `{name}` ({TABLES[name].source}) on {dataset.title}; image size {recipe.size} px. {splits} "
        f"{', '.join(map(str, recipe.seeds))}; scores include the background, on {len(dataset.test)} test images. "
        f"The recipes tell how each row was trained. {_measured_on(machines)}",
        *([] if len(rows) == total else ["", unfinished]),
        "",
        _linked(table_to_markdown(table), links),
        _linked(table_to_markdown(table, "wiou"), links),
        f"![plot]({stem}.png)",
        "",
    ]
    card = {"table": name, "data": dataset.title, "machines": machines, "recipe": recipe.model_dump(mode="json")}
    _keep(out / f"{stem}.json", json.dumps({"card": card, "table": table_to_dict(table)}, indent=1))
    _keep(out / f"{stem}.md", "\n".join(page))
    _plot(out / f"{stem}.png", TABLES[name], entries, table)
    return out / f"{stem}.md"


def _machine() -> str:
    """Hardware and torch version of this machine."""
    device = best_device()
    cores = available_cores()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cores} CPU core{'s' * (cores > 1)}"
    return f"{where}, torch {torch.__version__.partition('+')[0]}"


def _measured_on(machines: Counter[str]) -> str:
    """A sentence naming the machines, with the number of rows that each measured."""
    if len(machines) == 1:
        return f"Measured on {next(iter(machines))}."
    return f"Measured on {'; '.join(f'{name} ({rows} of the rows)' for name, rows in machines.most_common())}."


def _link(folder: Path, recipes: Mapping[str, Recipe]) -> str:
    """Writes recipes as TOML files named by fingerprint; returns Markdown links to them."""
    links = []
    for role, recipe in recipes.items():
        name = f"{role}-{recipe.fingerprint}.toml"
        _keep(folder / name, recipe.to_toml())
        links.append(f"[{role}](recipes/{name})")
    return ", ".join(links) or "-"


def _linked(markdown: str, links: Mapping[str, str]) -> str:
    """The table with an additional column that links each row's recipes."""
    head, rule, *rows = markdown.splitlines()
    named = [f"{row} {links[row.removeprefix('| ').split(' | ')[0]]} |" for row in rows]
    return "\n".join([f"{head} recipes |", f"{rule}---|", *named, ""])


def _keep(path: Path, text: str) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _plot(path: Path, table: Table, entries: Sequence[Entry], summaries: Summaries) -> None:
    """Plots mean IoU with standard deviation over the table's x axis: lines, or bars if there is a single x value."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    lines = _lines(entries, summaries)
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
        # matplotlib has ten colors; the eleventh line has the first color and another marker.
        axes.errorbar(x, mean, deviation, marker="os^"[i // 10 % 3], capsize=3, label=line)
    if table.over in ("labels", "steps"):
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set(xlabel=table.over, ylabel="mean IoU", title=table.what)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _lines(entries: Sequence[Entry], summaries: Summaries) -> dict[str, list[tuple[float, float, float]]]:
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for entry in entries:
        for k, cell in summaries.get(entry.name, {}).items():
            at = float(k) if entry.at is None else entry.at
            lines.setdefault(entry.line or entry.name, []).append((at, cell.miou, cell.miou_std))
    return lines
