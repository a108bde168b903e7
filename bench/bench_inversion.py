"""Inversion of many images in one batch against one by one: images per second at equal reconstruction error.

Uses the embedded generator of toy faces, synthetic faces from outside its training set, and the same recipe and number
of steps for both. The result includes the relative difference of the mean reconstruction errors.

    python bench/bench_inversion.py [--images 16] [--steps 100] [--generator trained/representation]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from partshot.ops.images import as_tensors
from partshot.represent.invert import PRESETS, invert
from partshot.represent.stylegan import StyleGAN, load_stylegan
from partshot.toy.dataset import draw

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Prints a card and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--generator", type=Path, help="of `partshot pretrain stylegan2`; default: the embedded one")
    args = parser.parse_args()
    torch.set_num_threads(2)
    generator = load_stylegan(args.generator)
    recipe = PRESETS["fast"].changed(steps=args.steps)
    images = as_tensors(np.stack([draw("faces", generator.size, 3, i)[0] for i in range(args.images)]))
    together, batch_seconds = projected(generator, [images], recipe)
    alone, single_seconds = projected(generator, list(images.split(1)), recipe)
    last = {
        "throughput_ratio": round(single_seconds / batch_seconds, 2),
        "reconstruction_difference": round(float(abs(together - alone) / alone), 4),
    }
    card = {"images": args.images, "steps": args.steps, "seconds": [batch_seconds, single_seconds]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench_inversion.json").write_text(json.dumps({**card, **last}, indent=1))
    print(card)
    print(json.dumps(last))


def projected(generator: StyleGAN, batches: list[torch.Tensor], recipe) -> tuple[float, float]:
    """Mean distance between the images and their reconstructions, and seconds for all images."""
    began, errors = time.perf_counter(), []
    for batch in batches:
        errors.append(invert(generator, batch, generator.distance(), recipe).errors)
    return float(torch.cat(errors).mean()), round(time.perf_counter() - began, 2)


if __name__ == "__main__":
    main()
