"""StyleGAN pretraining: the objective of StyleGAN2 with StyleGAN's generator, whose feature maps DatasetGAN uses.

Discriminator, losses, augmentation and progressive growing are those of pretext/stylegan2.py; only `net` differs.
"""

import numpy as np
from jaxtyping import UInt8

from partshot.pretext.stylegan2 import PRESETS as STYLEGAN2
from partshot.pretext.stylegan2 import StyleGAN2, StyleGAN2Recipe

PRESETS = {
    # FFHQ at 1024 px (Karras et al. 2019, appendix C, and the official code): 600 thousand images at 8 px, then 1,200
    # thousand at each higher resolution, half of them during fade-in; lr and batch are those for 1024 px.
    "stylegan1-paper": StyleGAN2Recipe(
        size=1024,
        kimg=25_000,
        net="adain",
        grow=((8, 0.024), (16, 0.072), (32, 0.12), (64, 0.168), (128, 0.216), (256, 0.264), (512, 0.312)),
        lr=3e-3,
        gamma=10.0,
        path=0,
        ada=0,
    ),
    # For two CPU cores, and hundreds to a few thousand images.
    "small-folder": STYLEGAN2["small-folder"].changed(net="adain-small"),
    "further": STYLEGAN2["further"].changed(net="adain-small"),
}


def stylegan1(images: UInt8[np.ndarray, "n s s 3"], recipe: StyleGAN2Recipe, seed: int = 0) -> StyleGAN2:
    """The training objective; arguments and errors are those of StyleGAN2."""
    return StyleGAN2(images, recipe, seed)


stylegan1.PRESETS = PRESETS
