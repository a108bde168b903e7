"""Which class a pixel gets from its probabilities, when the overlap of whole masks is what counts.

The most probable class makes the fewest wrong pixels, not the largest overlap. A class has its largest F1, and with it
its largest IoU, when it is predicted wherever its probability exceeds half of the F1 that it reaches then (Lipton,
Elkan and Narayanaswamy, "Optimal Thresholding of Classifiers to Maximize F1 Measure", ECML 2014): classes that are
hard to tell from a lower probability. What a class reaches is estimated from probabilities alone, so no labels are
needed. Knows logits; refuses to know networks and images.
"""

import torch
from jaxtyping import Float

# No class from a lower probability: what is never predicted would have a threshold of 0.
_LEAST = 0.02
_ROUNDS = 15


def overlap_offsets(
    logits: Float[torch.Tensor, "n k h w"], lean: Float[torch.Tensor, " k"], temperature: float
) -> Float[torch.Tensor, " k"]:
    """Offsets, one for each class, on logits, with which their argmax has the largest expected overlaps.

    logits: of some images of the kind. lean: by how much class weights in training raised each class's logits over its
    log posterior. temperature: above 0; by what the logits are divided before they count as log posteriors, since
    networks that learn from their own pseudo-labels are too sure. The first class's offset is 0.
    """
    shares = ((logits.float() - lean[:, None, None]) / temperature).softmax(1)
    count = shares.shape[1]
    flat = shares.permute(0, 2, 3, 1).reshape(-1, count)
    expected, thresholds = flat.sum(0), torch.full((count,), 0.5)
    for _ in range(_ROUNDS):
        chosen = (flat / thresholds).argmax(1)
        overlap = torch.bincount(chosen, flat.gather(1, chosen[:, None])[:, 0], count)
        f1 = 2 * overlap / (expected + torch.bincount(chosen, minlength=count)).clamp(min=1e-6)
        # Halfway, or two classes may take turns.
        thresholds = (thresholds + (f1 / 2).clamp(min=_LEAST)) / 2
    offsets = -lean - temperature * thresholds.log()
    return offsets - offsets[0]
