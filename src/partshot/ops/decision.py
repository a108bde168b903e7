"""Class offsets that turn probabilities into the labels with the highest expected IoU.

The most probable class minimizes the number of wrong pixels. It does not maximize the IoU. A class reaches its highest
F1, and therefore its highest IoU, when it is predicted wherever its probability exceeds half of the F1 that is reached
in this way (Lipton, Elkan and Narayanaswamy, "Optimal Thresholding of Classifiers to Maximize F1 Measure", ECML 2014).
Classes that are hard to recognize get a lower threshold. The F1 is estimated from the probabilities, so no labels are
needed.
"""

import torch
from jaxtyping import Float

# Lowest threshold; a class that is never predicted would otherwise get a threshold of 0.
_MIN_THRESHOLD = 0.02
_ITERATIONS = 15


def overlap_offsets(
    logits: Float[torch.Tensor, "n k h w"], logit_adjustment: Float[torch.Tensor, " k"], temperature: float
) -> Float[torch.Tensor, " k"]:
    """Returns one offset per class; the argmax of logits + offsets has the highest expected IoU.

    logits: of unlabeled images of the same kind. logit_adjustment: the amount by which class weights in training raised
    each class's logits above its log posterior. temperature: above 0; logits are divided by it before they are used as
    log posteriors, because networks trained on their own pseudo-labels are overconfident. The first offset is 0.
    """
    probabilities = ((logits.float() - logit_adjustment[:, None, None]) / temperature).softmax(1)
    count = probabilities.shape[1]
    flat = probabilities.permute(0, 2, 3, 1).reshape(-1, count)
    expected, thresholds = flat.sum(0), torch.full((count,), 0.5)
    for _ in range(_ITERATIONS):
        predicted = (flat / thresholds).argmax(1)
        overlap = torch.bincount(predicted, flat.gather(1, predicted[:, None])[:, 0], count)
        f1 = 2 * overlap / (expected + torch.bincount(predicted, minlength=count)).clamp(min=1e-6)
        # Damped by one half; otherwise two classes can oscillate.
        thresholds = (thresholds + (f1 / 2).clamp(min=_MIN_THRESHOLD)) / 2
    offsets = -logit_adjustment - temperature * thresholds.log()
    return offsets - offsets[0]
