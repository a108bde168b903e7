"""Disagreement against scipy, votes against a loop, and the uncertainty filter."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from partshot.errors import BadRecipe
from partshot.ops.disagreement import entropy, image_score, jensen_shannon, keep_by_score, vote, vote_with_uncertainty


def predictions(members=5, classes=4, sharpness=3.0, seed=0):
    """Probabilities [m, 2, k, 6, 7]."""
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(members, 2, classes, 6, 7, generator=rng, dtype=torch.float64) * sharpness).softmax(2)


def one_hot(*ids, classes=4):
    """One-hot predictions of one pixel, one for each member."""
    return torch.nn.functional.one_hot(torch.tensor(ids), classes).double().view(len(ids), 1, classes, 1, 1)


def test_entropy_equals_scipy():
    probabilities = predictions()
    np.testing.assert_allclose(entropy(probabilities, 2), scipy_entropy(probabilities.numpy(), axis=2), rtol=1e-12)
    assert torch.equal(entropy(torch.eye(3), 0), torch.zeros(3))


def test_divergence_of_two_members_is_the_square_of_scipys_distance():
    two = predictions(members=2)
    expected = jensenshannon(*two.numpy(), axis=1) ** 2
    np.testing.assert_allclose(jensen_shannon(two), expected, rtol=1e-9, atol=1e-12)


def test_divergence_is_the_mean_kl_divergence_from_the_mean_prediction():
    members = predictions(members=6)
    mean = members.mean(0).numpy()
    expected = np.mean([scipy_entropy(one, mean, axis=1) for one in members.numpy()], axis=0)
    np.testing.assert_allclose(jensen_shannon(members), expected, rtol=1e-9, atol=1e-12)


def test_equally_unsure_members_do_not_disagree():
    uniform = torch.full((3, 1, 4, 1, 1), 0.25)
    assert float(jensen_shannon(uniform)) == pytest.approx(0, abs=1e-7)
    assert float(jensen_shannon(one_hot(0, 1, 2, 3))) == pytest.approx(np.log(4))
    assert float(jensen_shannon(one_hot(0, 1, 2, 3, 4, 5, classes=6))) == pytest.approx(np.log(6))
    # Two members can differ by at most log(2).
    assert float(jensen_shannon(one_hot(0, 5, classes=9))) == pytest.approx(np.log(2))


def test_probabilities_are_averaged_and_not_logits():
    # Two members with opposite logits: the mean of the logits is 0 in both cases.
    confident, unsure = torch.tensor([9.0, -9.0]), torch.tensor([0.1, -0.1])
    opposite = [torch.stack([z, -z]).softmax(1).view(2, 1, 2, 1, 1) for z in (confident, unsure)]
    assert float(jensen_shannon(opposite[0])) > 0.99 * np.log(2)
    assert float(jensen_shannon(opposite[1])) < 0.01


def test_members_can_be_given_one_by_one():
    members = predictions()
    result = vote_with_uncertainty(iter(members))
    torch.testing.assert_close(result.probabilities, members.mean(0))
    assert torch.equal(result.disagreement, jensen_shannon(members))
    assert torch.equal(result.labels, vote(members.argmax(2).byte(), 4))
    assert result.labels.dtype == torch.uint8 and float(result.disagreement.min()) >= 0


@pytest.mark.parametrize("members", [1, 2, 5])
def test_majority_vote_with_ties_to_the_lowest_id(members):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (members, 2, 5, 6))
    expected = np.zeros((2, 5, 6), int)
    for pixel in np.ndindex(2, 5, 6):
        votes = [int(member[pixel]) for member in labels]
        expected[pixel] = max(range(4), key=lambda k: (votes.count(k), -k))
    assert np.array_equal(vote(torch.from_numpy(labels), 4), expected)


def test_image_score_is_the_mean_of_the_highest_tenth():
    rng = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 7, 9, generator=rng)
    expected = [np.sort(one.numpy().ravel())[-7:].mean() for one in maps]
    np.testing.assert_allclose(image_score(maps), expected, rtol=1e-6)
    assert float(image_score(torch.tensor([[[0.5]]]))) == 0.5


def test_the_filter_drops_only_the_most_uncertain_share():
    scores = torch.rand(100, generator=torch.Generator().manual_seed(0))
    for share, kept in ((0.0, 100), (0.1, 90), (0.29, 71), (0.5, 50), (0.999, 1)):
        found = keep_by_score(scores, share)
        assert len(found) == kept and torch.equal(found, found.sort().values)
        assert set(found.tolist()) == set(np.argsort(scores.numpy())[:kept].tolist())


def test_the_filter_keeps_at_least_one():
    # The published slice is empty here: n * share is below 30.
    assert keep_by_score(torch.tensor([0.3, 0.1, 0.2]), 0.1).tolist() == [0, 1, 2]
    assert keep_by_score(torch.tensor([0.3, 0.1, 0.2]), 0.4).tolist() == [1, 2]
    assert keep_by_score(torch.zeros(1), 0.9).tolist() == [0]
    assert keep_by_score(torch.zeros(4), 0.5).tolist() == [0, 1]


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(BadRecipe, match="give 0 to less than 1"):
        keep_by_score(torch.zeros(3), share)
