"""Soft labels store the top-k classes as bytes and return probabilities."""

import torch

from partshot.data.soft_labels import SoftLabels


def probabilities(n=3, k=5, side=8, sharp=3.0):
    return (torch.randn(n, k, side, side, generator=torch.Generator().manual_seed(0)) * sharp).softmax(1)


def test_classes_are_stored_as_bytes_most_probable_first():
    soft = SoftLabels.of(probabilities())
    assert soft.ids.dtype == soft.probabilities.dtype == torch.uint8
    assert soft.ids.shape == soft.probabilities.shape == (3, 2, 8, 8)
    assert (soft.probabilities[:, 0] >= soft.probabilities[:, 1]).all()
    assert torch.equal(soft.ids[:, 0].long(), probabilities().argmax(1))
    assert (len(soft), soft.classes) == (3, 5)


def test_two_classes_keep_their_probabilities():
    given = probabilities(k=2)
    read = SoftLabels.of(given).read(torch.tensor([2, 0]), 8)
    torch.testing.assert_close(read, given[[2, 0]], atol=0.01, rtol=0)


def test_kept_classes_are_renormalized():
    given = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    read = SoftLabels.of(given).read(torch.tensor([0]), 4)
    torch.testing.assert_close(read[0, :, 0, 0], torch.tensor([0.625, 0.375, 0]), atol=0.005, rtol=0)


def test_other_sizes_still_sum_to_one():
    soft = SoftLabels.of(probabilities())
    for size in (4, 8, 16):
        read = soft.read(torch.tensor([0, 1]), size)
        assert read.shape == (2, 5, size, size)
        torch.testing.assert_close(read.sum(1), torch.ones(2, size, size))


def test_join_concatenates_batches():
    whole, first, rest = (SoftLabels.of(p) for p in (probabilities(), probabilities()[:1], probabilities()[1:]))
    joined = SoftLabels.join([first, rest])
    assert torch.equal(joined.ids, whole.ids) and torch.equal(joined.probabilities, whole.probabilities)
    assert (len(joined), joined.classes) == (3, 5)
