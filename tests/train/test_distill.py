"""The student's objective: which labels are used when, which pixels are ignored, resuming of training."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partshot.artifact import Artifact, read_card
from partshot.data.augment import PRESETS as AUGMENTS
from partshot.data.augment import warp_grid
from partshot.data.soft_labels import SoftLabels
from partshot.errors import BadRecipe
from partshot.nets.student import build_student
from partshot.toy.dataset import toy_shots
from partshot.train.distill import (
    Batch,
    ClassThresholds,
    Distillation,
    DistributionAlignment,
    LabelSources,
    ScheduleState,
    soft_loss,
)
from partshot.train.distill_recipe import PRESETS, Consistency, Distill
from partshot.train.journal import read_journal
from partshot.train.loop import LoopRecipe, run_loop

SIZE = 32
NO_AUGMENT = AUGMENTS["none"]
TINY = Distill(
    size=SIZE,
    kimg=0.048,
    batch=4,
    unlabeled=2,
    lr=3e-3,
    color_transfer=0,
    low_resolution=0,
    augment=NO_AUGMENT,
    consistency=Consistency(start=0.5, teacher=0.3),
)
SUPERVISED = TINY.changed(unlabeled=0, consistency=None)


@pytest.fixture(scope="module")
def toys():
    """Two labeled faces and six unlabeled ones: images, ids, unlabeled images."""
    images, labels = toy_shots("faces", SIZE, 2, seed=1).stack(SIZE)
    unlabeled, _ = toy_shots("faces", SIZE, 6, seed=2).stack(SIZE)
    return torch.from_numpy(images), torch.from_numpy(labels).long(), torch.from_numpy(unlabeled)


def small_net(classes=10):
    """A tiny student with BatchNorm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 3, padding=1)
    )


def soft_of(toys, classes=10):
    """Soft labels with probability 0.95 for one part, a different one in each image."""
    ids = torch.arange(len(toys[2])) % classes
    scores = torch.full((len(ids), classes, SIZE // 2, SIZE // 2), 0.05 / (classes - 1))
    scores[torch.arange(len(ids)), ids] = 0.95
    return SoftLabels.of(scores)


def make_objective(toys, recipe=TINY, net=None, images=True, mirrored=None, **sources):
    shots, labels, unlabeled = toys
    given = LabelSources(shots, labels, **sources)
    return Distillation(net or small_net(), given, mirrored or list(range(10)), recipe, unlabeled if images else None)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def train(objective, out, recipe, fingerprint="f", **changes):
    loop = LoopRecipe(kimg=recipe.kimg, batch=recipe.batch, precision="fp32").changed(**changes)
    run_loop(objective, loop, out, "student", fingerprint, journal_every=1, quiet=True)
    return objective


def test_supervised_training_overfits_one_shot(toys, tmp_path):
    torch.manual_seed(0)
    # Augmented a little, since copies of one image have no variance for BatchNorm.
    weak = AUGMENTS["weak"].changed(flip=False)
    recipe = SUPERVISED.changed(kimg=0.8, batch=8, lr=1e-2, ema_decay=0.9, class_power=0, augment=weak)
    one = (toys[0][:1], toys[1][:1], toys[2])
    objective = train(make_objective(one, recipe, build_student("fast-unet", 10), images=False), tmp_path, recipe)
    image = toys[0][:1].permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        predicted = objective.modules["ema"].eval()(image).argmax(1)
    assert (predicted == one[1]).float().mean() > 0.85
    losses = [line["loss"] for line in read_journal(tmp_path / "journal.jsonl")]
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_the_ema_is_the_result_and_takes_no_gradient(toys, tmp_path):
    objective = train(make_objective(toys), tmp_path, TINY)
    ema, student = objective.modules["ema"], objective.modules["student"]
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(torch.equal(a, b) for a, b in zip(objective.trained().values(), ema.state_dict().values(), strict=True))
    assert not torch.equal(ema[0].weight, student[0].weight)
    assert ema[1].num_batches_tracked == student[1].num_batches_tracked > 0


def test_the_decay_of_the_ema_is_lower_in_the_first_steps(toys):
    objective = make_objective(toys)
    before = objective.modules["ema"][0].weight.clone()
    with torch.no_grad():
        objective.modules["student"][0].weight.add_(1)
    objective.finish(0.1)
    # In step 1 the decay is 2 / 11.
    torch.testing.assert_close(objective.modules["ema"][0].weight, before + 9 / 11)


def test_each_label_source_is_used_in_its_part_of_the_training(toys):
    def used(progress, **given):
        objective = make_objective(toys, **given)
        objective.prepare(progress)
        batch = objective.batch(seeded(), 8)
        return len(batch.shots), 0 if batch.strong is None else len(batch.strong), batch.soft is not None

    # The teacher first, then the shots alone, then the EMA. Unlabeled images are in addition to the shots.
    assert used(0.29, soft=soft_of(toys)) == (8, 4, True)
    assert used(0.31, soft=soft_of(toys)) == (8, 0, False)
    assert used(0.5, soft=soft_of(toys)) == (8, 4, False)
    assert used(0.49) == (8, 0, False)
    assert used(0.5) == (8, 4, False)
    # Without images, or without consistency.
    assert used(0.9, images=False) == (8, 0, False)
    assert used(0.9, recipe=TINY.changed(unlabeled=0)) == (8, 0, False)
    assert used(0.9, recipe=TINY.changed(consistency=None), soft=soft_of(toys)) == (8, 4, True)
    assert used(0.9, recipe=TINY.changed(consistency=None)) == (8, 0, False)
    # At least one unlabeled image, however small the ratio.
    assert used(0.9, recipe=TINY.changed(batch=100, unlabeled=1)) == (8, 1, False)


def test_a_supervised_batch_without_augmentation_holds_the_shots(toys):
    objective = make_objective(toys, SUPERVISED, images=False)
    batch = objective.batch(seeded(), 4)
    shots = toys[0].permute(0, 3, 1, 2).float() / 127.5 - 1
    for image, labels in zip(batch.shots, batch.labels, strict=True):
        which = int((shots - image).abs().flatten(1).amax(1).argmin())
        torch.testing.assert_close(image, shots[which], atol=1e-4, rtol=0)
        assert torch.equal(labels, toys[1][which])


def test_generated_images_take_half_of_the_batch_and_change_nothing_else(toys):
    generated = torch.full((3, SIZE, SIZE, 3), 77, dtype=torch.uint8), torch.full((3, SIZE, SIZE), 4, dtype=torch.uint8)
    objective = make_objective(toys, generated=generated)
    batch = objective.batch(seeded(), 5)
    found = (batch.labels == 4).flatten(1).all(1)
    assert found.tolist() == [True, True, False, False, False]
    torch.testing.assert_close(batch.shots[found], torch.full_like(batch.shots[found], 77 / 127.5 - 1))
    # Class weights and the target distribution come from the shots alone.
    alone = make_objective(toys)
    assert torch.equal(objective.weights, alone.weights)
    assert torch.equal(objective.alignment.target, alone.alignment.target)
    assert torch.equal(objective.labels, alone.labels)


def test_only_the_students_view_is_augmented(toys):
    recipe = TINY.changed(consistency=Consistency(start=0, teacher=0))
    batch = make_objective(toys, recipe).batch(seeded(), 8)
    assert torch.equal(batch.weak, batch.strong)
    images = toys[2].permute(0, 3, 1, 2).float() / 127.5 - 1
    for changed in (NO_AUGMENT.changed(color=1), NO_AUGMENT.changed(rotation=90)):
        batch = make_objective(toys, recipe.changed(augment=changed)).batch(seeded(), 8)
        assert batch.weak.shape == batch.strong.shape and not torch.equal(batch.strong, batch.weak)
        assert all(any(torch.equal(one, image) for image in images) for one in batch.weak)


def test_views_of_unlabeled_images_may_have_their_own_augmentation(toys):
    recolored = Consistency(start=0, teacher=0, views=NO_AUGMENT.changed(color=1))
    objective = make_objective(toys, TINY.changed(consistency=recolored, augment=NO_AUGMENT))
    shots = toys[0].permute(0, 3, 1, 2).float() / 127.5 - 1
    batch = objective.batch(seeded(), 8)
    assert not torch.equal(batch.strong, batch.weak)
    assert all((shots - one).abs().flatten(1).amax(1).min() < 1e-4 for one in batch.shots)


def test_pseudo_labels_are_warped_like_the_students_view(toys):
    """For a network that predicts part 1 on bright pixels, warping the image or its prediction gives the same."""

    class Bright(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, images):
            bright = (images.mean(1, keepdim=True) > 0).float() * 20
            return torch.cat([20 - bright, bright, torch.zeros(len(images), 8, *images.shape[2:])], 1)

    warp = NO_AUGMENT.changed(rotation=90, scale=1.3, flip=True)
    recipe = TINY.changed(consistency=Consistency(start=0, teacher=0), augment=warp)
    objective = make_objective(toys, recipe, Bright())
    objective.alignment = torch.nn.Identity()
    objective.logit_adjustment.zero_()
    batch = objective.batch(seeded(), 16)
    pseudo_labels, expected = objective._pseudo_labels(batch), Bright()(batch.strong).argmax(1)
    inside = pseudo_labels != 255
    assert 0.4 < inside.float().mean() < 1
    assert (pseudo_labels == expected)[inside].float().mean() > 0.9
    not_warped = Bright()(batch.weak).argmax(1)
    assert (pseudo_labels == not_warped)[inside].float().mean() < 0.85


def test_the_low_resolution_phase_has_half_the_size(toys):
    images, labels = toy_shots("faces", 32, 2).stack(64)
    shots = (torch.from_numpy(images), torch.from_numpy(labels).long(), torch.from_numpy(images))
    objective = make_objective(shots, TINY.changed(size=64, low_resolution=0.2), soft=soft_of(toys))
    for progress, side in ((0.0, 32), (0.2, 64)):
        objective.prepare(progress)
        batch = objective.batch(seeded(), 4)
        assert batch.shots.shape[2:] == batch.strong.shape[2:] == batch.labels.shape[1:] == (side, side)
        assert batch.soft.shape[2:] == (side, side)


def test_small_images_have_no_low_resolution_phase(toys):
    objective = make_objective(toys, TINY.changed(low_resolution=0.5))
    objective.prepare(0.0)
    assert objective.batch(seeded(), 4).shots.shape[2:] == (SIZE, SIZE)


@pytest.mark.parametrize(("size", "student"), [(32, "fast-unet"), (96, "fast-unet"), (96, "fpn-resnet18")])
def test_students_take_every_size_and_half_of_it(size, student):
    images, labels = toy_shots("faces", 32, 1).stack(size)
    shots = (torch.from_numpy(images), torch.from_numpy(labels).long(), torch.from_numpy(images))
    objective = make_objective(shots, Distill(size=size, batch=4), build_student(student, 10))
    for progress in (0.0, 0.9):
        objective.prepare(progress)
        assert torch.isfinite(objective.loss(objective.batch(seeded(), 4)))


def test_flipped_soft_labels_swap_left_and_right_parts(toys):
    swap = list(range(10))
    swap[3], swap[4] = 4, 3
    soft = torch.zeros(6, 10, SIZE // 2, SIZE // 2)
    soft[:, 3, :, : SIZE // 4], soft[:, 4, :, SIZE // 4 :] = 1, 1
    recipe = TINY.changed(augment=NO_AUGMENT.changed(flip=True))
    objective = make_objective(toys, recipe, mirrored=swap, soft=SoftLabels.of(soft))
    found = objective.batch(seeded(), 32)
    images = toys[2].permute(0, 3, 1, 2).float() / 127.5 - 1
    flipped = [
        min((images.flip(3) - one).abs().flatten(1).amax(1)) < min((images - one).abs().flatten(1).amax(1))
        for one in found.strong
    ]
    assert 0 < sum(flipped) < 16
    # Flipping the image and swapping the ids leaves the labels of each half as they were.
    left = found.soft[..., : SIZE // 4].mean((2, 3))
    torch.testing.assert_close(left[:, 3], torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(left[:, 4], torch.zeros(16), atol=1e-4, rtol=0)


def test_soft_loss_counts_known_pixels_only():
    logits = torch.tensor([[0.0, 1.0, -2.0], [2.0, 0.0, 0.0]]).T.reshape(1, 3, 1, 2)
    target = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 0.0]]).T.reshape(1, 3, 1, 2)
    # By hand, the first pixel alone: 0.2 * 1.3490 + 0.8 * 0.3490.
    assert float(soft_loss(logits, target)) == pytest.approx(0.5490, abs=1e-3)

    logits.requires_grad_()
    soft_loss(logits, target).backward()
    assert logits.grad[..., 1].abs().sum() == 0 < logits.grad[..., 0].abs().sum()
    assert float(soft_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))) == 0


def test_soft_loss_of_one_hot_targets_is_cross_entropy():
    logits, ids = torch.randn(2, 4, 5, 5, generator=seeded()), torch.randint(0, 4, (2, 5, 5), generator=seeded())
    found = soft_loss(logits, F.one_hot(ids, 4).permute(0, 3, 1, 2).float())
    torch.testing.assert_close(found, F.cross_entropy(logits, ids))


def unlabeled_alone(side):
    """A batch of two black unlabeled images without augmentation, and shots without a labeled pixel."""
    zeros, ignored = torch.zeros(2, 3, side, side), torch.full((2, side, side), 255)
    grid, flipped = warp_grid(2, (side, side), NO_AUGMENT, seeded())
    return Batch(zeros, ignored, zeros, weak=zeros, grid=grid, flipped=flipped)


class Fixed(nn.Module):
    """A network whose output is a parameter."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits.expand(len(images), -1, -1, -1)


def test_consistency_ignores_pixels_where_the_ema_is_not_confident(toys):
    # Part 1 everywhere, with high confidence on the left half and low confidence on the right half.
    logits = torch.zeros(1, 10, SIZE, SIZE)
    logits[:, 1, :, : SIZE // 2], logits[:, 1, :, SIZE // 2 :] = 8.0, 1.0
    recipe = TINY.changed(consistency=Consistency(start=0, teacher=0, weight=2.0, confidence=0.8))
    objective = make_objective(toys, recipe, Fixed(logits))
    with torch.no_grad():
        objective.modules["student"].logits.zero_()
    objective.logit_adjustment.zero_()
    objective.alignment = torch.nn.Identity()
    loss = objective.loss(unlabeled_alone(SIZE))
    # By hand: a uniform prediction of ten classes has a loss of ln 10, on half of the pixels, with weight 2.
    assert float(loss) == pytest.approx(2.0 * 2.302585 / 2, rel=1e-5)
    loss.backward()
    gradient = objective.modules["student"].logits.grad
    assert gradient[..., SIZE // 2 :].abs().sum() == 0 < gradient[..., : SIZE // 2].abs().sum()
    assert (gradient[:, 1, :, : SIZE // 2] < 0).all()


def with_frozen(toys, left, min_agreement):
    """An EMA that predicts part 1 everywhere, and frozen labels: `left` on the left half, 1 on the right half."""
    logits = torch.zeros(1, 10, SIZE, SIZE)
    logits[:, 1] = 8.0
    ids = torch.full((len(toys[2]), SIZE, SIZE), 1)
    ids[:, :, : SIZE // 2] = left
    frozen = SoftLabels.of(torch.nn.functional.one_hot(ids, 10).permute(0, 3, 1, 2).float())
    recipe = TINY.changed(consistency=Consistency(start=0.5, teacher=0, min_agreement=min_agreement))
    objective = make_objective(toys, recipe, Fixed(logits), frozen=frozen)
    objective.alignment = torch.nn.Identity()
    objective.logit_adjustment.zero_()
    return objective


def test_pixels_are_pseudo_labeled_where_a_similar_frozen_encoder_agrees(toys):
    objective = with_frozen(toys, 2, min_agreement=0.2)
    objective.prepare(0.4)
    assert float(objective.modules["agreement"].overlap) < 0  # not yet
    objective.prepare(0.5)
    # Part 1 has an IoU of 0.5; part 2, which the EMA never predicts, one of 0.
    assert float(objective.modules["agreement"].overlap) == pytest.approx(0.25)
    ids = objective._pseudo_labels(objective.batch(seeded(), 4))
    assert (ids[..., : SIZE // 2] == 255).all() and (ids[..., SIZE // 2 :] == 1).all()
    # Measured once: the value of a checkpoint stays.
    objective.modules["agreement"].overlap.fill_(0.1)
    objective.prepare(0.6)
    assert (objective._pseudo_labels(objective.batch(seeded(), 4)) == 1).all()


def test_images_without_frozen_labels_are_left_out(toys):
    objective = with_frozen(toys, 1, min_agreement=0.2)
    frozen = objective.sources.frozen
    frozen = SoftLabels(frozen.ids[::4], frozen.probabilities[::4], 10)
    objective.sources = dataclasses.replace(objective.sources, frozen=frozen, every=4)
    objective.prepare(0.5)
    used = {bytes(one.numpy()) for _ in range(5) for one in objective.batch(seeded(_), 8).weak}
    labeled = {bytes(one.numpy()) for one in objective._load(toys[2][::4], torch.arange(2), SIZE)}
    assert used == labeled


def test_a_frozen_encoder_that_differs_too_much_is_not_used(toys):
    objective = with_frozen(toys, 2, min_agreement=0.3)
    objective.prepare(0.5)
    batch = objective.batch(seeded(), 4)
    assert batch.frozen is None and (objective._pseudo_labels(batch) == 1).all()


def test_pseudo_labels_are_adjusted_for_the_class_weights(toys):
    # Part 1 has the higher logit, but part 0 after logit adjustment.
    objective = make_objective(
        toys, TINY.changed(consistency=Consistency(start=0, teacher=0, confidence=0)), Fixed(torch.zeros(1, 10, 4, 4))
    )
    objective.alignment = torch.nn.Identity()
    objective.logit_adjustment = torch.arange(10.0) * 2
    with torch.no_grad():
        objective.modules["ema"].logits[:, 1] = 1.0
    assert (objective._pseudo_labels(unlabeled_alone(4)) == 0).all()
    with torch.no_grad():
        objective.modules["ema"].logits[:, 1] = 3.0
    assert (objective._pseudo_labels(unlabeled_alone(4)) == 1).all()


def test_the_loss_of_pseudo_labels_is_adjusted_for_the_class_weights(toys):
    recipe = TINY.changed(consistency=Consistency(start=0, teacher=0, confidence=0))
    objective = make_objective(toys, recipe, Fixed(torch.zeros(1, 10, 4, 4)))
    objective.alignment = torch.nn.Identity()
    objective.logit_adjustment = torch.zeros(10)
    objective.logit_adjustment[0] = 3.0
    with torch.no_grad():
        objective.modules["student"].logits.zero_()
        objective.modules["ema"].logits[:, 1] = 9.0
    loss = objective.loss(unlabeled_alone(4))
    # Equal logits become weights of exp(-3) for part 0 and 1 for each of the other nine parts.
    assert float(loss) == pytest.approx(math.log(9 + math.exp(-3)), rel=1e-5)


def test_the_weight_of_the_teacher_falls_linearly(toys):
    objective = make_objective(toys, soft=soft_of(toys))
    weights = []
    for progress in (0.0, 0.15, 0.29):
        objective.prepare(progress)
        weights.append(objective._teacher_weight())
    assert weights == pytest.approx([1.0, 0.5, 1 / 30], rel=1e-3)
    distillation = make_objective(toys, TINY.changed(consistency=None), soft=soft_of(toys))
    distillation.prepare(0.9)
    assert distillation._teacher_weight() == 1.0


def test_color_transfer_takes_colors_of_unlabeled_images(toys):
    shots, labels, unlabeled = toys
    dark = torch.zeros_like(unlabeled)
    objective = make_objective((shots, labels, dark), TINY.changed(color_transfer=1.0))
    objective.prepare(0.0)
    transferred = objective.batch(seeded(), 8).shots
    same = make_objective((shots, labels, dark)).batch(seeded(), 8).shots
    assert transferred.mean() < same.mean() and transferred.std() < same.std()


def test_parts_that_no_shot_shows_are_not_adjusted(toys):
    shots, labels, unlabeled = toys
    objective = make_objective((shots, torch.zeros_like(labels), unlabeled))
    assert (objective.logit_adjustment == 0).all()
    aligned = objective.alignment(torch.full((1, 10, 4, 4), 0.1))
    torch.testing.assert_close(aligned[:, 1:] / aligned[:, 1:2], torch.ones(1, 9, 4, 4))


def test_distribution_alignment_reaches_the_target():
    labels = torch.tensor([[[0, 0, 0, 1], [0, 0, 255, 1]]])
    alignment = DistributionAlignment(labels, 2)
    assert alignment.target.tolist() == pytest.approx([5 / 7, 2 / 7])
    probabilities = torch.tensor([0.9, 0.1])[None, :, None, None].expand(3, 2, 4, 4)
    for _ in range(400):
        aligned = alignment(probabilities)
    # Once its running distribution has converged, the aligned one is that of the shots.
    torch.testing.assert_close(aligned[0, :, 0, 0], torch.tensor([5 / 7, 2 / 7]), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(aligned.sum(1), torch.ones(3, 4, 4))


def without_seconds(out):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_journal(out / "journal.jsonl")]


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_an_interrupted_and_resumed_training_ends_with_the_same_bits(toys, tmp_path, schedule, monkeypatch):
    monkeypatch.setattr(ScheduleState, "EPOCH", 2)
    monkeypatch.setattr(ScheduleState, "PATIENCE", 1)
    # Everything at once: low-resolution phase, teacher, consistency, full augmentation.
    recipe = Distill(
        size=SIZE,
        kimg=0.048,
        batch=4,
        schedule=schedule,
        low_resolution=0.4,
        consistency=Consistency(start=0.5, teacher=0.3, confidence=0),
    )
    whole = train(make_objective(toys, recipe, soft=soft_of(toys)), tmp_path / "whole", recipe)

    cut = make_objective(toys, recipe, soft=soft_of(toys))
    calls, batch = [], cut.batch

    def failing_batch(rng, images):
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("interrupted")
        return batch(rng, images)

    cut.batch = failing_batch
    with pytest.raises(RuntimeError, match="interrupted"):
        train(cut, tmp_path / "cut", recipe, checkpoint_seconds=0)
    assert read_card(tmp_path / "cut" / "checkpoint")["step"] == 7
    resumed = train(make_objective(toys, recipe, soft=soft_of(toys)), tmp_path / "cut", recipe)

    for name, module in whole.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, resumed.modules[name].state_dict()[key]), (name, key)
    assert without_seconds(tmp_path / "cut") == without_seconds(tmp_path / "whole")


def test_cosine_warms_up_and_ends_at_zero(toys):
    objective = make_objective(toys)

    def rate(progress):
        objective.prepare(progress)
        return objective.optimizer.param_groups[0]["lr"]

    assert rate(0.0) < 0.05 * TINY.lr and rate(0.025) < rate(0.05)
    assert rate(0.05) == pytest.approx(TINY.lr, rel=0.01)
    assert rate(0.5) == pytest.approx(TINY.lr / 2) and 0 <= rate(0.999) < 1e-5 * TINY.lr


def test_a_plateau_reduces_the_learning_rate_and_a_falling_loss_does_not(monkeypatch):
    monkeypatch.setattr(ScheduleState, "EPOCH", 2)
    monkeypatch.setattr(ScheduleState, "PATIENCE", 3)

    def rates(losses):
        schedule = ScheduleState(1e-3)
        for loss in losses:
            for _ in range(ScheduleState.EPOCH):
                schedule.steps += 1
                schedule.step(torch.tensor(loss))
        return float(schedule.rate)

    assert rates([5.0, 4.0, 3.0, 2.0, 1.0, 0.5]) == pytest.approx(1e-3)
    assert rates([1.0, 1.0, 1.0]) == pytest.approx(1e-3)
    assert rates([1.0, 1.0, 1.0, 1.0, 1.0]) == pytest.approx(1e-4)
    # A lower loss in between resets the count. The rate has a minimum.
    assert rates([1.0, 1.0, 1.0, 0.9, 0.95, 0.95]) == pytest.approx(1e-3)
    assert rates([1.0] * 30) == pytest.approx(1e-6)


def test_the_optimizer_gets_the_plateau_schedules_rate(toys):
    objective = make_objective(toys, TINY.changed(schedule="plateau"))
    objective.schedule.rate.fill_(1e-5)
    objective.prepare(0.9)
    assert objective.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_a_constant_rate_does_not_depend_on_the_loss(toys):
    objective = make_objective(toys, TINY.changed(schedule="constant"))
    objective.last_loss = torch.tensor(1.0)
    for step in range(40):
        objective.prepare(step / 40)
        objective.finish(step / 40)
    assert objective.optimizer.param_groups[0]["lr"] == pytest.approx(TINY.lr)


@pytest.mark.parametrize("name", PRESETS)
def test_one_sided_recipes_have_no_flips(name):
    recipe = PRESETS[name].one_sided()
    assert not recipe.augment.flip and not recipe.views.flip and not recipe.flip_tta
    same = {key: getattr(PRESETS[name], key) for key in ("augment", "consistency", "flip_tta")}
    assert recipe.changed(**same) == PRESETS[name]


@pytest.mark.parametrize("wrong", [{"size": 100}, {"size": 0}, {"kimg": 0}, {"unlabeled": -1}, {"batch": 0}])
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(BadRecipe, match=next(iter(wrong))):
        TINY.changed(**wrong)


@pytest.mark.parametrize(("size", "half"), [(128, 64), (96, 64), (64, 32), (32, 32)])
def test_a_self_training_round_has_half_the_size_in_multiples_of_32(size, half):
    first = Distill(size=size, kimg=10, self_training=0.5).self_training_round()
    assert (first.size, first.kimg, first.low_resolution, first.self_training) == (half, 5, 0, 0)


def test_a_teacher_until_after_the_start_of_consistency_is_refused():
    with pytest.raises(BadRecipe, match="after the start"):
        Consistency.parse({"start": 0.2, "teacher": 0.3})


def test_a_class_of_low_confidence_has_a_lower_threshold():
    thresholds = ClassThresholds(3, Consistency(confidence=0.8, flexmatch=2.0))
    ids = torch.tensor([[[0, 0, 1, 1]]])
    for _ in range(200):
        found = thresholds(torch.tensor([[[0.9, 0.9, 0.45, 0.45]]]), ids)
    assert found[0, 0, 2] == pytest.approx(0.8 * (0.45 / float(thresholds.mean_confidence.max())) ** 2, rel=1e-3)
    # A class that was never predicted keeps its threshold. Without FlexMatch all classes have the recipe's threshold.
    assert float(thresholds.mean_confidence[2]) == 1
    same = ClassThresholds(3, Consistency(confidence=0.8))(torch.full((1, 1, 4), 0.3), ids)
    assert torch.allclose(same, torch.full((1, 1, 4), 0.8))


def test_class_thresholds_are_part_of_the_checkpoint_if_there_are_any(toys):
    flexmatch = TINY.changed(consistency=TINY.consistency.changed(flexmatch=1.0))
    assert "thresholds" in make_objective(toys, flexmatch).modules
    assert "thresholds" not in make_objective(toys).modules
    assert TINY.fingerprint != flexmatch.fingerprint


def test_checkpoints_with_older_names_are_read(toys, tmp_path):
    recipe = TINY.changed(consistency=TINY.consistency.changed(flexmatch=1.0, confidence=0))
    whole = train(make_objective(toys, recipe), tmp_path / "out", recipe)
    saved = Artifact.load(tmp_path / "out" / "checkpoint")
    older = {
        "module/alignment/target": "module/balance/wanted",
        "module/alignment/predicted": "module/balance/heard",
        "module/thresholds/mean_confidence": "module/limits/usual",
    }
    assert older.keys() <= saved.tensors.keys()
    tensors = {older.get(name, name): tensor for name, tensor in saved.tensors.items()}
    Artifact("checkpoint", saved.card, tensors).save(tmp_path / "out" / "checkpoint")
    again = train(make_objective(toys, recipe), tmp_path / "out", recipe)
    for name, module in whole.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, again.modules[name].state_dict()[key]), (name, key)


def test_older_names_of_settings_are_read():
    older = Distill.parse({"drawn": 0.25, "consistency": {"agree": 0.5}})
    assert older == Distill(generated=0.25, consistency=Consistency(min_agreement=0.5))


def test_the_encoder_has_its_own_learning_rate_and_frozen_first_layers(toys):
    recipe = TINY.changed(encoder_lr_factor=0.1, frozen_stride=4)
    torch.manual_seed(0)
    objective = make_objective(toys, recipe, build_student("light-tf_efficientnet_lite0", 10))
    objective.prepare(0.5)
    rates = [group["lr"] for group in objective.optimizer.param_groups]
    assert rates[1] == pytest.approx(0.1 * rates[0])
    before = {name: value.clone() for name, value in objective.modules["student"].state_dict().items()}
    batch = objective.batch(seeded(), 4)
    objective.loss(batch).backward()
    objective.optimizer.step()
    changed = {
        name for name, value in objective.modules["student"].state_dict().items() if not value.equal(before[name])
    }
    assert "encoder.conv_stem.weight" not in changed and "encoder.blocks.1.0.conv_pw.weight" not in changed
    assert "encoder.blocks.2.0.conv_pw.weight" in changed and "head.weight" in changed
