"""How many labels a supervised U-Net needs to match auto-shot with one and with ten (ReGAN, figure 6: 150 and 500).

auto-shot: one or ten faces from the embedded generator are labeled, a few-shot head labels thousands of generated
faces, and a student is trained on those, with consistency on 600 unlabeled faces. The baseline is the same network, a
residual U-Net, trained with the same recipe on 1 to 1,000 synthetic faces with exact masks, with strong and with weak
augmentation; the better result counts. The score is ReGAN's weighted IoU on 200 synthetic faces of 64 px. Between two
numbers of labels the curve is interpolated linearly over log(labels).

    python bench/bench_labels_worth.py [--runs 3] [--jobs 2]

Each row is saved in bench/work/labels_worth as soon as it is measured: run it again to resume.
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

from partshot.benchmark.auto_shot import AutoShot, AutoShotConfig
from partshot.data.augment import PRESETS as AUGMENTS
from partshot.data.images import resize_images
from partshot.metrics import score
from partshot.represent.stylegan import load_stylegan
from partshot.tasks.sample import embedded_shots
from partshot.tasks.train_student import train_student
from partshot.toy.dataset import draw, toy_shots
from partshot.train.distill_recipe import PRESETS
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.journal import Journal, read_journal
from partshot.workers import workers

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

RESULTS = Path(__file__).parent / "results"
COUNTS, OURS = (1, 10, 30, 100, 300, 1000), (1, 10)
# Both take about the same time. auto-shot also gets unlabeled images, as it would in a folder with few labels. Both
# predict without flip TTA.
RECIPE, OUR_RECIPE, SIZE = PRESETS["auto-shot"], PRESETS["auto-shot-consistent"].changed(flip_tta=False), 64
AUGMENTATIONS = {"strong": AUGMENTS["strong"], "weak": RECIPE.augment}
# The toy's seeds of the U-Net's training images, of the test images and of the unlabeled images.
TRAIN, TEST, UNLABELED = 21, 22, 23
HELD_OUT, IMAGES = 200, 600


def main() -> None:
    """Measures missing rows; prints a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="auto-shot students, each with other generated images")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("bench/work/labels_worth"))
    args = parser.parse_args()
    journal = Journal(args.out / f"{RECIPE.fingerprint}-{OUR_RECIPE.fingerprint}" / "rows.jsonl")
    journal.repair()
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
    """Measures one row. which: the U-Net's augmentation, or the seed of auto-shot."""
    torch.set_num_threads(1)
    test = toy_shots("faces", SIZE, HELD_OUT, TEST)
    with tempfile.TemporaryDirectory() as folder:
        if who == "unet":
            recipe = RECIPE.changed(augment=AUGMENTATIONS[which])
            shots = toy_shots("faces", SIZE, labels, TRAIN)
            trained = train_student(shots, recipe, Path(folder), quiet=True)
        else:
            fit = FIT_PRESETS["fast"].changed(seed=int(which))
            unlabeled = [draw("faces", SIZE, UNLABELED, i)[0] for i in range(IMAGES)]
            unlabeled = resize_images(unlabeled, OUR_RECIPE.size)
            config = AutoShotConfig(OUR_RECIPE, fit, seed=int(which))
            auto = AutoShot(Path(folder), load_stylegan(), config, unlabeled, quiet=True)
            trained = auto.student(embedded_shots().subset(range(labels)))
        found = score(test.labels, [one.labels for one in trained.predict(test.images)], test.parts, test.names)
    return {"who": who, "labels": labels, "which": which, "wiou": found.wiou, "miou": found.miou}


def report(rows: Sequence[dict]) -> None:
    """Writes the results and the plot; prints the table and the last line."""
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
    """The number of labels at which the curve first reaches `wanted`; the largest number if it never does."""
    for i, value in enumerate(curve):
        if value >= wanted:
            if i == 0:
                return COUNTS[0]
            share = (wanted - curve[i - 1]) / (value - curve[i - 1])
            return round(math.exp((1 - share) * math.log(COUNTS[i - 1]) + share * math.log(COUNTS[i])))
    return COUNTS[-1]


if __name__ == "__main__":
    main()
