"""Few-shot segmentation of real pictures: white blood cells and museum ants, every method on the same draws.

Reads the packs under PARTSHOT_DATA (default ../shared/data); nothing of them is written. Measured on `val` at the
masks' own size, mean over classes with background, pooled over the pictures, over five draws of k = 1, 5, 10 labels.
Rows are written down as they come: run it again to go on. `--worker i/n` takes every n-th draw, for several processes.

    python bench/bench_packs.py [--packs wbc,ants] [--seeds 5] [--ks 1,5,10] [--worker 0/1]
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

from partshot.data.images import list_images, read_stack
from partshot.data.shots import load_shots
from partshot.evaluate import Row, kshot, table_to_dict, table_to_markdown, tabulate
from partshot.represent.choose import open_representation
from partshot.tasks.compare import Contest
from partshot.tasks.distill import facing
from partshot.train.distill import PRESETS
from partshot.train.fit_head import PRESETS as FIT_PRESETS

DATA = Path(os.environ.get("PARTSHOT_DATA", "../shared/data"))
RESULTS = Path(__file__).parent / "results"
# Thousands of shots per student: about 50 and 100 seconds on one core. wbc's three classes are learnt sooner.
KIMG = {"wbc": 6, "ants": 12}
UNLABELLED = 700
# The few-shot head is a matter of seconds: 600 augmented pictures.
FIT = FIT_PRESETS["fast"].changed(images=600)


def main() -> None:
    """Measures what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", default="wbc,ants")
    parser.add_argument("--ks", default="1,5,10")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default="")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--worker", default="0/1", help="i/n: only every n-th draw, from the i-th")
    parser.add_argument("--out", type=Path, default=Path("bench/work/packs"))
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    ks = [int(k) for k in args.ks.split(",")]
    mine, of = map(int, args.worker.split("/"))
    for seed in range(args.seeds):
        for pack in args.packs.split(","):
            if (seed + args.packs.split(",").index(pack)) % of == mine:
                measure(pack, ks, seed, args)
    report(args)


def measure(pack: str, ks: list[int], seed: int, args: argparse.Namespace) -> None:
    """All methods on one seed's draws of a pack."""
    split = json.loads((DATA / pack / "split.json").read_text())
    pool, test = (load_shots(DATA / pack, names=split[part]) for part in ("train", "val"))
    pictures = unlabelled(pack, split, args.size)
    recipe = facing(PRESETS["default"].changed(size=args.size, kimg=KIMG[pack]), pictures, pool.parts)
    fit = FIT.changed(augment=FIT.augment.changed(flip=recipe.augment.flip))
    contest = Contest(
        args.out / f"{pack}-{seed}",
        pictures,
        open_representation("random+position"),
        recipe,
        head="cnn-s",
        fit=fit,
        seed=seed,
    )
    methods = {k: v for k, v in contest.methods().items() if not args.methods or k in args.methods.split(",")}
    draws = {int(k): {int(s): names for s, names in by.items()} for k, by in split["fewshot"].items()}
    path = args.out / f"{pack}-{seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = read_rows(path)

    def keep(row: Row) -> None:
        with path.open("a") as file:
            file.write(json.dumps(row.to_dict()) + "\n")
        print(
            f"{pack} k={row.k} seed={row.seed} {row.method:13s} {row.score.miou:.3f} {row.fit_seconds:.0f} s",
            flush=True,
        )

    kshot(methods, pool, test, ks, [seed], draws, keep, done)


def unlabelled(pack: str, split: dict, size: int) -> np.ndarray:
    """The pack's unlabelled pictures; where it has none, its train pictures without their masks."""
    folder = DATA / pack / "unlabeled"
    if folder.is_dir():
        paths = list_images(folder)
        paths = paths[:: max(1, len(paths) // UNLABELLED)][:UNLABELLED]
    else:
        wanted = set(split["train"])
        paths = [path for path in list_images(DATA / pack / "images") if path.stem in wanted]
    return read_stack(paths, size, skip_corrupt=True).images


def read_rows(path: Path) -> list[Row]:
    """Rows written so far."""
    return [Row.from_dict(json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def report(args: argparse.Namespace) -> None:
    """Writes bench/results/packs.{json,md} from all rows there are, and prints them."""
    tables = {}
    text = ["# Few labels on real pictures", "", "mIoU on `val` at the masks' own size, background included.", ""]
    for pack in args.packs.split(","):
        rows = [row for seed in range(args.seeds) for row in read_rows(args.out / f"{pack}-{seed}.jsonl")]
        if not rows:
            continue
        rows.sort(key=lambda row: row.k)
        table = tabulate(rows)
        tables[pack] = table_to_dict(table)
        draws = sorted({row.seed for row in rows})
        text += [
            f"## {pack}",
            "",
            f"Draws {draws}, {KIMG[pack]} kimg at {args.size} px.",
            "",
            table_to_markdown(table),
            "",
        ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "packs.md").write_text("\n".join(text))
    stamp = {"torch": torch.__version__, "size": args.size, "kimg": KIMG,
             "day": time.strftime("%Y-%m-%d")}  # fmt: skip
    (RESULTS / "packs.json").write_text(json.dumps({"card": stamp, "tables": tables}, indent=1))
    print("\n".join(text))
    print(
        json.dumps(
            {p: {m: {k: round(c["miou"], 3) for k, c in by.items()} for m, by in t.items()} for p, t in tables.items()}
        )
    )


if __name__ == "__main__":
    main()
