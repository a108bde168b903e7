"""How accurate is the report's estimate? Cross-validation of a student's training against its score on test images.

For each pack, split and k: the mean IoU that `tasks.estimate` expects from the labeled images alone, and that of the
pretrained student trained on all of them, on `val`, as measured by bench_packs (run that first). Rows are saved as soon
as they are measured.

    python bench/bench_estimate.py [--packs wbc,ants] [--ks 5,10] [--splits 0,1] [--jobs 2]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from bench_packs import LIGHT, PACKS, folder_of, pretrained_recipe, rows_of
from bench_rows import DATA, RESULTS, names, numbers
from partshot.benchmark.datasets import open_dataset
from partshot.tasks.estimate import FOLDS, REMAINING, SHARE, estimate, expected
from partshot.tasks.train_student import Training, without_flips
from partshot.workers import workers

KS, SPLITS = (5, 10), (0, 1, 2, 3, 4)


def main() -> None:
    """Measures what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=names, default=PACKS)
    parser.add_argument("--ks", type=numbers, default=KS)
    parser.add_argument("--splits", type=numbers, default=SPLITS)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("bench/work/packs"))
    args = parser.parse_args()
    todo = [(pack, k, split, args.out) for split in args.splits for k in args.ks for pack in args.packs]
    with workers(args.jobs) as pool:
        for done in [pool.submit(measure, *one) for one in todo]:
            done.result()
    report(args.out)


def measure(pack: str, k: int, split: int, out: Path) -> None:
    """The estimate from the labeled images of one split."""
    saved = _path(pack, k, split, out)
    if _row(pack, k, split, out) is not None:
        return
    torch.set_num_threads(1)
    dataset = open_dataset(str(DATA / pack), out / "fields", quiet=True)
    recipe = pretrained_recipe(pack)
    images = dataset.images(recipe.size)
    shots = dataset.pool.subset([dataset.pool.names.index(name) for name in dataset.splits[k][split]])
    began = time.monotonic()
    found = estimate(shots, without_flips(recipe, images), saved.parent / "folds", images, Training(LIGHT), quiet=True)
    row = {"folds": found.folds.miou_nan, "error": found.error, "seconds": time.monotonic() - began}
    saved.write_text(json.dumps(row), encoding="utf-8")
    print(f"{pack} k={k} split={split} {row} {time.strftime('%H:%M')}", flush=True)


def _row(pack: str, k: int, split: int, out: Path) -> dict | None:
    """The estimate that this or an earlier, committed run measured with the current recipe."""
    saved = _path(pack, k, split, out)
    if saved.exists():
        return json.loads(saved.read_text())
    committed = RESULTS / "estimate.json"
    rows = json.loads(committed.read_text())["rows"] if committed.exists() else []
    wanted = (pack, k, split, saved.parent.parent.name)
    return next((row for row in rows if (row["pack"], row["k"], row["split"], row["recipe"]) == wanted), None)


def _path(pack: str, k: int, split: int, out: Path) -> Path:
    folder = out / "estimate" / f"{pack}-{pretrained_recipe(pack).fingerprint}-{FOLDS}-{SHARE}" / f"{k}-{split}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "row.json"


def report(out: Path) -> None:
    """The table of all rows whose score on `val` is known; writes bench/results/estimate.{json,md}."""
    rows = []
    for pack in PACKS:
        for k in KS:
            for split in SPLITS:
                truth = rows_of(folder_of(pack, k, split, "pretrained student", out))
                row = _row(pack, k, split, out)
                if truth and row is not None:
                    recipe = _path(pack, k, split, out).parent.parent.name
                    known = {"pack": pack, "k": k, "split": split, "recipe": recipe, "truth": truth[0].score.miou_nan}
                    rows.append({**row, **known})
    in_folds, on_val = (np.array([1 - row[key] for row in rows]) for key in ("folds", "truth"))
    for row in rows:
        row["expected"] = expected(row["folds"])
    errors = np.array([row["expected"] - row["truth"] for row in rows])
    last = {
        "rows": len(rows),
        # The share of the folds' error that remains in these rows, beside the one that reports use.
        "remaining": round(float(on_val.sum() / in_folds.sum()), 3),
        "remaining_in_reports": REMAINING,
        "mean_absolute_error": round(float(np.abs(errors).mean()), 3),
        "bias": round(float(errors.mean()), 3),
        "mean_absolute_error_by_k": {k: _mean(np.abs(errors), [row["k"] == k for row in rows]) for k in KS},
        "bias_by_pack": {pack: _mean(errors, [row["pack"] == pack for row in rows]) for pack in PACKS},
    }
    text = ["# How accurate is the estimate?", "", __doc__.strip().split("\n\n")[1].replace("\n", " "), ""]
    text += ["| pack | k | split | folds | expected | truth | seconds |", "|---|---|---|---|---|---|---|"]
    text += [
        f"| {r['pack']} | {r['k']} | {r['split']} | {r['folds']:.3f} | {r['expected']:.3f} ± {r['error']:.3f} | "
        f"{r['truth']:.3f} | {r['seconds']:.0f} |"
        for r in rows
    ]
    text += ["", json.dumps(last), ""]
    print("\n".join(text[4:-2]))
    (RESULTS / "estimate.md").write_text("\n".join(text), encoding="utf-8")
    (RESULTS / "estimate.json").write_text(json.dumps({"rows": rows, **last}, indent=1), encoding="utf-8")
    print(json.dumps(last))


def _mean(values: np.ndarray, chosen: list[bool]) -> float | None:
    return round(float(values[chosen].mean()), 3) if any(chosen) else None


if __name__ == "__main__":
    main()
