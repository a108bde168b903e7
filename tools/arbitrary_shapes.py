"""Arbitrary shapes as parts, transferred between generated faces (ReGAN, figure 8): docs/arbitrary_shapes.png.

A ring around one eye, a bar across the forehead and a disc on a cheek are the mask of one face from the embedded
generator. A few-shot head is fitted to that face alone and predicts the shapes on other generated faces.

    python tools/arbitrary_shapes.py [--out docs/arbitrary_shapes.png]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from partshot.data.shots import Shots
from partshot.ops.images import as_uint8
from partshot.parts import PartSet
from partshot.report import write_sheet
from partshot.represent.stylegan import load_stylegan
from partshot.segmenter import Segmenter
from partshot.tasks.sample import latents_of_names
from partshot.train.fit_head import PRESETS

OTHERS = range(100, 108)


def main() -> None:
    """Fits the head and writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/arbitrary_shapes.png"))
    parser.add_argument("--seed", type=int, default=0, help="of the labeled face")
    args = parser.parse_args()
    generator = load_stylegan()
    with torch.no_grad():
        image = as_uint8(generator.synthesize(generator.sample([args.seed]))[0])[0]
    parts = PartSet.of("background", "ring", "bar", "disc")
    shot = Shots(images=(image,), labels=(painted(),), names=(f"{args.seed:06d}",), parts=parts)
    fit = PRESETS["fast"].changed(augment=None)
    teacher = Segmenter(generator, parts, "cnn-s", generator.size, fit).fit(
        shot, latents=latents_of_names(generator, shot)
    )
    generated = teacher.generate(OTHERS)
    images = [image, *generated.images]
    write_sheet(
        args.out,
        images,
        {"painted on one face": None, "predicted on others": [shot.labels[0], *generated.labels]},
        parts,
    )
    print(f"written: {args.out}")


def painted() -> np.ndarray:
    """The mask with the shapes, uint8 [64, 64]."""
    canvas = Image.new("L", (64, 64))
    draw = ImageDraw.Draw(canvas)
    draw.ellipse((20, 24, 31, 33), outline=1, width=2)
    draw.rectangle((24, 17, 42, 20), fill=2)
    draw.ellipse((35, 35, 42, 42), fill=3)
    return np.array(canvas)


if __name__ == "__main__":
    main()
