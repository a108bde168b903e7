"""Which class a pixel gets from its probabilities, when the overlap of whole masks is what counts.

The most probable class makes the fewest wrong pixels, not the largest overlap. A class has its largest F1, and with it
its largest IoU, when it is predicted wherever its probability exceeds half of the F1 that it reaches then (Lipton,
Elkan and Narayanaswamy, "Optimal Thresholding of Classifiers to Maximize F1 Measure", ECML 2014): classes that are
hard to tell from a lower probability. What a class reaches is estimated from probabilities alone, so no labels are
needed. Knows logits; refuses to know networks and images.
"""

import torch
from jaxtyping import Float
from torch.nn.functional import one_hot

# No class from a lower probability: what is never predicted would have a threshold of 0.
_LEAST = 0.02
_ROUNDS = 30


def overlap_offsets(
    logits: Float[torch.Tensor, "n k h w"], lean: Float[torch.Tensor, " k"], temperature: float
) -> Float[torch.Tensor, " k"]:
    """Offsets, one for each class, on logits, with which their argmax has the largest expected overlaps.

    logits: of some images of the kind. lean: by how much class weights in training raised each class's logits over its
    log posterior. temperature: above 0; by what the logits are divided before they count as log posteriors, since
    networks that learn from their own pseudo-labels are too sure. The first class's offset is 0.
    """
    shares = ((logits.float() - lean[:, None, None]) / temperature).softmax(1)
    flat = shares.transpose(0, 1).flatten(1)
    thresholds = torch.full((len(flat),), 0.5)
    for _ in range(_ROUNDS):
        chosen = one_hot((flat / thresholds[:, None]).argmax(0), len(flat)).T.float()
        f1 = 2 * (flat * chosen).sum(1) / (flat.sum(1) + chosen.sum(1)).clamp(min=1e-6)
        # Halfway, or two classes may take turns.
        thresholds = (thresholds + (f1 / 2).clamp(min=_LEAST)) / 2
    offsets = -lean - temperature * thresholds.log()
    return offsets - offsets[0]
