"""How many labels a supervised U-Net needs to match ours with one and with ten (ReGAN, figure 6: 150 and 500).

Ours are auto-shot students: one or ten faces that the embedded generator drew are labeled, a few-shot head labels
thousands that it generates, a student learns those and has to say the same of 600 plain faces however they are changed.
The rival is the same network, a residual U-Net, trained by the same recipe on 1 to 1,000 drawn faces with exact masks,
with strong and with weak augmentation, of which the better counts.
Measured is ReGAN's weighted IoU on 200 drawn faces of 64 px. Between two counts the curve is a line over log(labels).

    python bench/bench_labels_worth.py [--runs 3] [--jobs 2]

Rows are written down as they come in bench/work/labels_worth: run it again to go on.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch

from partshot.benchmark.auto_shot import AutoShot
from partshot.data.augment import PRESETS as AUGMENTS
from partshot.data.images import resize_images
from partshot.metrics import score
from partshot.represent.stylegan import load_stylegan
from partshot.tasks.distill import train_student
from partshot.tasks.sample import embedded_shots
from partshot.toy.dataset import draw, toy_shots
from partshot.train.distill_recipe import PRESETS
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.journal import Journal, read_journal
from partshot.workers import workers

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

RESULTS = Path(__file__).parent / "results"
COUNTS, OURS = (1, 10, 30, 100, 300, 1000), (1, 10)
# In about the same time; ours also sees plain images, as it would in a folder of which few are labeled. Nobody reads
# in a mirror.
RECIPE, OUR_RECIPE, SIZE = PRESETS["auto-shot"], PRESETS["auto-shot-consistent"].changed(flip_tta=False), 64
AUGMENTATIONS = {"strong": AUGMENTS["strong"], "weak": RECIPE.augment}
# The toy's seeds of what the U-Net learns from, of what all are measured on, and of plain images.
LEARNT, TESTED, PLAIN = 21, 22, 23
HELD_OUT, IMAGES = 200, 600


def main() -> None:
    """Measures what is missing; prints a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of our students, each of other drawn images")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("bench/work/labels_worth"))
    args = parser.parse_args()
    journal = Journal(args.out / f"{RECIPE.fingerprint}-{OUR_RECIPE.fingerprint}" / "rows.jsonl")
    journal.rewind(0)
    rows = read_journal(journal.path)
    wanted = [("unet", count, which) for count in COUNTS for which in AUGMENTATIONS]
    wanted += [("ours", count, str(run)) for run in range(args.runs) for count in OURS]
    todo = [row for row in wanted if row not in {(r["who"], r["labels"], r["which"]) for r in rows}]
    with workers(args.jobs) as pool:
        for work in [pool.submit(measure, *row) for row in todo]:
            journal.write(work.result())
            print(read_journal(journal.path)[-1], flush=True)
    report([row for row in read_journal(journal.path) if (row["who"], row["labels"], row["which"]) in wanted])


def measure(who: str, labels: int, which: str) -> dict:
    """One row. which: the U-Net's augmentation, or the seed of our run."""
    torch.set_num_threads(1)
    test = toy_shots("faces", SIZE, HELD_OUT, TESTED)
    with tempfile.TemporaryDirectory() as folder:
        if who == "unet":
            recipe = RECIPE.changed(augment=AUGMENTATIONS[which])
            shots = toy_shots("faces", SIZE, labels, LEARNT)
            trained = train_student(shots, recipe, Path(folder), quiet=True)
        else:
            fit = FIT_PRESETS["fast"].changed(seed=int(which))
            plain = [draw("faces", SIZE, PLAIN, i)[0] for i in range(IMAGES)]
            plain = resize_images(plain, OUR_RECIPE.size)
            given = {"seed": int(which), "quiet": True, "images": plain}
            ours = AutoShot(Path(folder), load_stylegan(), OUR_RECIPE, fit, **given)
            trained = ours.student(embedded_shots().subset(range(labels)))
        found = score(test.labels, [one.labels for one in trained.predict(test.images)], test.parts, test.names)
    return {"who": who, "labels": labels, "which": which, "wiou": found.wiou, "miou": found.miou}


def report(rows: Sequence[dict]) -> None:
    """Table, plot and the last line."""
    curve = [max(r["wiou"] for r in rows if r["who"] == "unet" and r["labels"] == count) for count in COUNTS]
    ours = {k: float(np.mean([r["wiou"] for r in rows if r["who"] == "ours" and r["labels"] == k])) for k in OURS}
    worth = {k: labels_at(curve, ours[k]) for k in OURS}
    last = {"one_label_is_worth": worth[1], "ten_labels_are_worth": worth[10]}
    card = {
        "unet_wiou": dict(zip(COUNTS, curve, strict=True)),
        "our_wiou": ours,
        "kimg": RECIPE.kimg,
        "rows": list(rows),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "labels_worth.json").write_text(json.dumps({**card, **last}, indent=1))

    figure, axes = plt.subplots(figsize=(6, 4), dpi=120)
    axes.semilogx(COUNTS, curve, "o-", color="#555555", label="supervised U-Net, exact labels")
    for k, color in zip(OURS, ("#d1495b", "#00798c"), strict=True):
        axes.axhline(ours[k], color=color, linestyle="--")
        name = f"auto-shot, {k} label{'s' if k > 1 else ''} = {worth[k]}"
        axes.plot([worth[k]], [ours[k]], "o", color=color, label=name)
    axes.set(xlabel="labels of the supervised network", ylabel=f"weighted IoU on {HELD_OUT} faces")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(RESULTS / "labels_worth.png")
    print({"unet": dict(zip(COUNTS, np.round(curve, 3).tolist(), strict=True)), "ours": ours})
    print(json.dumps(last))


def labels_at(curve: Sequence[float], wanted: float) -> int:
    """At how many labels the curve first reaches `wanted`; the largest count when it never does."""
    for i, value in enumerate(curve):
        if value >= wanted:
            if i == 0:
                return COUNTS[0]
            share = (wanted - curve[i - 1]) / (value - curve[i - 1])
            return round(math.exp((1 - share) * math.log(COUNTS[i - 1]) + share * math.log(COUNTS[i])))
    return COUNTS[-1]


if __name__ == "__main__":
    main()
