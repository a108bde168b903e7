"""The generator route on real images: few-shot by inversion, and auto-shot.

bench_packs.py measures the encoder route. The generator must be trained first, on the pack's unlabeled images:

    partshot pretrain stylegan2 --images ../shared/data/wbc/unlabeled --size 64 --kimg 100 --out trained-wbc
    python bench/bench_generator.py --trained trained-wbc [--pack wbc] [--ks 1,5,10] [--seeds 0,1,2,3,4]

Splits, test images (`val`) and scores are those of bench_packs.py. Labeled images and test images are inverted;
students are trained on generated images at 128 px. Writes bench/results/generator.md with the grid of samples.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image

from bench_rows import DATA, RESULTS, numbers, read_rows
from partshot.artifact import read_card
from partshot.benchmark.auto_shot import AutoShot, AutoShotConfig
from partshot.benchmark.kshot import kshot, table_to_dict, table_to_markdown, tabulate
from partshot.data.shots import load_shots
from partshot.machine import available_cores
from partshot.represent.stylegan import load_stylegan
from partshot.train.distill_recipe import PRESETS
from partshot.train.fit_head import PRESETS as FIT_PRESETS
from partshot.train.journal import Journal


def main() -> None:
    """Measures missing rows, then writes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, required=True, help="the --out of `partshot pretrain stylegan2`")
    parser.add_argument("--pack", default="wbc")
    parser.add_argument("--ks", type=numbers, default=(1, 5, 10))
    parser.add_argument("--seeds", type=numbers, default=(0, 1, 2, 3, 4))
    args = parser.parse_args()
    torch.set_num_threads(available_cores())
    generator = load_stylegan(args.trained / "representation")
    out = Path("bench/work/generator") / f"{args.pack}-{generator.weights}"
    split = json.loads((DATA / args.pack / "split.json").read_text())
    pool, test = (load_shots(DATA / args.pack, names=split[part]) for part in ("train", "val"))
    splits = {int(k): {int(s): names for s, names in by.items()} for k, by in split["fewshot"].items()}
    fit = FIT_PRESETS["fast"].changed(images=600)
    config = AutoShotConfig(PRESETS["auto-shot"].changed(kimg=12), fit, generated_shots=False)
    auto = AutoShot(out, generator, config)
    journal = Journal(out / "rows.jsonl")
    journal.repair()
    committed = RESULTS / "rows" / f"generator-{args.pack}-{generator.weights}.jsonl"
    methods = {"auto-shot": auto.auto_shot, "few-shot head, by inversion": auto.few_shot}
    rows = []
    for seed in args.seeds:
        given = (args.ks, [seed], splits, lambda row: journal.write(row.to_dict()), read_rows(out, committed))
        rows += kshot(methods, pool, test, *given)
        print(table_to_markdown(tabulate(rows)), flush=True)
    report(args.pack, args.trained, table_to_dict(tabulate(rows)), table_to_markdown(tabulate(rows)), args.seeds)


def report(pack: str, trained: Path, table: dict, text: str, seeds) -> None:
    """Writes the table and the grid, followed by the encoder's rows from packs.json."""
    card = read_card(trained / "representation")
    grid = sorted((trained / "samples").glob("*.png"))[-1]
    Image.open(grid).save(RESULTS / f"generator_{pack}.png", optimize=True)
    encoder = json.loads((RESULTS / "packs.json").read_text())["tables"][pack]
    cells = {m: [f"{by[k]['miou']:.3f}" if k in by else "-" for k in ("1", "5", "10")] for m, by in encoder.items()}
    lines = [f"| {method} | " + " | ".join(row) + " |" for method, row in cells.items()]
    page = [
        f"# The generator route on {pack}",
        "",
        "mIoU on `val` at the masks' own size, background included; mean and standard deviation over the splits.",
        f"A StyleGAN2 of {card['size']} px, trained on {card['images']} unlabeled images for {card['kimg']:g} thousand "
        f"image views; splits {', '.join(map(str, seeds))}. Generated samples: ![samples](generator_{pack}.png)",
        "",
        text,
        "Encoder route and alternatives (packs.md):",
        "",
        "| mIoU | k = 1 | k = 5 | k = 10 |\n|---|---|---|---|",
        *lines,
        "",
    ]
    (RESULTS / "generator.md").write_text("\n".join(page), encoding="utf-8")
    (RESULTS / "generator.json").write_text(json.dumps({"card": card, "table": table}, indent=1), encoding="utf-8")
    print(json.dumps({m: {k: round(c["miou"], 3) for k, c in by.items()} for m, by in table.items()}))


if __name__ == "__main__":
    main()
