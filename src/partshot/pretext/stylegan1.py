"""StyleGAN as a pretext: the game of StyleGAN2, played by the generator whose maps DatasetGAN reads.

Discriminator, losses, augmentation and growing are pretext/stylegan2.py's; the recipes name another net.
"""

import numpy as np
from jaxtyping import UInt8

from partshot.pretext.stylegan2 import PRESETS as STYLEGAN2
from partshot.pretext.stylegan2 import StyleGAN2, StyleGAN2Recipe

PRESETS = {
    # FFHQ at 1024 px (Karras et al. 2019, appendix C, and the official code): 600 thousand images of 8 px, then 1,200
    # of each further size, half of them while it comes in; rate and batch are those of 1024 px.
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
    # What two cores train; hundreds to a few thousand images.
    "small-folder": STYLEGAN2["small-folder"].changed(net="adain-small"),
    "further": STYLEGAN2["further"].changed(net="adain-small"),
}


def stylegan1(images: UInt8[np.ndarray, "n s s 3"], recipe: StyleGAN2Recipe, seed: int = 0) -> StyleGAN2:
    """The game on these images; arguments and errors are StyleGAN2's."""
    return StyleGAN2(images, recipe, seed)


stylegan1.PRESETS = PRESETS
