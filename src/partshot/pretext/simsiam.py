"""SimSiam pretraining: the embedding of each view of an image predicts that of the other view, without negatives.

Chen & He, "Exploring Simple Siamese Representation Learning" (2021), with lightly's heads and loss. An optional dense
loss does the same for local features: the feature at a point of one view predicts the feature at the same point in the
other view. DenseCL (Wang et al. 2021) and PixPro (Xie et al. 2021) do this with contrastive losses. Segmentation needs
such localized features. represent/resnet.py uses the trained trunk.
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
from partshot.pretext.view_pairs import embedding_std, normalize, point_features, sample_pairs
from partshot.pretext.views import Views
from partshot.recipe import Recipe


class SimSiamRecipe(Recipe):
    """size: side of the images in pixels. view: side of a view as a share of it. kimg, batch: as in LoopRecipe.

    net: name of the trunk. stem_stride: stride of its first convolution in training. lr: SGD's learning rate for a
    batch of 256; scaled linearly with the batch. weight_decay: of SGD. width: output channels of the heads; the hidden
    layer of the predictor has a quarter of it. dense: weight of the dense loss, 0 for none. min_scale: area of the
    smallest crop as a fraction of the image. color: strength of the color jitter, 1 as published.
    """

    renamed: ClassVar[Mapping[str, str]] = {"rate": "lr", "decay": "weight_decay", "smallest": "min_scale"}

    size: int = Field(ge=32)
    view: float = Field(gt=0, le=1)
    kimg: float = Field(gt=0)
    # BatchNorm in the heads needs at least two images.
    batch: int = Field(ge=2)
    net: str = "resnet18"
    stem_stride: int = Field(default=2, ge=1, le=2)
    lr: float = Field(default=0.05, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    width: int = Field(default=2048, ge=4)
    dense: float = Field(default=0, ge=0)
    min_scale: float = Field(default=0.2, gt=0, le=1)
    color: float = Field(default=1, ge=0)


# For hundreds of images on two CPU cores: small views and narrow heads for speed; the dense loss improves results.
_SMALL = SimSiamRecipe(size=128, view=0.75, kimg=40, batch=32, width=512, dense=0.5)
PRESETS = {
    # ImageNet for 100 epochs at 224 px, 68.1 % linear (paper, table 1).
    "simsiam-paper": SimSiamRecipe(size=256, view=0.875, kimg=128_000, batch=512, net="resnet50"),
    # Faces at 512 px for 400 epochs (GANORCON, section 4); kimg is for CelebAMask-HQ's 30,000 images.
    "ganorcon": SimSiamRecipe(size=512, view=1.0, kimg=12_000, batch=32, net="resnet50"),
    "small-folder": _SMALL,
    # For a GPU, which a small batch does not use fully.
    "small-folder-gpu": _SMALL.changed(kimg=150, batch=128),
}


class SimSiam:
    """Objective with one phase. images: uint8 [n, s, s, 3] RGB, not copied. seed: of the initial weights."""

    PRESETS: ClassVar[Mapping[str, SimSiamRecipe]] = PRESETS

    def __init__(self, images: UInt8[np.ndarray, "n s s 3"], recipe: SimSiamRecipe, seed: int = 0):
        self.images, self.recipe = torch.from_numpy(images), recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trunk = ResNetTrunk(recipe.net, recipe.stem_stride)
            self.modules: dict[str, nn.Module] = {"trunk": trunk} | _heads("", trunk.channels[-1], recipe.width)
            if recipe.dense:
                # Features of the last two stages; the last one alone has only nine cells in a 96 px view.
                self.modules |= _heads("dense_", sum(trunk.channels[-2:]), recipe.width)
        predictors = [p for name, m in self.modules.items() if "predictor" in name for p in m.parameters()]
        others = [p for name, m in self.modules.items() if "predictor" not in name for p in m.parameters()]
        self.optimizer = torch.optim.SGD(
            [{"params": others}, {"params": predictors}], lr=self.lr, momentum=0.9, weight_decay=recipe.weight_decay
        )
        self.similarity = NegativeCosineSimilarity()
        self.embedding_std = torch.zeros(())

    @property
    def lr(self) -> float:
        """Initial learning rate for the batch of the recipe."""
        return self.recipe.lr * self.recipe.batch / 256

    def batch(self, rng: torch.Generator, images: int) -> Views:
        """Two views of each of `images` random images; images are repeated only if there are too few."""
        recipe, device = self.recipe, next(self.modules["trunk"].parameters()).device
        side = round(recipe.size * recipe.view)
        return sample_pairs(self.images, images, side, recipe.min_scale, recipe.color, rng, device)

    def phases(self) -> list[Phase]:
        """One phase with the symmetric loss."""
        return [Phase("loss", self.optimizer, self.loss)]

    def prepare(self, progress: float) -> None:
        """Cosine decay; the predictors' learning rate is constant, which the paper found better (section 4.2)."""
        others, predictors = self.optimizer.param_groups
        others["lr"] = self.lr * (1 + math.cos(math.pi * progress)) / 2
        predictors["lr"] = self.lr

    def finish(self, progress: float) -> dict[str, torch.Tensor]:
        """Measure of collapse for the journal: `spread`, see `embedding_std`."""
        return {"spread": self.embedding_std}

    def trained(self) -> dict[str, torch.Tensor]:
        """Weights of the trunk, under torchvision's names; the heads are not kept."""
        return self.modules["trunk"].state_dict()

    def loss(self, views: Views) -> torch.Tensor:
        """Symmetric loss of global features, from -1 (views agree) to 1, plus `dense` times that of local features."""
        levels = [self.modules["trunk"](normalize(view)) for view in (views.first, views.second)]
        pooled = [maps[-1].mean(dim=(2, 3)) for maps in levels]
        loss = self._symmetric_loss("", *pooled)
        if self.recipe.dense:
            points = (views.first_points, views.second_points)
            local = [point_features(maps[-2:], at) for maps, at in zip(levels, points, strict=True)]
            loss = loss + self.recipe.dense * self._symmetric_loss("dense_", *local)
        return loss

    def _symmetric_loss(self, prefix: str, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        # Equation 4; without stop-gradient (detach) all embeddings collapse to one point.
        projector, predictor = self.modules[prefix + "projector"], self.modules[prefix + "predictor"]
        z1, z2 = projector(first).float(), projector(second).float()
        p1, p2 = predictor(z1).float(), predictor(z2).float()
        if not prefix:
            self.embedding_std = embedding_std(z1.detach())
        return (self.similarity(p1, z2.detach()) + self.similarity(p2, z1.detach())) / 2


def _heads(prefix: str, channels: int, width: int) -> dict[str, nn.Module]:
    return {
        f"{prefix}projector": SimSiamProjectionHead(channels, width, width),
        f"{prefix}predictor": SimSiamPredictionHead(width, width // 4, width),
    }
