"""The student's game: each source says what it should, unknown and unsure pixels say nothing, and a cut run resumes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partshot.artifact import read_card
from partshot.data.augment import PRESETS as AUGMENTS
from partshot.data.augment import warp_grid
from partshot.data.soft_labels import SoftLabels
from partshot.errors import BadRecipe
from partshot.nets.student import build_student
from partshot.toy.dataset import toy_shots
from partshot.train.distill import Balance, Batch, Clock, Distillation, Limits, soft_loss
from partshot.train.distill_recipe import PRESETS, Consistency, Distill
from partshot.train.journal import read_journal
from partshot.train.loop import LoopRecipe, run_loop

SIZE = 32
STILL = AUGMENTS["none"]
TINY = Distill(
    size=SIZE,
    kimg=0.048,
    batch=4,
    unlabeled=2,
    lr=3e-3,
    color_transfer=0,
    low_resolution=0,
    augment=STILL,
    consistency=Consistency(start=0.5, teacher=0.3),
)
SUPERVISED = TINY.changed(unlabeled=0, consistency=None)


@pytest.fixture(scope="module")
def toys():
    """Two labeled faces and six plain ones: images, ids, plain images."""
    images, labels = toy_shots("faces", SIZE, 2, seed=1).stack(SIZE)
    plain, _ = toy_shots("faces", SIZE, 6, seed=2).stack(SIZE)
    return torch.from_numpy(images), torch.from_numpy(labels).long(), torch.from_numpy(plain)


def small_net(classes=10):
    """A student in a hurry, with batch statistics."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 3, padding=1)
    )


def soft_of(toys, classes=10):
    """A teacher that is nearly sure of one part, image by image another."""
    ids = torch.arange(len(toys[2])) % classes
    scores = torch.full((len(ids), classes, SIZE // 2, SIZE // 2), 0.05 / (classes - 1))
    scores[torch.arange(len(ids)), ids] = 0.95
    return SoftLabels.of(scores)


def make_game(toys, recipe=TINY, net=None, images=True, soft=False, mirrored=None):
    shots, labels, plain = toys
    given = plain if images else None
    return Distillation(
        net or small_net(), shots, labels, mirrored or list(range(10)), recipe, given, soft_of(toys) if soft else None
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def play(game, out, recipe, fingerprint="f", **changes):
    loop = LoopRecipe(kimg=recipe.kimg, batch=recipe.batch, precision="fp32").changed(**changes)
    run_loop(game, loop, out, "student", fingerprint, journal_every=1, quiet=True)
    return game


def test_the_labels_alone_teach_a_shot_by_heart(toys, tmp_path):
    torch.manual_seed(0)
    # Changed a little, since copies of one image would have no variance for BatchNorm to learn.
    changes = AUGMENTS["weak"].changed(flip=False)
    recipe = SUPERVISED.changed(kimg=0.8, batch=8, lr=1e-2, ema_decay=0.9, class_power=0, augment=changes)
    one = (toys[0][:1], toys[1][:1], toys[2])
    game = play(make_game(one, recipe, build_student("fast-unet", 10), images=False), tmp_path, recipe)
    image = toys[0][:1].permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        predicted = game.modules["ema"].eval()(image).argmax(1)
    assert (predicted == one[1]).float().mean() > 0.85
    losses = [line["loss"] for line in read_journal(tmp_path / "journal.jsonl")]
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_the_running_average_is_what_was_trained_and_takes_no_gradient(toys, tmp_path):
    game = play(make_game(toys), tmp_path, TINY)
    average, student = game.modules["ema"], game.modules["student"]
    assert not any(p.requires_grad for p in average.parameters())
    assert all(torch.equal(a, b) for a, b in zip(game.trained().values(), average.state_dict().values(), strict=True))
    assert not torch.equal(average[0].weight, student[0].weight)
    assert average[1].num_batches_tracked == student[1].num_batches_tracked > 0


def test_the_average_follows_each_step_as_it_says(toys):
    game = make_game(toys)
    before = game.modules["ema"][0].weight.clone()
    with torch.no_grad():
        game.modules["student"][0].weight.add_(1)
    game.finish(0.1)
    # Young averages forget faster: after one step, what is kept is 2 / 11.
    torch.testing.assert_close(game.modules["ema"][0].weight, before + 9 / 11)


def test_sources_speak_when_it_is_their_turn(toys):
    def spoken(progress, **given):
        game = make_game(toys, **given)
        game.prepare(progress)
        batch = game.batch(seeded(), 8)
        return len(batch.shots), 0 if batch.strong is None else len(batch.strong), batch.soft is not None

    # The teacher first, then the shots alone, then the average. The others never take a shot's place.
    assert spoken(0.29, soft=True) == (8, 4, True)
    assert spoken(0.31, soft=True) == (8, 0, False)
    assert spoken(0.5, soft=True) == (8, 4, False)
    assert spoken(0.49) == (8, 0, False)
    assert spoken(0.5) == (8, 4, False)
    # No images, or no consistency: sources left out.
    assert spoken(0.9, images=False) == (8, 0, False)
    assert spoken(0.9, recipe=TINY.changed(unlabeled=0)) == (8, 0, False)
    assert spoken(0.9, recipe=TINY.changed(consistency=None), soft=True) == (8, 4, True)
    assert spoken(0.9, recipe=TINY.changed(consistency=None)) == (8, 0, False)
    # At least one stands beside the shots, however few it should be.
    assert spoken(0.9, recipe=TINY.changed(batch=100, unlabeled=1)) == (8, 1, False)


def test_a_plain_batch_is_the_shots_themselves(toys):
    game = make_game(toys, SUPERVISED, images=False)
    batch = game.batch(seeded(), 4)
    shots = toys[0].permute(0, 3, 1, 2).float() / 127.5 - 1
    for image, labels in zip(batch.shots, batch.labels, strict=True):
        which = int((shots - image).abs().flatten(1).amax(1).argmin())
        torch.testing.assert_close(image, shots[which], atol=1e-4, rtol=0)
        assert torch.equal(labels, toys[1][which])


def test_drawn_images_take_half_of_the_places_and_nothing_else(toys):
    shots, labels, plain = toys
    drawn = torch.full((3, SIZE, SIZE, 3), 77, dtype=torch.uint8), torch.full((3, SIZE, SIZE), 4, dtype=torch.uint8)
    game = Distillation(small_net(), shots, labels, list(range(10)), TINY, plain, None, drawn)
    batch = game.batch(seeded(), 5)
    made = (batch.labels == 4).flatten(1).all(1)
    assert made.tolist() == [True, True, False, False, False]
    torch.testing.assert_close(batch.shots[made], torch.full_like(batch.shots[made], 77 / 127.5 - 1))
    # What a person labeled decides what classes weigh and how often they are called.
    alone = make_game(toys)
    assert torch.equal(game.weights, alone.weights) and torch.equal(game.balance.wanted, alone.balance.wanted)
    assert torch.equal(game.labels, alone.labels)


def test_only_the_students_view_is_moved_and_recolored(toys):
    moving = TINY.changed(consistency=Consistency(start=0, teacher=0))
    batch = make_game(toys, moving).batch(seeded(), 8)
    assert torch.equal(batch.plain, batch.strong)
    images = toys[2].permute(0, 3, 1, 2).float() / 127.5 - 1
    for still in (STILL.changed(color=1), STILL.changed(rotation=90)):
        batch = make_game(toys, moving.changed(augment=still)).batch(seeded(), 8)
        assert batch.plain.shape == batch.strong.shape and not torch.equal(batch.strong, batch.plain)
        assert all(any(torch.equal(one, image) for image in images) for one in batch.plain)


def test_views_of_plain_images_may_be_changed_otherwise_than_shots(toys):
    recolored = Consistency(start=0, teacher=0, views=STILL.changed(color=1))
    game = make_game(toys, TINY.changed(consistency=recolored, augment=STILL))
    shots = toys[0].permute(0, 3, 1, 2).float() / 127.5 - 1
    batch = game.batch(seeded(), 8)
    assert not torch.equal(batch.strong, batch.plain)
    assert all((shots - one).abs().flatten(1).amax(1).min() < 1e-4 for one in batch.shots)


def test_opinions_are_moved_as_the_students_view(toys):
    """A network that calls bright pixels part 1 says the same of the moved image as its moved opinion."""

    class Bright(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, images):
            lit = (images.mean(1, keepdim=True) > 0).float() * 20
            return torch.cat([20 - lit, lit, torch.zeros(len(images), 8, *images.shape[2:])], 1)

    moves = STILL.changed(rotation=90, scale=1.3, flip=True)
    recipe = TINY.changed(consistency=Consistency(start=0, teacher=0), augment=moves)
    game = make_game(toys, recipe, Bright())
    game.balance = torch.nn.Identity()
    game.lean.zero_()
    batch = game.batch(seeded(), 16)
    opinion, seen = game._opinion(batch), Bright()(batch.strong).argmax(1)
    inside = opinion != 255
    assert 0.4 < inside.float().mean() < 1
    assert (opinion == seen)[inside].float().mean() > 0.9
    unmoved = Bright()(batch.plain).argmax(1)
    assert (opinion == unmoved)[inside].float().mean() < 0.85


def test_a_coarse_start_reads_half_size(toys):
    images, labels = toy_shots("faces", 32, 2).stack(64)
    shots = (torch.from_numpy(images), torch.from_numpy(labels).long(), torch.from_numpy(images))
    game = make_game(shots, TINY.changed(size=64, low_resolution=0.2), soft=True)
    for progress, side in ((0.0, 32), (0.2, 64)):
        game.prepare(progress)
        batch = game.batch(seeded(), 4)
        assert batch.shots.shape[2:] == batch.strong.shape[2:] == batch.labels.shape[1:] == (side, side)
        assert batch.soft.shape[2:] == (side, side)


def test_images_too_small_to_be_halved_are_not(toys):
    game = make_game(toys, TINY.changed(low_resolution=0.5))
    game.prepare(0.0)
    assert game.batch(seeded(), 4).shots.shape[2:] == (SIZE, SIZE)


@pytest.mark.parametrize(("size", "student"), [(32, "fast-unet"), (96, "fast-unet"), (96, "fpn-resnet18")])
def test_students_take_every_size_from_its_coarse_start(size, student):
    images, labels = toy_shots("faces", 32, 1).stack(size)
    shots = (torch.from_numpy(images), torch.from_numpy(labels).long(), torch.from_numpy(images))
    game = make_game(shots, Distill(size=size, batch=4), build_student(student, 10))
    for progress in (0.0, 0.9):
        game.prepare(progress)
        assert torch.isfinite(game.loss(game.batch(seeded(), 4)))


def test_mirrored_soft_labels_swap_their_sides(toys):
    swap = list(range(10))
    swap[3], swap[4] = 4, 3
    soft = torch.zeros(6, 10, SIZE // 2, SIZE // 2)
    soft[:, 3, :, : SIZE // 4], soft[:, 4, :, SIZE // 4 :] = 1, 1
    shots, labels, plain = toys
    recipe = TINY.changed(augment=STILL.changed(flip=True))
    game = Distillation(small_net(), shots, labels, swap, recipe, plain, SoftLabels.of(soft))
    found = game.batch(seeded(), 32)
    images = plain.permute(0, 3, 1, 2).float() / 127.5 - 1
    mirrored = [
        min((images.flip(3) - one).abs().flatten(1).amax(1)) < min((images - one).abs().flatten(1).amax(1))
        for one in found.strong
    ]
    assert 0 < sum(mirrored) < 16
    # A half that is mirrored and swapped looks as it did: left stays left.
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


def test_soft_loss_of_certain_targets_is_cross_entropy():
    logits, ids = torch.randn(2, 4, 5, 5, generator=seeded()), torch.randint(0, 4, (2, 5, 5), generator=seeded())
    found = soft_loss(logits, F.one_hot(ids, 4).permute(0, 3, 1, 2).float())
    torch.testing.assert_close(found, F.cross_entropy(logits, ids))


def unlabeled_alone(side):
    """A batch of two black images, unmoved, whose shots say nothing."""
    zeros, ignored = torch.zeros(2, 3, side, side), torch.full((2, side, side), 255)
    grid, flipped = warp_grid(2, (side, side), STILL, seeded())
    return Batch(zeros, ignored, zeros, plain=zeros, grid=grid, flipped=flipped)


class Fixed(nn.Module):
    """A network that answers the same logits, which can be learned."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits.expand(len(images), -1, -1, -1)


def test_consistency_ignores_pixels_of_which_the_average_is_unsure(toys):
    # Part 1 with confidence: sure on the left half, unsure on the right one.
    logits = torch.zeros(1, 10, SIZE, SIZE)
    logits[:, 1, :, : SIZE // 2], logits[:, 1, :, SIZE // 2 :] = 8.0, 1.0
    recipe = TINY.changed(consistency=Consistency(start=0, teacher=0, weight=2.0, confidence=0.8))
    game = make_game(toys, recipe, Fixed(logits))
    with torch.no_grad():
        game.modules["student"].logits.zero_()
    game.lean.zero_()
    game.balance = torch.nn.Identity()
    loss = game.loss(unlabeled_alone(SIZE))
    # By hand: an even guess of ten costs ln 10 on half of the pixels, twice weighed.
    assert float(loss) == pytest.approx(2.0 * 2.302585 / 2, rel=1e-5)
    loss.backward()
    gradient = game.modules["student"].logits.grad
    assert gradient[..., SIZE // 2 :].abs().sum() == 0 < gradient[..., : SIZE // 2].abs().sum()
    assert (gradient[:, 1, :, : SIZE // 2] < 0).all()


def agreeing(toys, left, agree):
    """A game whose average says part 1 everywhere, beside a reader that says `left` on the left half, else 1."""
    logits = torch.zeros(1, 10, SIZE, SIZE)
    logits[:, 1] = 8.0
    ids = torch.full((len(toys[2]), SIZE, SIZE), 1)
    ids[:, :, : SIZE // 2] = left
    reader = SoftLabels.of(torch.nn.functional.one_hot(ids, 10).permute(0, 3, 1, 2).float())
    shots, labels, plain = toys
    recipe = TINY.changed(consistency=Consistency(start=0.5, teacher=0, agree=agree))
    game = Distillation(Fixed(logits), shots, labels, list(range(10)), recipe, plain, reader=reader)
    game.balance = torch.nn.Identity()
    game.lean.zero_()
    return game


def test_pixels_are_pseudo_labeled_where_a_reader_agrees_if_it_does_so_often(toys):
    game = agreeing(toys, 2, agree=0.2)
    game.prepare(0.4)
    assert float(game.modules["agreement"].overlap) < 0  # not yet
    game.prepare(0.5)
    # Part 1 overlaps by a half, part 2, which the average never says, by nothing.
    assert float(game.modules["agreement"].overlap) == pytest.approx(0.25)
    told = game._opinion(game.batch(seeded(), 4))
    assert (told[..., : SIZE // 2] == 255).all() and (told[..., SIZE // 2 :] == 1).all()
    # Measured once: what a checkpoint brings back stays.
    game.modules["agreement"].overlap.fill_(0.1)
    game.prepare(0.6)
    assert (game._opinion(game.batch(seeded(), 4)) == 1).all()


def test_images_that_the_reader_did_not_label_are_left_out(toys):
    game = agreeing(toys, 1, agree=0.2)
    game.reader = SoftLabels(game.reader.ids[::4], game.reader.probabilities[::4], 10)
    game.read_every = 4
    game.prepare(0.5)
    shown = {bytes(one.numpy()) for _ in range(5) for one in game.batch(seeded(_), 8).plain}
    read = {bytes(one.numpy()) for one in game._read(toys[2][::4], torch.arange(2), SIZE)}
    assert shown == read


def test_a_reader_that_sees_other_things_is_not_asked(toys):
    game = agreeing(toys, 2, agree=0.3)
    game.prepare(0.5)
    batch = game.batch(seeded(), 4)
    assert batch.second is None and (game._opinion(batch) == 1).all()


def test_opinions_are_free_of_the_class_weights(toys):
    # Part 1 leads by less than its weight has lifted it over part 0, so part 0 is the likelier one.
    game = make_game(
        toys, TINY.changed(consistency=Consistency(start=0, teacher=0, confidence=0)), Fixed(torch.zeros(1, 10, 4, 4))
    )
    game.balance = torch.nn.Identity()
    game.lean = torch.arange(10.0) * 2
    with torch.no_grad():
        game.modules["ema"].logits[:, 1] = 1.0
    assert (game._opinion(unlabeled_alone(4)) == 0).all()
    with torch.no_grad():
        game.modules["ema"].logits[:, 1] = 3.0
    assert (game._opinion(unlabeled_alone(4)) == 1).all()


def test_opinions_are_followed_free_of_the_class_weights(toys):
    recipe = TINY.changed(consistency=Consistency(start=0, teacher=0, confidence=0))
    game = make_game(toys, recipe, Fixed(torch.zeros(1, 10, 4, 4)))
    game.balance = torch.nn.Identity()
    game.lean = torch.zeros(10)
    game.lean[0] = 3.0
    with torch.no_grad():
        game.modules["student"].logits.zero_()
        game.modules["ema"].logits[:, 1] = 9.0
    loss = game.loss(unlabeled_alone(4))
    # The even guess is one of exp(-3) for part 0 and 1 for nine others, part 1 among them.
    assert float(loss) == pytest.approx(math.log(9 + math.exp(-3)), rel=1e-5)


def test_the_teacher_falls_silent_by_and_by(toys):
    game = make_game(toys, soft=True)
    said = []
    for progress in (0.0, 0.15, 0.29):
        game.prepare(progress)
        said.append(game._teachers_say())
    assert said == pytest.approx([1.0, 0.5, 1 / 30], rel=1e-3)
    plain = make_game(toys, TINY.changed(consistency=None), soft=True)
    plain.prepare(0.9)
    assert plain._teachers_say() == 1.0


def test_borrowed_colors_come_from_the_other_images(toys):
    shots, labels, plain = toys
    dark = torch.zeros_like(plain)
    game = make_game((shots, labels, dark), TINY.changed(color_transfer=1.0))
    game.prepare(0.0)
    borrowed = game.batch(seeded(), 8).shots
    same = make_game((shots, labels, dark)).batch(seeded(), 8).shots
    assert borrowed.mean() < same.mean() and borrowed.std() < same.std()


def test_parts_that_no_shot_shows_are_neither_lifted_nor_lowered(toys):
    shots, labels, plain = toys
    one = Distillation(small_net(), shots, torch.zeros_like(labels), list(range(10)), TINY, plain)
    assert (one.lean == 0).all()
    likely = torch.full((1, 10, 4, 4), 0.1)
    balanced = one.balance(likely)
    torch.testing.assert_close(balanced[:, 1:] / balanced[:, 1:2], torch.ones(1, 9, 4, 4))


def test_a_part_that_is_underrated_is_called_more_until_its_share_is_right():
    labels = torch.tensor([[[0, 0, 0, 1], [0, 0, 255, 1]]])
    balance = Balance(labels, 2)
    assert balance.wanted.tolist() == pytest.approx([5 / 7, 2 / 7])
    likely = torch.tensor([0.9, 0.1])[None, :, None, None].expand(3, 2, 4, 4)
    for _ in range(400):
        balanced = balance(likely)
    # Once it has heard enough, the shares of what it says are those of the shots.
    torch.testing.assert_close(balanced[0, :, 0, 0], torch.tensor([5 / 7, 2 / 7]), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(balanced.sum(1), torch.ones(3, 4, 4))


def without_seconds(out):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_journal(out / "journal.jsonl")]


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_a_run_cut_short_and_resumed_ends_with_the_same_bits(toys, tmp_path, schedule, monkeypatch):
    monkeypatch.setattr(Clock, "EPOCH", 2)
    monkeypatch.setattr(Clock, "PATIENCE", 1)
    # Everything at once: a coarse start, a teacher, consistency, all changes of the images.
    recipe = Distill(
        size=SIZE,
        kimg=0.048,
        batch=4,
        schedule=schedule,
        low_resolution=0.4,
        consistency=Consistency(start=0.5, teacher=0.3, confidence=0),
    )
    whole = play(make_game(toys, recipe, soft=True), tmp_path / "whole", recipe)

    cut = make_game(toys, recipe, soft=True)
    drawn, batch = [], cut.batch

    def until_the_plug_is_pulled(rng, images):
        drawn.append(1)
        if len(drawn) == 8:
            raise RuntimeError("pulled the plug")
        return batch(rng, images)

    cut.batch = until_the_plug_is_pulled
    with pytest.raises(RuntimeError, match="plug"):
        play(cut, tmp_path / "cut", recipe, checkpoint_seconds=0)
    assert read_card(tmp_path / "cut" / "checkpoint")["step"] == 7
    resumed = play(make_game(toys, recipe, soft=True), tmp_path / "cut", recipe)

    for name, module in whole.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, resumed.modules[name].state_dict()[key]), (name, key)
    assert without_seconds(tmp_path / "cut") == without_seconds(tmp_path / "whole")


def test_cosine_warms_up_and_ends_at_zero(toys):
    game = make_game(toys)

    def rate(progress):
        game.prepare(progress)
        return game.optimizer.param_groups[0]["lr"]

    assert rate(0.0) < 0.05 * TINY.lr and rate(0.025) < rate(0.05)
    assert rate(0.05) == pytest.approx(TINY.lr, rel=0.01)
    assert rate(0.5) == pytest.approx(TINY.lr / 2) and 0 <= rate(0.999) < 1e-5 * TINY.lr


def test_a_plateau_lowers_the_rate_and_a_fall_does_not(monkeypatch):
    monkeypatch.setattr(Clock, "EPOCH", 2)
    monkeypatch.setattr(Clock, "PATIENCE", 3)

    def rates(losses):
        clock = Clock(1e-3)
        for loss in losses:
            for _ in range(Clock.EPOCH):
                clock.steps += 1
                clock.watch(torch.tensor(loss))
        return float(clock.rate)

    assert rates([5.0, 4.0, 3.0, 2.0, 1.0, 0.5]) == pytest.approx(1e-3)
    assert rates([1.0, 1.0, 1.0]) == pytest.approx(1e-3)
    assert rates([1.0, 1.0, 1.0, 1.0, 1.0]) == pytest.approx(1e-4)
    # A fall in between starts the count anew; the floor holds.
    assert rates([1.0, 1.0, 1.0, 0.9, 0.95, 0.95]) == pytest.approx(1e-3)
    assert rates([1.0] * 30) == pytest.approx(1e-6)


def test_the_plateau_reaches_the_optimizer(toys):
    game = make_game(toys, TINY.changed(schedule="plateau"))
    game.clock.rate.fill_(1e-5)
    game.prepare(0.9)
    assert game.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_a_constant_rate_stays_whatever_the_loss_does(toys):
    game = make_game(toys, TINY.changed(schedule="constant"))
    game.last_loss = torch.tensor(1.0)
    for step in range(40):
        game.prepare(step / 40)
        game.finish(step / 40)
    assert game.optimizer.param_groups[0]["lr"] == pytest.approx(TINY.lr)


@pytest.mark.parametrize("name", PRESETS)
def test_one_sided_recipes_never_mirror(name):
    recipe = PRESETS[name].one_sided()
    assert not recipe.augment.flip and not recipe.views.flip and not recipe.flip_tta
    same = {key: getattr(PRESETS[name], key) for key in ("augment", "consistency", "flip_tta")}
    assert recipe.changed(**same) == PRESETS[name]


@pytest.mark.parametrize("wrong", [{"size": 100}, {"size": 0}, {"kimg": 0}, {"unlabeled": -1}, {"batch": 0}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(BadRecipe, match=next(iter(wrong))):
        TINY.changed(**wrong)


@pytest.mark.parametrize(("size", "half"), [(128, 64), (96, 64), (64, 32), (32, 32)])
def test_a_rehearsal_is_at_half_the_size_in_whole_strides(size, half):
    first = Distill(size=size, kimg=10, self_training=0.5).self_training_round()
    assert (first.size, first.kimg, first.low_resolution, first.self_training) == (half, 5, 0, 0)


def test_a_teacher_that_outlasts_the_start_is_refused():
    with pytest.raises(BadRecipe, match="after the start"):
        Consistency.parse({"start": 0.2, "teacher": 0.3})


def test_a_class_that_is_never_sure_counts_from_a_lower_confidence():
    limits = Limits(3, Consistency(confidence=0.8, flexmatch=2.0))
    ids = torch.tensor([[[0, 0, 1, 1]]])
    for _ in range(200):
        found = limits(torch.tensor([[[0.9, 0.9, 0.45, 0.45]]]), ids)
    assert found[0, 0, 2] == pytest.approx(0.8 * (0.45 / float(limits.usual.max())) ** 2, rel=1e-3)
    # A class of which nothing was seen keeps its limit, and one limit for all is that of the recipe.
    assert float(limits.usual[2]) == 1
    same = Limits(3, Consistency(confidence=0.8))(torch.full((1, 1, 4), 0.3), ids)
    assert torch.allclose(same, torch.full((1, 1, 4), 0.8))


def test_flexible_limits_are_kept_in_the_checkpoint_and_older_runs_have_none(toys):
    flexmatch = TINY.changed(consistency=TINY.consistency.changed(flexmatch=1.0))
    assert "limits" in make_game(toys, flexmatch).modules and "limits" not in make_game(toys).modules
    assert TINY.fingerprint != flexmatch.fingerprint


def test_an_encoder_learns_at_its_own_rate_and_its_first_layers_not_at_all(toys):
    recipe = TINY.changed(encoder_lr_factor=0.1, frozen_stride=4)
    torch.manual_seed(0)
    game = make_game(toys, recipe, build_student("light-tf_efficientnet_lite0", 10))
    game.prepare(0.5)
    rates = [group["lr"] for group in game.optimizer.param_groups]
    assert rates[1] == pytest.approx(0.1 * rates[0])
    before = {name: value.clone() for name, value in game.modules["student"].state_dict().items()}
    batch = game.batch(seeded(), 4)
    game.loss(batch).backward()
    game.optimizer.step()
    changed = {name for name, value in game.modules["student"].state_dict().items() if not value.equal(before[name])}
    assert "encoder.conv_stem.weight" not in changed and "encoder.blocks.1.0.conv_pw.weight" not in changed
    assert "encoder.blocks.2.0.conv_pw.weight" in changed and "head.weight" in changed
