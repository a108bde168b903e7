"""MoCo v2 pretraining, with an optional dense contrastive loss.

He et al. 2020 (MoCo) and Chen et al. 2020 (v2). A contrastive loss (InfoNCE) discriminates two views of an image from
other images. Queries come from the trained encoder. Keys come from the momentum encoder, an exponential moving average
of the trained one that gets no gradient. Negatives are keys of earlier batches, kept in a queue.

The optional dense loss applies InfoNCE to local features, with its own head and queue, as DenseCL (Wang et al. 2021)
does. Unlike DenseCL, the positive of a local feature is at the same point of the image, known from the crops' geometry.
With `dense_negatives = "local"`, negatives are local features as well, also those of the same image. Features then
learn to differ between neighboring parts, which DenseCL's negatives, pooled features of whole images, do not enforce.

Head and momentum update are lightly's. Its queue is not used because it is not saved in checkpoints.
represent/resnet.py uses the trained trunk.
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
from pydantic import Field, field_validator, model_validator
from torch import nn

from partshot.data.symmetry import one_sided
from partshot.errors import BadRecipe
from partshot.nets.resnet import ResNetTrunk
from partshot.objective import Phase
from partshot.pretext.view_pairs import embedding_std, normalize, point_features, sample_pairs
from partshot.pretext.views import Views
from partshot.recipe import Recipe

# Old setting -> its old values -> their current names. Recipes with old values are still read.
_OLD_VALUES = {"strangers": {"pictures": "images", "spots": "local"}, "mirror": {"read": "auto"}}


class MoCoRecipe(Recipe):
    """size: side of the images in pixels. view: side of a view as a share of it. kimg, batch: as in LoopRecipe.

    net: name of the trunk. stem_stride: stride of its first convolution in training. lr: SGD's learning rate for a
    batch of 256; scaled linearly with the batch. weight_decay: of SGD. dim: of the embeddings. temperature: of InfoNCE;
    0.2 in v2's instructions, although the released code defaults to v1's 0.07. momentum: of the key encoder. queue:
    number of keys in the queue, at least a batch. groups: number of parts of a batch with separate BatchNorm
    statistics. Keys are shuffled before they are divided into groups (shuffling BN), so that the statistics do not leak
    which key belongs to which query; as published, one group per GPU. dense: weight of the dense loss, 0 for none.
    dense_negatives: negatives of the dense loss: "images", pooled features of other images, or "local", local features
    of the same and of other images. min_scale: area of the smallest crop as a fraction of the image. color: strength of
    the color jitter, 1 as published. flip: which views are flipped horizontally: "half", each with probability 0.5, or
    "auto", the same but none if all objects in the images face one way. components: number of principal components that
    each stage of the trunk is reduced to when used as a representation; 0 keeps all channels.
    """

    later: ClassVar[Mapping[str, Any]] = {"dense_negatives": "images", "flip": "half", "components": 0}
    renamed: ClassVar[Mapping[str, str]] = {
        "rate": "lr",
        "decay": "weight_decay",
        "smallest": "min_scale",
        "strangers": "dense_negatives",
        "mirror": "flip",
    }

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
    min_scale: float = Field(default=0.2, gt=0, le=1)
    color: float = Field(default=1, ge=0)
    dense_negatives: Literal["images", "local"] = "images"
    flip: Literal["half", "auto"] = "half"
    components: int = Field(default=0, ge=0, le=64)

    @field_validator("dense_negatives", "flip", mode="before")
    @classmethod
    def _current_value(cls, value, info):
        values = {cls.renamed[setting]: names for setting, names in _OLD_VALUES.items()}[info.field_name]
        return values.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fit_together(self):
        batch, queue = self.batch, self.queue
        if queue < batch:
            raise BadRecipe(
                f"a batch of {batch} does not fit in a queue of {queue} keys; use a batch of {queue} or less"
            )
        # With one image per group and a last feature map of one cell, BatchNorm's variance would be undefined.
        if batch < 2 * self.groups:
            raise BadRecipe(
                f"a batch of {batch} cannot be divided into {self.groups} groups of two or more images; "
                f"use a batch of {2 * self.groups} or more"
            )
        if self.dense_negatives == "local" and not self.dense:
            raise BadRecipe("dense_negatives = 'local' needs the dense loss, but dense is 0; set it above 0")
        return self

    def _identity(self) -> dict:
        # With old values, so that fingerprints do not change.
        old = {setting: {new: old for old, new in names.items()} for setting, names in _OLD_VALUES.items()}
        return {key: old[key].get(value, value) if key in old else value for key, value in super()._identity().items()}


# For hundreds of images on two CPU cores. In a long queue, older keys of an image would be negatives of the same image,
# and a key encoder with a higher momentum would hardly move in a thousand steps. With a lower momentum, keys of
# different age differ so much that queries learn only to recognize the age.
_SMALL = MoCoRecipe(size=128, view=0.75, kimg=40, batch=32, lr=0.12, momentum=0.99, queue=128, groups=2, dense=0.5)
PRESETS = {
    # ImageNet for 200 epochs at 224 px on 8 GPUs, 67.5 % linear (v2, table 1).
    "moco-v2-paper": MoCoRecipe(size=256, view=0.875, kimg=256_000, batch=256, net="resnet50", groups=8),
    # Faces at 512 px for 800 epochs on 4 GPUs (GANORCON, section 4); kimg is for CelebAMask-HQ's 30,000 images. lr,
    # temperature, momentum and queue are not published; they are v2's.
    "ganorcon": MoCoRecipe(size=512, view=1.0, kimg=24_000, batch=32, net="resnet50", groups=4),
    "small-folder": _SMALL,
    # For a GPU, which a small batch does not use fully; the queue holds the same number of batches.
    "small-folder-gpu": _SMALL.changed(kimg=150, batch=128, queue=512),
    # More than a hundred epochs of a folder, 5 minutes on a GPU: enough to be clearly better than random
    # initialization.
    "small-folder-long": _SMALL.changed(
        kimg=800, batch=128, queue=384, dense=1, dense_negatives="local", color=0.4, flip="auto", components=64
    ),
}

# For local negatives: points of the same image closer than this share of a view are not negatives; the temperature; the
# number of keys that are queued per batch; the size of the queue.
_MIN_DISTANCE, _LOCAL_TEMPERATURE, _LOCAL_KEYS, _LOCAL_QUEUE = 0.15, 0.1, 512, 4096


class MoCo:
    """Objective with one phase. images: uint8 [n, s, s, 3] RGB, not copied. seed: of the initial weights."""

    PRESETS: ClassVar[Mapping[str, MoCoRecipe]] = PRESETS

    def __init__(self, images: UInt8[np.ndarray, "n s s 3"], recipe: MoCoRecipe, seed: int = 0):
        self.images, self.recipe = torch.from_numpy(images), recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trunk = ResNetTrunk(recipe.net, recipe.stem_stride)
            last = trunk.channels[-1]
            # Local features of the last two stages; the last one alone has only nine cells in a 96 px view. Local
            # negatives need a third, finer stage to be discriminated.
            self.levels = 3 if recipe.dense_negatives == "local" else 2
            query_nets: dict[str, nn.Module] = {"trunk": trunk, "head": MoCoProjectionHead(last, last, recipe.dim)}
            queues = {"queue": Queue(recipe.queue, recipe.dim)}
            if recipe.dense:
                query_nets["dense_head"] = MoCoProjectionHead(sum(trunk.channels[-self.levels :]), last, recipe.dim)
                keys = _LOCAL_QUEUE if recipe.dense_negatives == "local" else recipe.queue
                queues["dense_queue"] = Queue(keys, recipe.dim)
        self.flip = recipe.flip == "half" or not one_sided(images)
        self.query_nets = tuple(query_nets)
        self.modules = query_nets | {f"key_{name}": _momentum_copy(net) for name, net in query_nets.items()} | queues
        params = [p for net in query_nets.values() for p in net.parameters()]
        self.optimizer = torch.optim.SGD(params, lr=self.lr, momentum=0.9, weight_decay=recipe.weight_decay)
        self.new_keys: dict[str, torch.Tensor] = {}
        self.embedding_std = self.accuracy = torch.zeros(())

    @property
    def lr(self) -> float:
        """Initial learning rate for the batch of the recipe."""
        return self.recipe.lr * self.recipe.batch / 256

    def batch(self, rng: torch.Generator, images: int) -> Views:
        """Two views of each of `images` random images; images are repeated only if there are too few.

        Raises BadRecipe when a device's part of the batch has less than two images per group.
        """
        recipe, device = self.recipe, next(self.modules["trunk"].parameters()).device
        if images < 2 * recipe.groups:
            raise BadRecipe(
                f"{images} images per device cannot be divided into {recipe.groups} groups of two or more; "
                "raise the batch or use fewer devices"
            )
        side = round(recipe.size * recipe.view)
        return sample_pairs(self.images, images, side, recipe.min_scale, recipe.color, rng, device, self.flip)

    def phases(self) -> list[Phase]:
        """One phase: first views are queries, second views are keys."""
        return [Phase("loss", self.optimizer, self.loss)]

    def prepare(self, progress: float) -> None:
        """Cosine decay."""
        self.optimizer.param_groups[0]["lr"] = self.lr * (1 + math.cos(math.pi * progress)) / 2

    def finish(self, progress: float) -> dict[str, torch.Tensor]:
        """Momentum update of the key encoder; adds the new keys to the queues.

        Returns `spread` of the queries, a measure of collapse (see `embedding_std`), and `accuracy`, the share of
        queries that are closer to their own key than to any in the queue. BatchNorm's running statistics are not
        updated from the query encoder: the key encoder has those of its own batches, as published.
        """
        for name in self.query_nets:
            update_momentum(self.modules[name], self.modules[f"key_{name}"], self.recipe.momentum)
        for name, keys in self.new_keys.items():
            self.modules[name].push(all_gather(keys))
        return {"spread": self.embedding_std, "accuracy": self.accuracy}

    def trained(self) -> dict[str, torch.Tensor]:
        """Weights of the query encoder's trunk, under torchvision's names; everything else is not kept."""
        return self.modules["trunk"].state_dict()

    def loss(self, views: Views) -> torch.Tensor:
        """InfoNCE (equation 1) of global features, plus `dense` times that of local features.

        `finish` adds the keys to the queues.
        """
        nets, recipe = self.modules, self.recipe
        levels = in_groups(nets["trunk"], normalize(views.first), recipe.groups, self.levels)
        queries = self._embed("", levels, views.first_points)
        with torch.no_grad():
            levels = in_shuffled_groups(nets["key_trunk"], normalize(views.second), recipe.groups, self.levels)
            keys = self._embed("key_", levels, views.second_points)

        self.new_keys, self.embedding_std = {"queue": keys["head"]}, embedding_std(queries["head"].detach())
        loss, self.accuracy = info_nce(queries["head"], keys["head"], nets["queue"].keys, recipe.temperature)
        if recipe.dense:
            loss = loss + recipe.dense * self._dense_loss(queries["dense_head"], keys["dense_head"], views.first_points)
        return loss

    def _dense_loss(self, queries: torch.Tensor, keys: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        # Also sets the keys for the dense queue: a random subset of the local keys, or their mean per image.
        negatives = self.modules["dense_queue"].keys
        if self.recipe.dense_negatives == "images":
            # Negatives are pooled features of other images (DenseCL, section 3.3).
            pooled = keys.unflatten(0, (len(points), -1)).mean(1)
            self.new_keys["dense_queue"] = F.normalize(pooled, dim=1)
            return info_nce(queries, keys, negatives, self.recipe.temperature)[0]
        self.new_keys["dense_queue"] = keys[torch.randperm(len(keys), device=keys.device)[:_LOCAL_KEYS]]
        return dense_info_nce(points, queries, keys, negatives)

    def _embed(self, prefix: str, levels: tuple[torch.Tensor, ...], points: torch.Tensor) -> dict[str, torch.Tensor]:
        # Head -> unit-length embeddings: global [b, dim] and, for the dense loss, local [b * n, dim].
        features = {"head": levels[-1].mean(dim=(2, 3))}
        if self.recipe.dense:
            features["dense_head"] = point_features(levels, points)
        return {name: F.normalize(self.modules[prefix + name](x).float(), dim=1) for name, x in features.items()}


class Queue(nn.Module):
    """First-in, first-out queue of keys.

    The queue starts empty. The published code starts with random vectors; as long as these are in the queue, they train
    the encoder to make all images similar to each other and different from random vectors. size: capacity; at least the
    number of keys pushed at once. The keys are in buffers, so checkpoints contain them.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("places", torch.zeros(size, dim))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))

    @property
    def keys(self) -> Float[torch.Tensor, "k d"]:
        """The keys in the queue, in no particular order."""
        return self.places[: int(self.pushed)]

    @torch.no_grad()
    def push(self, keys: Float[torch.Tensor, "b d"]) -> None:
        """Adds keys; if the queue is full, they replace the oldest ones."""
        index = int(self.pushed) + torch.arange(len(keys), device=keys.device)
        self.places[index % len(self.places)] = keys
        self.pushed += len(keys)


def info_nce(
    queries: Float[torch.Tensor, "b d"],
    keys: Float[torch.Tensor, "b d"],
    negatives: Float[torch.Tensor, "k d"],
    temperature: float,
) -> tuple[Float[torch.Tensor, ""], Float[torch.Tensor, ""]]:
    """InfoNCE loss (MoCo, equation 1) and its top-1 accuracy.

    queries, keys, negatives: unit vectors; the positive of a query is the key in the same row. The accuracy is the
    share of queries that are closer to their positive than to all negatives.
    """
    # In float32, because bf16 would round similarities of close vectors to the same number.
    with torch.autocast(queries.device.type, enabled=False):
        positive, negative = (queries * keys).sum(1, keepdim=True), queries @ negatives.T
        target = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
        loss = F.cross_entropy(torch.cat([positive, negative], dim=1) / temperature, target)
    return loss, (positive > negative).all(1).float().mean()


def dense_info_nce(
    points: Float[torch.Tensor, "b n 2"],
    queries: Float[torch.Tensor, "b*n d"],
    keys: Float[torch.Tensor, "b*n d"],
    negatives: Float[torch.Tensor, "k d"],
) -> Float[torch.Tensor, ""]:
    """InfoNCE loss of local features, with negatives from the other points of the same image and from `negatives`.

    points: (x, y) of the queries in [-1, 1] of their view; points that are close to each other are not negatives of
    each other. queries, keys, negatives: unit vectors.
    """
    images, count = points.shape[:2]
    with torch.autocast(queries.device.type, enabled=False):
        same_image = queries.view(images, count, -1) @ keys.view(images, count, -1).transpose(1, 2)
        identity = torch.eye(count, dtype=torch.bool, device=points.device)
        close = (torch.cdist(points, points) < 2 * _MIN_DISTANCE) & ~identity
        logits = torch.cat([same_image.masked_fill(close, -torch.inf).flatten(0, 1), queries @ negatives.T], dim=1)
        target = torch.arange(count, device=points.device).repeat(images)
        return F.cross_entropy(logits / _LOCAL_TEMPERATURE, target)


def in_groups(
    trunk: nn.Module, images: Float[torch.Tensor, "b 3 h w"], groups: int, levels: int
) -> tuple[Float[torch.Tensor, "b _ _ _"], ...]:
    """The last `levels` feature maps of the trunk, which processes the batch in `groups` parts one after the other."""
    parts = [trunk(part)[-levels:] for part in images.tensor_split(groups)]
    return tuple(torch.cat(level) for level in zip(*parts, strict=True))


def in_shuffled_groups(
    trunk: nn.Module, images: Float[torch.Tensor, "b 3 h w"], groups: int, levels: int
) -> tuple[Float[torch.Tensor, "b _ _ _"], ...]:
    """Like `in_groups`, but shuffled before and unshuffled afterwards (shuffling BN), by torch's global generator."""
    shuffled, order = batch_shuffle(images)
    return tuple(batch_unshuffle(level, order) for level in in_groups(trunk, shuffled, groups, levels))


def all_gather(keys: Float[torch.Tensor, "_ d"]) -> Float[torch.Tensor, "_ d"]:
    """The keys of all processes of a distributed run, in the same order in each process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return concat_all_gather(keys)
    return keys


def _momentum_copy(net: nn.Module) -> nn.Module:
    momentum_net = copy.deepcopy(net)
    deactivate_requires_grad(momentum_net)
    return momentum_net
