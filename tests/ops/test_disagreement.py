"""Disagreement against scipy's entropies, votes against a loop, the filter against what it promises."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from partshot.errors import BadRecipe
from partshot.ops.disagreement import entropy, image_score, jensen_shannon, keep_by_score, verdict, vote


def opinions(members=5, classes=4, sharpness=3.0, seed=0):
    """Probabilities [m, 2, k, 6, 7]."""
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(members, 2, classes, 6, 7, generator=rng, dtype=torch.float64) * sharpness).softmax(2)


def certain(*ids, classes=4):
    """One pixel, of which each member is certain."""
    return torch.nn.functional.one_hot(torch.tensor(ids), classes).double().view(len(ids), 1, classes, 1, 1)


def test_entropy_is_scipys():
    shares = opinions()
    np.testing.assert_allclose(entropy(shares, 2), scipy_entropy(shares.numpy(), axis=2), rtol=1e-12)
    assert torch.equal(entropy(torch.eye(3), 0), torch.zeros(3))


def test_the_divergence_of_two_is_the_square_of_scipys_distance():
    two = opinions(members=2)
    expected = jensenshannon(*two.numpy(), axis=1) ** 2
    np.testing.assert_allclose(jensen_shannon(two), expected, rtol=1e-9, atol=1e-12)


def test_the_divergence_of_many_is_the_mean_divergence_from_their_mean():
    several = opinions(members=6)
    mean = several.mean(0).numpy()
    expected = np.mean([scipy_entropy(one, mean, axis=1) for one in several.numpy()], axis=0)
    np.testing.assert_allclose(jensen_shannon(several), expected, rtol=1e-9, atol=1e-12)


def test_members_that_doubt_alike_do_not_disagree():
    doubting = torch.full((3, 1, 4, 1, 1), 0.25)
    assert float(jensen_shannon(doubting)) == pytest.approx(0, abs=1e-7)
    assert float(jensen_shannon(certain(0, 1, 2, 3))) == pytest.approx(np.log(4))
    assert float(jensen_shannon(certain(0, 1, 2, 3, 4, 5, classes=6))) == pytest.approx(np.log(6))
    # No more than the members can tell apart.
    assert float(jensen_shannon(certain(0, 5, classes=9))) == pytest.approx(np.log(2))


def test_probabilities_are_averaged_and_not_logits():
    # Two members, equally sure of opposite things: their mean logits are those of total doubt in both cases.
    sure, unsure = torch.tensor([9.0, -9.0]), torch.tensor([0.1, -0.1])
    apart = [torch.stack([z, -z]).softmax(1).view(2, 1, 2, 1, 1) for z in (sure, unsure)]
    assert float(jensen_shannon(apart[0])) > 0.99 * np.log(2)
    assert float(jensen_shannon(apart[1])) < 0.01


def test_a_verdict_heard_one_by_one_is_that_of_all():
    several = opinions()
    heard = verdict(iter(several))
    torch.testing.assert_close(heard.probabilities, several.mean(0))
    assert torch.equal(heard.disagreement, jensen_shannon(several))
    assert torch.equal(heard.labels, vote(several.argmax(2).byte(), 4))
    assert heard.labels.dtype == torch.uint8 and float(heard.disagreement.min()) >= 0


@pytest.mark.parametrize("members", [1, 2, 5])
def test_votes_are_counted_and_the_lowest_id_wins_a_tie(members):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (members, 2, 5, 6))
    expected = np.zeros((2, 5, 6), int)
    for place in np.ndindex(2, 5, 6):
        given = [int(one[place]) for one in labels]
        expected[place] = max(range(4), key=lambda k: (given.count(k), -k))
    assert np.array_equal(vote(torch.from_numpy(labels), 4), expected)


def test_a_images_score_is_the_mean_of_its_highest_tenth():
    rng = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 7, 9, generator=rng)
    expected = [np.sort(one.numpy().ravel())[-7:].mean() for one in maps]
    np.testing.assert_allclose(image_score(maps), expected, rtol=1e-6)
    assert float(image_score(torch.tensor([[[0.5]]]))) == 0.5


def test_the_filter_drops_the_most_uncertain_share_and_nothing_else():
    scores = torch.rand(100, generator=torch.Generator().manual_seed(0))
    for share, kept in ((0.0, 100), (0.1, 90), (0.29, 71), (0.5, 50), (0.999, 1)):
        found = keep_by_score(scores, share)
        assert len(found) == kept and torch.equal(found, found.sort().values)
        assert set(found.tolist()) == set(np.argsort(scores.numpy())[:kept].tolist())


def test_the_filter_leaves_something_of_few():
    # The published slice is empty here: n * share is below 30.
    assert keep_by_score(torch.tensor([0.3, 0.1, 0.2]), 0.1).tolist() == [0, 1, 2]
    assert keep_by_score(torch.tensor([0.3, 0.1, 0.2]), 0.4).tolist() == [1, 2]
    assert keep_by_score(torch.zeros(1), 0.9).tolist() == [0]
    assert keep_by_score(torch.zeros(4), 0.5).tolist() == [0, 1]


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(BadRecipe, match="give 0 to less than 1"):
        keep_by_score(torch.zeros(3), share)
