"""The report of the demo, after each phase."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from partshot.artifact import write_json
from partshot.benchmark.kshot import Row, Table, table_to_dict, tabulate
from partshot.data.shots import Shots
from partshot.metrics import Score
from partshot.report import (
    Confusion,
    Curves,
    Example,
    Figure,
    Headline,
    Methods,
    Mirror,
    Recipes,
    Timing,
    shots_gallery,
    table_in_words,
    worst_gallery,
    write_report,
    write_sheet,
)
from partshot.segmenter import Segmenter
from partshot.student import Student
from partshot.tasks.demo_routes import GENERATOR_KIND, KS, ROWS, PhaseResult, Routes

# Images that the report shows, and those of demo.png.
_WORST, _SHEET = 8, 8


@dataclass
class DemoReport:
    """Results so far, and their report.

    shown: name -> k -> model. times: (stage, seconds).
    """

    routes: Routes
    rows: list[Row] = field(default_factory=list)
    shown: dict[str, dict[int, Segmenter | Student]] = field(default_factory=dict)
    journals: dict[str, Sequence[dict]] = field(default_factory=dict)
    times: list[tuple[str, float]] = field(default_factory=list)

    def add(self, name: str, results: Sequence[PhaseResult], stage: str, began: float) -> None:
        """Adds a phase's results, one for each of KS. name: of the model. began: start, on the monotonic clock."""
        self.times.append((stage, time.monotonic() - began))
        by_k = dict(zip(KS, results, strict=True))
        self.rows += [row for one in results for row in one.rows]
        # A head is loaded, or fitted again if its folder was deleted.
        self.shown[name] = {
            k: self.routes.head(self.routes.labeled(k)) if one.student is None else Student.load(one.student)
            for k, one in by_k.items()
        }
        self.journals |= {f"{name}, k = {k}": one.journal for k, one in by_k.items()}

    def write(self) -> Path:
        """Writes results.json, demo.png and report.html of the results so far; returns the last."""
        routes, test, most = self.routes, self.routes.test, max(KS)
        table = tabulate(sorted(self.rows, key=lambda row: ROWS.index(row.method)))
        write_json(routes.out / "results.json", table_to_dict(table))
        students = {name: by_k for name, by_k in self.shown.items() if name != "head"}
        _write_sheet(routes.out / "demo.png", test, students or self.shown)

        best = "student" if students else "head"
        scored = next(row.score for row in self.rows if (row.method, row.k) == (best, most))
        recipes = {"fit": self.shown["head"][most].recipe, "distill": routes.distill}
        if routes.kind == GENERATOR_KIND:
            recipes |= {"fit, auto-shot": routes.fit, "auto-shot": routes.auto}
        pending = [name for name in routes.rows if name not in table]
        sections = [
            Headline(table_in_words(table, best, len(test), pending), _figures(table, best)),
            Methods(table, note=self._note(table)),
            shots_gallery(routes.labeled(most)),
            worst_gallery(self._worst(best, scored), _WORST, prediction=best),
            Confusion(scored.confusion),
            Mirror(routes.distill.augment.flip),
            Curves(self.journals),
            Recipes(recipes),
            Timing(self.times),
        ]
        return write_report(
            routes.out / "report.html", f"partshot demo: toy {routes.kind}", routes.pool.parts, sections
        )

    def _worst(self, best: str, scored: Score) -> list[Example]:
        """Held-out images with the lowest scores, with the masks of the best model and, beside a student, the head."""
        scores, test, most = dict(scored.worst(_WORST)), self.routes.test, max(KS)
        few = test.subset([test.names.index(name) for name in scores])
        found = [one.labels for one in self.shown[best][most].predict(few.images)]
        heads = (
            [None] * len(few) if best == "head" else [p.labels for p in self.shown["head"][most].predict(few.images)]
        )
        images = zip(few.names, few.images, few.labels, heads, found, strict=True)
        return [Example(*image, score=scores[image[0]]) for image in images]

    def _note(self, table: Table) -> str:
        """Explains the rows."""
        routes, choice = self.routes, self.routes.choice
        note = (
            f"Mean IoU on {len(routes.test)} held-out images with exact masks; one split of labels. head is a small "
            "head on frozen features, forest a random forest on filters"
        )
        if "student" in table:
            note += f", student {choice.student} ({choice.why}), supervised the same network from the labels alone"
        if "auto_shot" not in table:
            return f"{note}."
        return (
            f"{note}. auto_shot and few_shot use the embedded generator: the labels are of generated faces, chosen and "
            "not random: the mean face first, then faces that differ. auto_shot is a student trained on "
            f"{routes.recipe.generated:,} generated and labeled faces, with consistency on the unlabeled images; "
            f"few_shot segments the first {len(routes.to_invert)} held-out faces by inversion."
        )


def _write_sheet(path: Path, test: Shots, models: Mapping[str, Mapping[int, Segmenter | Student]]) -> None:
    few = slice(0, _SHEET)
    predicted = {
        f"{name}, {k} label{'s' if k > 1 else ''}": [p.labels for p in model.predict(test.images[few])]
        for name, by_k in models.items()
        for k, model in by_k.items()
    }
    rows = {"held-out images": None, **predicted, "exact masks": test.labels[few]}
    write_sheet(path, test.images[few], rows, test.parts)


def _figures(table: Table, best: str) -> list[Figure]:
    ours, forest = table[best], table["forest"]
    return [
        Figure(f"mean IoU, {k} label{'s' if k > 1 else ''}", f"{ours[k].miou:.3f}", f"forest {forest[k].miou:.3f}")
        for k in KS
    ]
