"""What several members say together, and how far they disagree: entropy, Jensen-Shannon divergence, votes, a filter.

Members disagree where their opinions, each sure of itself, differ: the divergence is the part of the mean's entropy
that is not the members' own doubt. It is taken of probabilities. Averaging logits first, as DatasetGAN's release did
until September 2021, measures something else. Knows probabilities and labels; refuses to know networks and images.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Integer

from partshot.errors import BadRecipe

# Of each image, the share of its pixels that decides its score, as in DatasetGAN's and DDPM-segmentation's code.
_TOP = 0.1


class EnsembleVote(NamedTuple):
    """labels: uint8 [b, h, w], the majority's. probabilities: [b, k, h, w], the members' mean.

    disagreement: [b, h, w], Jensen-Shannon divergence, 0..log(min(members, k)).
    """

    labels: torch.Tensor
    probabilities: torch.Tensor
    disagreement: torch.Tensor


def entropy(probabilities: Float[torch.Tensor, "..."], dim: int) -> Float[torch.Tensor, "..."]:
    """Shannon entropy in nats along a dimension, which goes away; 0 log 0 is 0."""
    return -torch.special.xlogy(probabilities, probabilities).sum(dim)


def verdict(members: Iterable[Float[torch.Tensor, "b k h w"]]) -> EnsembleVote:
    """What members say together. members: probabilities [b, k, h, w], one after the other: they need not all be there.

    At most 256 classes.
    """
    total, doubt, ballots = 0.0, 0.0, []
    for shares in members:
        total, doubt = total + shares, doubt + entropy(shares, 1)
        ballots.append(shares.argmax(1).byte())
    mean = total / len(ballots)
    # Rounding may make it a little less than nothing.
    disagreement = (entropy(mean, 1) - doubt / len(ballots)).clamp(min=0)
    return EnsembleVote(vote(torch.stack(ballots), mean.shape[1]), mean, disagreement)


def jensen_shannon(members: Float[torch.Tensor, "m b k h w"]) -> Float[torch.Tensor, "b h w"]:
    """Entropy of the mean of the members' probabilities minus the mean of their entropies, in nats.

    0 where all say the same, however unsure; log(min(m, k)) is the most. Source: DatasetGAN, section 3.2.
    """
    return verdict(members).disagreement


def vote(labels: Integer[torch.Tensor, "m b h w"], classes: int) -> Integer[torch.Tensor, "b h w"]:
    """The label that most members give; of equals the lowest. labels: 0..classes-1; the result is of their type."""
    counts = torch.zeros(classes, *labels.shape[1:], dtype=torch.int16, device=labels.device)
    one = torch.ones(1, dtype=torch.int16, device=labels.device)
    for given in labels:
        counts.scatter_add_(0, given.long()[None], one.expand(1, *given.shape))
    # The first of equal maxima is the lowest id.
    return counts.argmax(0).to(labels.dtype)


def image_score(disagreement: Float[torch.Tensor, "b h w"]) -> Float[torch.Tensor, " b"]:
    """How uncertain whole images are: the mean of the tenth of their pixels that is highest, at least one.

    Source: DatasetGAN's and DDPM-segmentation's released code.
    """
    pixels = disagreement.flatten(1)
    return pixels.topk(math.ceil(_TOP * pixels.shape[1]), dim=1).values.mean(1)


def keep_by_score(scores: Float[torch.Tensor, " n"], share: float) -> Int64[torch.Tensor, " kept"]:
    """Indices, ascending, of what is left without the most uncertain `share`, 0 to less than 1, rounded down.

    At least one is left; of equal scores the first ones. The published filter sorts likewise, but keeps the slice
    [30 : 30 - n * share]: it drops the 30 least uncertain images as well, and all of them when n * share <= 30.

    Raises BadRecipe for any other share.
    """
    if not 0 <= share < 1:
        raise BadRecipe(f"the share of images to leave out is {share:g}; give 0 to less than 1")
    # The small number is for products such as 0.29 * 100, a rounding below what they should be.
    kept = len(scores) - math.floor(len(scores) * share + 1e-9)
    return scores.argsort(stable=True)[:kept].sort().values
