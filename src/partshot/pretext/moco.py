"""MoCo-v2: an image's view is told from all other images by the other view of the same one.

He et al. 2020 (MoCo) and Chen et al. 2020 (v2). Queries come from the trunk that learns; keys from a second one that
follows it slowly and never sees a gradient; other images are the keys of earlier batches, kept in a queue. An
optional dense term asks the same of single spots with a head and a queue of its own, as DenseCL (Wang et al. 2021)
does, but it takes the partner of a spot from the crops' geometry. Head and momentum are lightly's; its queue is not,
because it is left out of checkpoints. Where spots are told from spots, features learn what a part has that its
neighbors have not, which DenseCL's whole images do not ask for. Knows its encoders, queues and schedule; how the
trunk is read is represent/resnet.py's affair.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import (
    batch_shuffle,
    batch_unshuffle,
    concat_all_gather,
    deactivate_requires_grad,
    update_momentum,
)
from pydantic import Field, model_validator
from torch import nn

from partshot.data.symmetry import one_sided
from partshot.errors import BadRecipe
from partshot.nets.resnet import ResNetTrunk
from partshot.objective import Phase
from partshot.pretext.pairs import at_spots, draw_pairs, normalized, spread
from partshot.pretext.views import Views
from partshot.recipe import Recipe


class MoCoRecipe(Recipe):
    """size: side of the images in pixels. view: side of a view as a share of it. kimg, batch: as in LoopRecipe.

    net: a trunk's name. stem_stride: of its first convolution, in training. lr: SGD's learning rate per 256 images of a
    batch. weight_decay: weight decay. dim: of the embeddings. temperature: 0.2 in v2's instructions, though the
    released code defaults to v1's 0.07. momentum: what the key encoder keeps of itself in a step. queue: how many keys
    of earlier images, at least a batch. groups: parts of a batch that BatchNorm looks at by themselves, the keys' drawn
    anew, so that its statistics do not betray which key belongs to which query; published as one per GPU. dense: weight
    of the dense term, 0 without. strangers: what a spot is told from in it: "images", each as a whole, or "spots" of
    its own image and of others. smallest: share of the area that the smallest crop has. color: strength of the color
    changes. mirror: which views are mirrored, "half" of them, or "read" off the images: half, but none where all things
    face one way. components: how many principal components are read of each of the trunk's stages, 0 for all channels.
    """

    later: ClassVar[Mapping[str, Any]] = {"strangers": "images", "mirror": "half", "components": 0}
    renamed: ClassVar[Mapping[str, str]] = {"rate": "lr", "decay": "weight_decay"}

    size: int = Field(ge=32)
    view: float = Field(gt=0, le=1)
    kimg: float = Field(gt=0)
    batch: int = Field(ge=2)
    net: str = "resnet18"
    stem_stride: int = Field(default=2, ge=1, le=2)
    lr: float = Field(default=0.03, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    dim: int = Field(default=128, ge=2)
    temperature: float = Field(default=0.2, gt=0)
    momentum: float = Field(default=0.999, ge=0, lt=1)
    queue: int = Field(default=65536, ge=2)
    groups: int = Field(default=1, ge=1)
    dense: float = Field(default=0, ge=0)
    smallest: float = Field(default=0.2, gt=0, le=1)
    color: float = Field(default=1, ge=0)
    strangers: Literal["images", "spots"] = "images"
    mirror: Literal["half", "read"] = "half"
    components: int = Field(default=0, ge=0, le=64)

    @model_validator(mode="after")
    def _fit_together(self):
        batch, queue = self.batch, self.queue
        if queue < batch:
            raise BadRecipe(f"a queue of {queue} keys holds no batch of {batch}; take a batch of {queue} or less")
        # BatchNorm has no variance to divide by where one image has shrunk to one cell.
        if batch < 2 * self.groups:
            raise BadRecipe(
                f"a batch of {batch} makes no {self.groups} groups of two images or more; "
                f"take a batch of {2 * self.groups} or more"
            )
        if self.strangers == "spots" and not self.dense:
            raise BadRecipe("spots are told from spots in the dense term alone, and dense is 0; set it above 0")
        return self


# Hundreds of images and two cores: in a long queue every image would meet its own older keys as strangers, and a
# slow key encoder would not get going in a thousand steps. A faster one than this makes older keys look older, which is
# all that queries then learn.
_SMALL = MoCoRecipe(size=128, view=0.75, kimg=40, batch=32, lr=0.12, momentum=0.99, queue=128, groups=2, dense=0.5)
PRESETS = {
    # ImageNet for 200 epochs at 224 px on 8 GPUs, 67.5 % linear (v2, table 1).
    "moco-v2-paper": MoCoRecipe(size=256, view=0.875, kimg=256_000, batch=256, net="resnet50", groups=8),
    # Faces at 512 px for 800 epochs on 4 GPUs (GANORCON, section 4), here counted for CelebAMask-HQ's 30,000 images.
    # Rate, temperature, momentum and queue are not told; they are v2's.
    "ganorcon": MoCoRecipe(size=512, view=1.0, kimg=24_000, batch=32, net="resnet50", groups=4),
    "small-folder": _SMALL,
    # On a GPU, which a small batch leaves idle; the queue is as many batches long.
    "small-folder-gpu": _SMALL.changed(kimg=150, batch=128, queue=512),
    # A hundred times and more through a folder, 5 minutes of a GPU: what puts MoCo clearly ahead of random weights.
    "small-folder-long": _SMALL.changed(
        kimg=800, batch=128, queue=384, dense=1, strangers="spots", color=0.4, mirror="read", components=64
    ),
}

# Spots told from spots: those of the same image that are nearer than this share of a view are not strangers; the
# temperature; and how many of a batch are queued, in a queue of how many.
_NEAR, _SPOT_TEMPERATURE, _SPOTS_QUEUED, _SPOT_QUEUE = 0.15, 0.1, 512, 4096


class MoCo:
    """The game: one turn. images: uint8 [n, s, s, 3] RGB, kept as they are. seed: of the initial weights."""

    PRESETS: ClassVar[Mapping[str, MoCoRecipe]] = PRESETS

    def __init__(self, images: UInt8[np.ndarray, "n s s 3"], recipe: MoCoRecipe, seed: int = 0):
        self.images, self.recipe = torch.from_numpy(images), recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trunk = ResNetTrunk(recipe.net, recipe.stem_stride)
            last = trunk.channels[-1]
            # Points of the last stages together: the last alone has nine cells in a 96 px view. Neighbors are told
            # apart by finer ones, too.
            self.levels = 3 if recipe.strangers == "spots" else 2
            learning: dict[str, nn.Module] = {"trunk": trunk, "head": MoCoProjectionHead(last, last, recipe.dim)}
            queues = {"queue": Queue(recipe.queue, recipe.dim)}
            if recipe.dense:
                learning["dense_head"] = MoCoProjectionHead(sum(trunk.channels[-self.levels :]), last, recipe.dim)
                long = _SPOT_QUEUE if recipe.strangers == "spots" else recipe.queue
                queues["dense_queue"] = Queue(long, recipe.dim)
        self.mirror = recipe.mirror == "half" or not one_sided(images)
        self.learning = tuple(learning)
        self.modules = learning | {f"key_{name}": _follower(net) for name, net in learning.items()} | queues
        params = [p for net in learning.values() for p in net.parameters()]
        self.optimizer = torch.optim.SGD(params, lr=self.lr, momentum=0.9, weight_decay=recipe.weight_decay)
        self.fresh: dict[str, torch.Tensor] = {}
        self.spread = self.accuracy = torch.zeros(())

    @property
    def lr(self) -> float:
        """The learning rate of a whole batch, at the start."""
        return self.recipe.lr * self.recipe.batch / 256

    def batch(self, rng: torch.Generator, images: int) -> Views:
        """Two views of that many images; none comes twice while there are enough of them.

        Raises BadRecipe when a device's share of the batch has no two images for each group.
        """
        recipe, device = self.recipe, next(self.modules["trunk"].parameters()).device
        if images < 2 * recipe.groups:
            raise BadRecipe(
                f"{images} images a device do not make {recipe.groups} groups of two or more; "
                "raise the batch or use fewer devices"
            )
        side = round(recipe.size * recipe.view)
        return draw_pairs(self.images, images, side, recipe.smallest, recipe.color, rng, device, self.mirror)

    def phases(self) -> list[Phase]:
        """One: the first views look for the second ones."""
        return [Phase("loss", self.optimizer, self.loss)]

    def prepare(self, progress: float) -> None:
        """Cosine decay."""
        self.optimizer.param_groups[0]["lr"] = self.lr * (1 + math.cos(math.pi * progress)) / 2

    def finish(self, progress: float) -> dict[str, torch.Tensor]:
        """The key encoder follows, and the keys are queued. Figures: `spread` of the queries against collapse, and
        `accuracy`, the share of queries that are closer to their own key than to any in the queue.

        BatchNorm's statistics do not follow: the key encoder computes with those of its own batches, as published.
        """
        for name in self.learning:
            update_momentum(self.modules[name], self.modules[f"key_{name}"], self.recipe.momentum)
        for name, keys in self.fresh.items():
            self.modules[name].push(gathered(keys))
        return {"spread": self.spread, "accuracy": self.accuracy}

    def trained(self) -> dict[str, torch.Tensor]:
        """The trunk that learned, under torchvision's names; the rest has done its work."""
        return self.modules["trunk"].state_dict()

    def loss(self, views: Views) -> torch.Tensor:
        """Equation 1 for the images, plus as much times `dense` for the spots. Keys wait for `finish`."""
        nets, recipe = self.modules, self.recipe
        levels = in_groups(nets["trunk"], normalized(views.first), recipe.groups, self.levels)
        queries = self._embedded("", levels, views.first_spots)
        with torch.no_grad():
            levels = in_shuffled_groups(nets["key_trunk"], normalized(views.second), recipe.groups, self.levels)
            keys = self._embedded("key_", levels, views.second_spots)

        self.fresh, self.spread = {"queue": keys["head"]}, spread(queries["head"].detach())
        loss, self.accuracy = info_nce(queries["head"], keys["head"], nets["queue"].keys, recipe.temperature)
        if recipe.dense:
            loss = loss + recipe.dense * self._dense(queries["dense_head"], keys["dense_head"], views.first_spots)
        return loss

    def _dense(self, queries: torch.Tensor, keys: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        # The spots' loss; some of their keys, or their images' means, wait for `finish`, too.
        others = self.modules["dense_queue"].keys
        if self.recipe.strangers == "images":
            # Other images are met as a whole, not spot by spot (DenseCL, section 3.3).
            whole = keys.unflatten(0, (len(at), -1)).mean(1)
            self.fresh["dense_queue"] = F.normalize(whole, dim=1)
            return info_nce(queries, keys, others, self.recipe.temperature)[0]
        self.fresh["dense_queue"] = keys[torch.randperm(len(keys), device=keys.device)[:_SPOTS_QUEUED]]
        return dense_info_nce(at, queries, keys, others)

    def _embedded(self, side: str, levels: tuple[torch.Tensor, ...], spots: torch.Tensor) -> dict[str, torch.Tensor]:
        # By head, of length 1: images [b, dim] and, for a dense term, spots [b * n, dim].
        seen = {"head": levels[-1].mean(dim=(2, 3))}
        if self.recipe.dense:
            seen["dense_head"] = at_spots(levels, spots)
        return {name: F.normalize(self.modules[side + name](x).float(), dim=1) for name, x in seen.items()}


class Queue(nn.Module):
    """The newest keys of other images; the oldest give way.

    It begins empty. The published code begins with points by chance, which teach for as long as they stay that all
    images are alike and far from chance. size: of the queue, at least what is pushed at once. Buffers, so that a
    checkpoint holds them.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("places", torch.zeros(size, dim))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))

    @property
    def keys(self) -> Float[torch.Tensor, "k d"]:
        """What it holds, in no order."""
        return self.places[: int(self.pushed)]

    @torch.no_grad()
    def push(self, keys: Float[torch.Tensor, "b d"]) -> None:
        """Puts keys in the place of the oldest."""
        at = int(self.pushed) + torch.arange(len(keys), device=keys.device)
        self.places[at % len(self.places)] = keys
        self.pushed += len(keys)


def info_nce(
    queries: Float[torch.Tensor, "b d"],
    keys: Float[torch.Tensor, "b d"],
    others: Float[torch.Tensor, "k d"],
    temperature: float,
) -> tuple[Float[torch.Tensor, ""], Float[torch.Tensor, ""]]:
    """The loss of finding each query's own key among the others (InfoNCE; MoCo, equation 1), and how often it is found.

    All of length 1. The second figure is the share of queries that are closer to their own key than to every other.
    """
    # In float32: bf16 would round the likeness of near neighbors to the same number.
    with torch.autocast(queries.device.type, enabled=False):
        own, rest = (queries * keys).sum(1, keepdim=True), queries @ others.T
        first = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
        loss = F.cross_entropy(torch.cat([own, rest], dim=1) / temperature, first)
    return loss, (own > rest).all(1).float().mean()


def dense_info_nce(
    at: Float[torch.Tensor, "b n 2"],
    queries: Float[torch.Tensor, "b*n d"],
    keys: Float[torch.Tensor, "b*n d"],
    others: Float[torch.Tensor, "k d"],
) -> Float[torch.Tensor, ""]:
    """The loss of finding each spot's own key among those of its image's other spots and among others, as InfoNCE.

    at: (x, y) of the queries in [-1, 1] of their view; spots that are near each other are not told apart. The rest are
    of length 1.
    """
    images, spots = at.shape[:2]
    with torch.autocast(queries.device.type, enabled=False):
        within = queries.view(images, spots, -1) @ keys.view(images, spots, -1).transpose(1, 2)
        itself = torch.eye(spots, dtype=torch.bool, device=at.device)
        near = (torch.cdist(at, at) < 2 * _NEAR) & ~itself
        likeness = torch.cat([within.masked_fill(near, -torch.inf).flatten(0, 1), queries @ others.T], dim=1)
        own = torch.arange(spots, device=at.device).repeat(images)
        return F.cross_entropy(likeness / _SPOT_TEMPERATURE, own)


def in_groups(
    trunk: nn.Module, images: Float[torch.Tensor, "b 3 h w"], groups: int, levels: int
) -> tuple[Float[torch.Tensor, "b _ _ _"], ...]:
    """The trunk's last levels, that many, for images that pass it in so many parts, one after the other."""
    parts = [trunk(part)[-levels:] for part in images.tensor_split(groups)]
    return tuple(torch.cat(level) for level in zip(*parts, strict=True))


def in_shuffled_groups(
    trunk: nn.Module, images: Float[torch.Tensor, "b 3 h w"], groups: int, levels: int
) -> tuple[Float[torch.Tensor, "b _ _ _"], ...]:
    """The same with the images put into parts by torch's global chance, and given back in their own order."""
    shuffled, order = batch_shuffle(images)
    return tuple(batch_unshuffle(level, order) for level in in_groups(trunk, shuffled, groups, levels))


def gathered(keys: Float[torch.Tensor, "_ d"]) -> Float[torch.Tensor, "_ d"]:
    """The keys of all processes of a run, in the same order in each."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return concat_all_gather(keys)
    return keys


def _follower(net: nn.Module) -> nn.Module:
    follower = copy.deepcopy(net)
    deactivate_requires_grad(follower)
    return follower
