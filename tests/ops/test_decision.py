"""Offsets for the largest overlap: against the thresholds that a search finds, and without what class weights added."""

import pytest
import torch

from partshot.ops.decision import overlap_offsets


def two_classes(count=20000, share=0.15, signal=1.5, seed=0):
    """Log posteriors of a rare class and a common one, exactly calibrated, [1, 2, 1, n], and the truth."""
    rng = torch.Generator().manual_seed(seed)
    truth = torch.rand(count, generator=rng) < share
    seen = torch.randn(count, generator=rng) + signal * truth
    rare = torch.log(torch.tensor(share / (1 - share))) + signal * seen - signal**2 / 2
    return torch.stack([torch.zeros(count), rare])[None, :, None], truth


def mean_iou(predicted, truth):
    """Over both classes."""
    pairs = ((predicted, truth), (~predicted, ~truth))
    return sum(float((a & b).sum() / (a | b).sum()) for a, b in pairs) / 2


def test_the_threshold_of_a_rare_class_is_nearly_the_one_that_a_search_finds():
    logits, truth = two_classes()
    offsets = overlap_offsets(logits, torch.zeros(2), 1.0)
    found = mean_iou((logits + offsets[:, None, None])[0].argmax(0)[0] == 1, truth)
    margin = logits[0, 1, 0]
    best = max(mean_iou(margin > float(limit), truth) for limit in torch.linspace(-3, 3, 121))
    plain = mean_iou(margin > 0, truth)
    assert plain < best - 0.02
    assert found > best - 0.005


def test_what_class_weights_added_is_taken_off():
    logits, _ = two_classes()
    lean = torch.tensor([0.0, 1.2])
    plain = overlap_offsets(logits, torch.zeros(2), 1.0)
    weighted = overlap_offsets(logits + lean[:, None, None], lean, 1.0)
    torch.testing.assert_close(weighted, plain - lean)


def test_networks_that_are_too_sure_are_cooled():
    logits, _ = two_classes()
    torch.testing.assert_close(
        overlap_offsets(2 * logits, torch.zeros(2), 2.0), 2 * overlap_offsets(logits, torch.zeros(2), 1.0)
    )


def test_a_class_that_is_nowhere_stays_out():
    logits, _ = two_classes(2000)
    nowhere = torch.full_like(logits[:, :1], -50)
    offsets = overlap_offsets(torch.cat([logits, nowhere], 1), torch.zeros(3), 1.5)
    assert torch.isfinite(offsets).all()
    assert int((torch.cat([logits, nowhere], 1) + offsets[:, None, None]).argmax(1).max()) == 1


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sure_classes_are_left_alone(temperature):
    ids = torch.arange(300).reshape(1, 1, 300) % 3
    logits = 40 * torch.nn.functional.one_hot(ids, 3).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(overlap_offsets(logits, torch.zeros(3), temperature), torch.zeros(3), atol=1e-3, rtol=0)
