"""SimSiam: two views of an image predict each other; nothing else is told to the network.

Chen & He, "Exploring Simple Siamese Representation Learning" (2021), from lightly's heads and loss. An optional dense
term asks the same of single spots: what the network sees at a point of one view must predict what it sees at that point
in the other, as DenseCL (Wang et al. 2021) and PixPro (Xie et al. 2021) do with contrastive losses; segmentation needs
features that know where they are. Knows its views, heads and schedule; how the trunk is read is represent/resnet.py's
affair.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from pydantic import Field
from torch import nn

from partshot.nets.resnet import ResNetTrunk
from partshot.objective import Phase
from partshot.pretext.pairs import at_spots, draw_pairs, normalized, spread
from partshot.pretext.views import Views
from partshot.recipe import Recipe


class SimSiamRecipe(Recipe):
    """size: side of the images in pixels. view: side of a view as a share of it. kimg, batch: as in LoopRecipe.

    net: a trunk's name. stem_stride: of its first convolution, in training. lr: SGD's learning rate per 256 images of a
    batch. weight_decay: weight decay. width: of the heads; the predictor's waist is a quarter of it. dense: weight of
    the dense term, 0 without. smallest: share of the area that the smallest crop has. color: strength of the color
    changes.
    """

    renamed: ClassVar[Mapping[str, str]] = {"rate": "lr", "decay": "weight_decay"}

    size: int = Field(ge=32)
    view: float = Field(gt=0, le=1)
    kimg: float = Field(gt=0)
    # BatchNorm in the heads has no variance to divide by in a batch of one.
    batch: int = Field(ge=2)
    net: str = "resnet18"
    stem_stride: int = Field(default=2, ge=1, le=2)
    lr: float = Field(default=0.05, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    width: int = Field(default=2048, ge=4)
    dense: float = Field(default=0, ge=0)
    smallest: float = Field(default=0.2, gt=0, le=1)
    color: float = Field(default=1, ge=0)


# Hundreds of images and two cores: small views and narrow heads are affordable, the dense term is what helps.
_SMALL = SimSiamRecipe(size=128, view=0.75, kimg=40, batch=32, width=512, dense=0.5)
PRESETS = {
    # ImageNet for 100 epochs at 224 px, 68.1 % linear (paper, table 1).
    "simsiam-paper": SimSiamRecipe(size=256, view=0.875, kimg=128_000, batch=512, net="resnet50"),
    # Faces at 512 px for 400 epochs (GANORCON, section 4), here counted for CelebAMask-HQ's 30,000 images.
    "ganorcon": SimSiamRecipe(size=512, view=1.0, kimg=12_000, batch=32, net="resnet50"),
    "small-folder": _SMALL,
    # On a GPU, which a small batch leaves idle.
    "small-folder-gpu": _SMALL.changed(kimg=150, batch=128),
}


class SimSiam:
    """The game: one turn. images: uint8 [n, s, s, 3] RGB, kept as they are. seed: of the initial weights."""

    PRESETS: ClassVar[Mapping[str, SimSiamRecipe]] = PRESETS

    def __init__(self, images: UInt8[np.ndarray, "n s s 3"], recipe: SimSiamRecipe, seed: int = 0):
        self.images, self.recipe = torch.from_numpy(images), recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trunk = ResNetTrunk(recipe.net, recipe.stem_stride)
            self.modules: dict[str, nn.Module] = {"trunk": trunk} | _heads("", trunk.channels[-1], recipe.width)
            if recipe.dense:
                # Points of the last two stages together: the last alone has nine cells in a 96 px view.
                self.modules |= _heads("dense_", sum(trunk.channels[-2:]), recipe.width)
        predictors = [p for name, m in self.modules.items() if "predictor" in name for p in m.parameters()]
        others = [p for name, m in self.modules.items() if "predictor" not in name for p in m.parameters()]
        self.optimizer = torch.optim.SGD(
            [{"params": others}, {"params": predictors}], lr=self.lr, momentum=0.9, weight_decay=recipe.weight_decay
        )
        self.similarity = NegativeCosineSimilarity()
        self.spread = torch.zeros(())

    @property
    def lr(self) -> float:
        """The learning rate of a whole batch, at the start."""
        return self.recipe.lr * self.recipe.batch / 256

    def batch(self, rng: torch.Generator, images: int) -> Views:
        """Two views of that many images; none comes twice while there are enough of them."""
        recipe, device = self.recipe, next(self.modules["trunk"].parameters()).device
        side = round(recipe.size * recipe.view)
        return draw_pairs(self.images, images, side, recipe.smallest, recipe.color, rng, device)

    def phases(self) -> list[Phase]:
        """One: both views predict each other."""
        return [Phase("loss", self.optimizer, self.loss)]

    def prepare(self, progress: float) -> None:
        """Cosine decay; the predictors keep their rate, which the paper found better (section 4.2)."""
        others, predictors = self.optimizer.param_groups
        others["lr"] = self.lr * (1 + math.cos(math.pi * progress)) / 2
        predictors["lr"] = self.lr

    def finish(self, progress: float) -> dict[str, torch.Tensor]:
        """The journal's figure against collapse: `spread` of the embeddings."""
        return {"spread": self.spread}

    def trained(self) -> dict[str, torch.Tensor]:
        """The trunk, under torchvision's names; the heads have done their work."""
        return self.modules["trunk"].state_dict()

    def loss(self, views: Views) -> torch.Tensor:
        """-1 (views agree) to 1, plus as much times `dense` for the spots."""
        levels = [self.modules["trunk"](normalized(view)) for view in (views.first, views.second)]
        whole = [maps[-1].mean(dim=(2, 3)) for maps in levels]
        loss = self._predict_each_other("", *whole)
        if self.recipe.dense:
            places = (views.first_spots, views.second_spots)
            spots = [at_spots(maps[-2:], at) for maps, at in zip(levels, places, strict=True)]
            loss = loss + self.recipe.dense * self._predict_each_other("dense_", *spots)
        return loss

    def _predict_each_other(self, prefix: str, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        # Equation 4; without stopping the gradient (detach) everything collapses to one point.
        projector, predictor = self.modules[prefix + "projector"], self.modules[prefix + "predictor"]
        z1, z2 = projector(first).float(), projector(second).float()
        p1, p2 = predictor(z1).float(), predictor(z2).float()
        if not prefix:
            self.spread = spread(z1.detach())
        return (self.similarity(p1, z2.detach()) + self.similarity(p2, z1.detach())) / 2


def _heads(prefix: str, channels: int, width: int) -> dict[str, nn.Module]:
    return {
        f"{prefix}projector": SimSiamProjectionHead(channels, width, width),
        f"{prefix}predictor": SimSiamPredictionHead(width, width // 4, width),
    }
