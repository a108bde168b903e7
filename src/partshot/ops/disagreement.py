"""Predictions and uncertainty of an ensemble: entropy, Jensen-Shannon divergence, majority vote, uncertainty filter.

The Jensen-Shannon divergence is the entropy of the mean prediction minus the mean entropy of the members. It is high
where members are confident of different classes, and low where all members are equally unsure. It is computed from
probabilities. DatasetGAN's release averaged logits first until September 2021, which measures something else.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Integer

from partshot.errors import BadRecipe

# Fraction of an image's pixels that its score is averaged over, as in DatasetGAN's and DDPM-segmentation's code.
_TOP_FRACTION = 0.1


class EnsembleVote(NamedTuple):
    """labels: uint8 [b, h, w], majority vote. probabilities: [b, k, h, w], mean over the members.

    disagreement: [b, h, w], Jensen-Shannon divergence, 0..log(min(members, k)).
    """

    labels: torch.Tensor
    probabilities: torch.Tensor
    disagreement: torch.Tensor


def entropy(probabilities: Float[torch.Tensor, "..."], dim: int) -> Float[torch.Tensor, "..."]:
    """Shannon entropy in nats along `dim`, which is removed; 0 log 0 is 0."""
    return -torch.special.xlogy(probabilities, probabilities).sum(dim)


def vote_with_uncertainty(members: Iterable[Float[torch.Tensor, "b k h w"]]) -> EnsembleVote:
    """Majority vote, mean probabilities and disagreement of an ensemble.

    members: probabilities [b, k, h, w] of each member. They are consumed one by one, so an iterator needs the memory of
    one member only. At most 256 classes.
    """
    total, member_entropy, votes = 0.0, 0.0, []
    for probabilities in members:
        total, member_entropy = total + probabilities, member_entropy + entropy(probabilities, 1)
        votes.append(probabilities.argmax(1).byte())
    mean = total / len(votes)
    # Rounding can make the difference slightly negative.
    disagreement = (entropy(mean, 1) - member_entropy / len(votes)).clamp(min=0)
    return EnsembleVote(vote(torch.stack(votes), mean.shape[1]), mean, disagreement)


def jensen_shannon(members: Float[torch.Tensor, "m b k h w"]) -> Float[torch.Tensor, "b h w"]:
    """Entropy of the mean of the members' probabilities minus the mean of their entropies, in nats.

    0 where all members predict the same probabilities; at most log(min(m, k)). Source: DatasetGAN, section 3.2.
    """
    return vote_with_uncertainty(members).disagreement


def vote(labels: Integer[torch.Tensor, "m b h w"], classes: int) -> Integer[torch.Tensor, "b h w"]:
    """Majority vote per pixel; ties go to the lowest id. labels: 0..classes-1; the result has their dtype."""
    counts = torch.zeros(classes, *labels.shape[1:], dtype=torch.int16, device=labels.device)
    one = torch.ones(1, dtype=torch.int16, device=labels.device)
    for member in labels:
        counts.scatter_add_(0, member.long()[None], one.expand(1, *member.shape))
    # argmax returns the first of equal maxima, which is the lowest id.
    return counts.argmax(0).to(labels.dtype)


def image_score(disagreement: Float[torch.Tensor, "b h w"]) -> Float[torch.Tensor, " b"]:
    """Uncertainty of each image: the mean of its most uncertain 10 % of pixels, at least one pixel.

    Source: DatasetGAN's and DDPM-segmentation's released code.
    """
    pixels = disagreement.flatten(1)
    return pixels.topk(math.ceil(_TOP_FRACTION * pixels.shape[1]), dim=1).values.mean(1)


def keep_by_score(scores: Float[torch.Tensor, " n"], share: float) -> Int64[torch.Tensor, " kept"]:
    """Indices, ascending, that remain when the most uncertain `share` (0 <= share < 1, rounded down) is removed.

    At least one remains; among equal scores the first ones remain. The published filter sorts likewise but keeps the
    slice [30 : 30 - n * share]. It therefore drops the 30 least uncertain images as well, and all images when
    n * share <= 30.

    Raises BadRecipe for any other share.
    """
    if not 0 <= share < 1:
        raise BadRecipe(f"the share of images to leave out is {share:g}; give 0 to less than 1")
    # The small constant corrects products such as 0.29 * 100, which are rounded below their exact value.
    kept = len(scores) - math.floor(len(scores) * share + 1e-9)
    return scores.argsort(stable=True)[:kept].sort().values
