"""Offsets for the highest expected IoU: against a search over thresholds, and with class weights compensated."""

import pytest
import torch

from partshot.ops.decision import overlap_offsets


def two_classes(count=20000, share=0.15, signal=1.5, seed=0):
    """Exactly calibrated log posteriors of a common and a rare class, [1, 2, 1, n], and the truth."""
    rng = torch.Generator().manual_seed(seed)
    truth = torch.rand(count, generator=rng) < share
    observed = torch.randn(count, generator=rng) + signal * truth
    rare = torch.log(torch.tensor(share / (1 - share))) + signal * observed - signal**2 / 2
    return torch.stack([torch.zeros(count), rare])[None, :, None], truth


def mean_iou(predicted, truth):
    """Over both classes."""
    pairs = ((predicted, truth), (~predicted, ~truth))
    return sum(float((a & b).sum() / (a | b).sum()) for a, b in pairs) / 2


def test_offsets_give_almost_the_best_iou_of_a_threshold_search():
    logits, truth = two_classes()
    offsets = overlap_offsets(logits, torch.zeros(2), 1.0)
    found = mean_iou((logits + offsets[:, None, None])[0].argmax(0)[0] == 1, truth)
    margin = logits[0, 1, 0]
    best = max(mean_iou(margin > float(limit), truth) for limit in torch.linspace(-3, 3, 121))
    plain = mean_iou(margin > 0, truth)
    assert plain < best - 0.02
    assert found > best - 0.005


def test_class_weights_are_compensated():
    logits, _ = two_classes()
    adjustment = torch.tensor([0.0, 1.2])
    plain = overlap_offsets(logits, torch.zeros(2), 1.0)
    weighted = overlap_offsets(logits + adjustment[:, None, None], adjustment, 1.0)
    torch.testing.assert_close(weighted, plain - adjustment)


def test_temperature_corrects_overconfident_logits():
    logits, _ = two_classes()
    torch.testing.assert_close(
        overlap_offsets(2 * logits, torch.zeros(2), 2.0), 2 * overlap_offsets(logits, torch.zeros(2), 1.0)
    )


def test_an_absent_class_is_never_predicted():
    logits, _ = two_classes(2000)
    absent = torch.full_like(logits[:, :1], -50)
    offsets = overlap_offsets(torch.cat([logits, absent], 1), torch.zeros(3), 1.5)
    assert torch.isfinite(offsets).all()
    assert int((torch.cat([logits, absent], 1) + offsets[:, None, None]).argmax(1).max()) == 1


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_confident_logits_get_zero_offsets(temperature):
    ids = torch.arange(300).reshape(1, 1, 300) % 3
    logits = 40 * torch.nn.functional.one_hot(ids, 3).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(overlap_offsets(logits, torch.zeros(3), temperature), torch.zeros(3), atol=1e-3, rtol=0)
