"""Compares the ensemble with its members, each implemented as the published network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partshot.heads import ensemble
from partshot.heads.ensemble import Ensemble
from partshot.ops.hypercolumn import stack
from partshot.pyramid import Pyramid

SHAPES = ((3, 32, 40), (4, 16, 20), (5, 16, 20), (6, 4, 5))
CHANNELS = tuple(c for c, _, _ in SHAPES)


def make_pyramid(batch=2):
    rng = torch.Generator().manual_seed(0)
    return Pyramid(tuple(torch.randn(batch, c, h, w, generator=rng) for c, h, w in SHAPES), (32, 40))


def with_random_weights(head: Ensemble) -> Ensemble:
    """Replaces all weights, biases and statistics by random values, as if the head had been fitted."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in [*head.parameters(), *(n.running_mean for n in head.norms)]:
            tensor.copy_(torch.randn(tensor.shape, generator=rng) * 0.3)
        for norm in head.norms:
            norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=rng) + 0.5)
    return head.eval()


def alone(head: Ensemble, i: int) -> nn.Sequential:
    """Member i as in the published code."""

    def own(tensor):
        return tensor.detach().unflatten(0, (head.count, -1))[i].squeeze()

    dense = torch.cat(list(head.first.weights), 1)
    weights = [own(dense), *(own(w) for w in head.weights)]
    biases = [own(head.first.bias), *(own(b) for b in head.biases)]
    layers = []
    for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        linear = nn.Linear(*reversed(weight.shape))
        linear.weight.data, linear.bias.data = weight.clone(), bias.clone()
        layers.append(linear)
        if place < 2:
            norm, mine = nn.BatchNorm1d(weight.shape[0]), head.norms[place]
            norm.weight.data, norm.bias.data = own(mine.weight).clone(), own(mine.bias).clone()
            norm.running_mean, norm.running_var = own(mine.running_mean).clone(), own(mine.running_var).clone()
            layers += [nn.ReLU(), norm]
    return nn.Sequential(*layers)


def pixels_of(pyramid):
    """The hypercolumn as in the published code: [pixels, channels]."""
    return stack(pyramid).permute(0, 2, 3, 1).flatten(0, 2)


@pytest.mark.parametrize("classes", [6, 33])
def test_every_member_equals_the_published_network(classes):
    head, pyramid = with_random_weights(Ensemble(CHANNELS, classes, members=3)), make_pyramid()
    with torch.no_grad():
        found = head.members(pyramid)
        assert found.shape == (3, 2, classes, 32, 40)
        for i in range(3):
            expected = alone(head, i).eval()(pixels_of(pyramid)).softmax(1).unflatten(0, (2, 32, 40))
            torch.testing.assert_close(found[i].permute(0, 2, 3, 1), expected, atol=1e-5, rtol=1e-4)


def test_the_output_is_the_mean_of_the_members_probabilities():
    head, pyramid = with_random_weights(Ensemble(CHANNELS, 6)), make_pyramid()
    with torch.no_grad():
        logits, members = head(pyramid), head.members(pyramid)
    torch.testing.assert_close(logits.softmax(1), members.mean(0), atol=1e-6, rtol=1e-5)
    assert torch.isfinite(logits).all() and members.shape[0] == 10


@pytest.mark.parametrize("room", [1, 4 * 128 * 2 * 32 * 40 * 4])
def test_computing_members_in_slices_gives_the_same_result(monkeypatch, room):
    head, pyramid = with_random_weights(Ensemble(CHANNELS, 6)), make_pyramid()
    with torch.no_grad():
        whole = head.members(pyramid)
        monkeypatch.setattr(ensemble, "_ROOM", room)
        torch.testing.assert_close(head.members(pyramid), whole, atol=1e-6, rtol=1e-5)


def test_in_training_every_member_uses_the_batch_statistics_of_its_own_pixels():
    head = with_random_weights(Ensemble((7,), 6, members=3))
    rows = torch.randn(3, 64, 7, generator=torch.Generator().manual_seed(2))
    apart = [alone(head, i).train() for i in range(3)]
    hidden = torch.stack([net[0](one).t() for net, one in zip(apart, rows, strict=True)])
    expected = torch.stack([net(one).t() for net, one in zip(apart, rows, strict=True)])
    torch.testing.assert_close(head.train().later_layers(hidden.detach()), expected, atol=1e-5, rtol=1e-4)
    # The running statistics are also updated per member.
    for place, at in ((0, 2), (1, 5)):
        for name in ("running_mean", "running_var"):
            stored = getattr(head.norms[place], name).unflatten(0, (3, -1))
            torch.testing.assert_close(stored, torch.stack([getattr(net[at], name) for net in apart]))


@pytest.mark.parametrize(("classes", "widths"), [(2, (128, 32)), (31, (128, 32)), (32, (256, 128)), (34, (256, 128))])
def test_widths_and_initial_weights_are_as_published(classes, widths):
    head = Ensemble((50, 60), classes)
    assert head.first.weights[0].shape == (10 * widths[0], 50)
    assert [w.shape for w in head.weights] == [(10, widths[1], widths[0]), (10, classes, widths[1])]
    assert all(float(b.abs().max()) == 0 for b in [head.first.bias, *head.biases])
    assert float(torch.cat([w.flatten() for w in head.first.weights]).std()) == pytest.approx(0.02, rel=0.02)
    assert not torch.equal(head.weights[0][0], head.weights[0][1])


def test_gradients_of_whole_images_reach_every_weight():
    head, pyramid = with_random_weights(Ensemble(CHANNELS, 6)), make_pyramid(1)
    ids = torch.zeros(1, 32, 40, dtype=torch.long)
    F.cross_entropy(head(pyramid), ids).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in head.parameters())
