"""MoCo by its formula, queue and followers; no batch betrays its keys, and a cut run ends with the same bits."""

import math
import multiprocessing
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from partshot.errors import BadRecipe
from partshot.pretext.moco import (
    PRESETS,
    MoCo,
    MoCoRecipe,
    Queue,
    all_gather,
    dense_info_nce,
    in_groups,
    in_shuffled_groups,
    info_nce,
)
from partshot.pretext.pairs import GRID, normalize, point_features
from partshot.train.journal import read_journal
from partshot.train.loop import LoopRecipe, run_loop

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = PRESETS["small-folder"].changed(size=32, view=1.0, batch=8, queue=16, groups=2)


@pytest.fixture(scope="module")
def images():
    """Blobs of color on colored ground, so that there is something to tell apart."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (64, 4, 4, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 8, 8, 1), np.uint8))


def views_of(objective, seed=0):
    return objective.batch(torch.Generator().manual_seed(seed), 8)


def rng(seed):
    return torch.Generator().manual_seed(seed)


def unit(rows, dim, seed):
    return F.normalize(torch.randn(rows, dim, generator=rng(seed)), dim=1)


def begun(images, recipe):
    """A objective that has other images' keys in its queues, or it would learn nothing."""
    objective = MoCo(images, recipe)
    for name in ("queue", "dense_queue"):
        objective.modules[name].push(unit(8, recipe.dim, 3))
    return objective


def by_hand(queries, keys, others, temperature):
    """Equation 1 one query at a time, in float64; and the share of queries whose own key is the nearest."""
    q, k, rest = (x.detach().double().numpy() for x in (queries, keys, others))
    losses, found = [], 0
    for i in range(len(q)):
        own = math.exp(q[i] @ k[i] / temperature)
        strange = [math.exp(q[i] @ other / temperature) for other in rest]
        losses.append(-math.log(own / (own + sum(strange))))
        found += own > max(strange)
    return sum(losses) / len(q), found / len(q)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_the_loss_is_equation_one(temperature):
    queries, others = unit(6, 8, 0), unit(12, 8, 1)
    keys = F.normalize(queries + 0.7 * unit(6, 8, 2), dim=1)
    keys[4:] = -queries[4:]
    loss, accuracy = info_nce(queries, keys, others, temperature)
    expected, found = by_hand(queries, keys, others, temperature)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(accuracy) == pytest.approx(found) and 0 < found < 1


def test_a_collapsed_encoder_finds_nothing():
    point = unit(1, 8, 0)
    loss, accuracy = info_nce(point.expand(4, 8), point.expand(4, 8), point.expand(7, 8), 0.2)
    assert float(loss) == pytest.approx(math.log(8), rel=1e-5)
    assert accuracy == 0


def embedded(objective, side, view, spots):
    """Images and spots as one side of the objective embeds them, whole batches at a time."""
    nets = {name: objective.modules[side + name] for name in ("trunk", "head", "dense_head")}
    levels = nets["trunk"](normalize(view))
    pair = nets["head"](levels[-1].mean((2, 3))), nets["dense_head"](point_features(levels[-2:], spots))
    return tuple(F.normalize(x, dim=1) for x in pair)


def test_the_game_adds_both_terms_and_queues_its_keys(images):
    objective = begun(images, TINY.changed(groups=1, dense=0.3))
    views = views_of(objective)
    with torch.no_grad():
        for net in ("key_trunk", "key_head", "key_dense_head"):  # so that a key is not mistaken for a query
            for parameter in objective.modules[net].parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        queries, query_spots = embedded(objective, "", views.first, views.first_points)
        keys, key_spots = embedded(objective, "key_", views.second, views.second_points)
    others = unit(8, 128, 3)
    expected, found = by_hand(queries, keys, others, 0.2)
    dense, _ = by_hand(query_spots, key_spots, others, 0.2)

    loss = objective.loss(views)
    assert float(loss.detach()) == pytest.approx(expected + 0.3 * dense, rel=1e-4)
    assert all(torch.equal(objective.modules[name].keys, others) for name in ("queue", "dense_queue"))

    figures = objective.finish(0.1)
    assert figures["accuracy"] == pytest.approx(found) and 0 < figures["spread"] < 1.1
    whole = F.normalize(key_spots.view(8, GRID * GRID, -1).mean(1), dim=1)
    for name, fresh in (("queue", keys), ("dense_queue", whole)):
        torch.testing.assert_close(objective.modules[name].keys, torch.cat([others, fresh]), atol=1e-4, rtol=0)


def spots_by_hand(queries, keys, others, at, near, temperature):
    """InfoNCE one spot at a time, in float64, with the spots of its own image that are not near, and all others."""
    losses = []
    for image in range(len(at)):
        for i, query in enumerate(queries[image].double()):
            far = [j for j in range(at.shape[1]) if j != i and (at[image, i] - at[image, j]).norm() >= 2 * near]
            strange = torch.cat([keys[image, far], others]).double() @ query / temperature
            own = keys[image, i].double() @ query / temperature
            losses.append(torch.logsumexp(torch.cat([own[None], strange]), 0) - own)
    return float(torch.stack(losses).mean())


def test_spots_are_told_from_far_ones_of_their_image_and_from_others():
    queries, keys = (F.normalize(torch.randn(3, 5, 8, generator=rng(seed)), dim=2) for seed in (0, 1))
    # The first two lie nearer than .15 of a view, which is .3 of its coordinates.
    at = torch.tensor([[-0.5, 0.0], [-0.25, 0.0], [0.5, 0.0], [0.0, 0.9], [0.0, -0.9]]).expand(3, 5, 2)
    others = unit(6, 8, 2)
    for strange in (others, others[:0]):
        loss = dense_info_nce(at, queries.flatten(0, 1), keys.flatten(0, 1), strange)
        assert float(loss) == pytest.approx(spots_by_hand(queries, keys, strange, at, 0.15, 0.1), rel=1e-5)
    without_near = spots_by_hand(queries, keys, others, at, 0.15, 0.1)
    assert spots_by_hand(queries, keys, others, at, 0.0, 0.1) > without_near + 1e-3


def test_a_game_with_spots_for_strangers_queues_some_of_their_keys(images):
    objective = MoCo(images, TINY.changed(strangers="spots", dense=1))
    assert len(objective.modules["dense_queue"].places) == 4096
    losses = [float(objective.loss(views_of(objective)).detach())]
    objective.finish(0.1)
    keys = objective.modules["dense_queue"].keys
    assert keys.shape == (8 * GRID * GRID, 128)
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(len(keys)))
    losses.append(float(objective.loss(views_of(objective)).detach()))
    assert losses[1] > losses[0] + 1, "the strangers of the queue make it harder"


def test_views_are_not_mirrored_where_all_things_face_one_way():
    facing = np.full((40, 32, 32, 3), 90, np.uint8)
    facing[:, 8:24, 4:12] = np.random.default_rng(0).integers(150, 255, (40, 1, 1, 3), dtype=np.uint8)
    recipe = TINY.changed(color=0, smallest=1)
    read, half = (MoCo(facing, recipe.changed(mirror=how)) for how in ("read", "half"))
    left = [views_of(objective).first[:, :, :, :16].mean((1, 2, 3)) for objective in (read, half)]
    right = [views_of(objective).first[:, :, :, 16:].mean((1, 2, 3)) for objective in (read, half)]
    assert bool((left[0] > right[0]).all())
    assert 0 < int((left[1] > right[1]).sum()) < 8
    both = np.concatenate([facing, facing[:, :, ::-1]])
    assert MoCo(both, recipe.changed(mirror="read")).mirror


@pytest.mark.parametrize("pushed", [4, 5, 12])  # 12 is no multiple of 5
def test_the_queue_holds_nothing_but_keys_and_gives_up_its_oldest_first(pushed):
    queue, real = Queue(12, 3), deque(maxlen=12)
    assert queue.keys.shape == (0, 3)
    for step in range(8):
        fresh = torch.arange(step * 12.0, step * 12 + pushed)[:, None].expand(pushed, 3)
        queue.push(fresh)
        real.extend(fresh[:, 0].tolist())
        assert sorted(queue.keys[:, 0].tolist()) == sorted(real)


def test_without_others_there_is_nothing_to_learn(images):
    objective = MoCo(images, TINY)
    loss = objective.loss(views_of(objective))
    loss.backward()
    assert loss == 0 and not any(p.grad.any() for p in objective.modules["trunk"].parameters())
    assert objective.finish(0.1)["accuracy"] == 1


def test_keys_get_no_gradient(images):
    objective = begun(images, TINY)
    followers = {name: net for name, net in objective.modules.items() if name.startswith("key_")}
    assert {name.removeprefix("key_") for name in followers} == {"trunk", "head", "dense_head"}
    objective.loss(views_of(objective)).backward()
    assert not any(p.requires_grad or p.grad is not None for net in followers.values() for p in net.parameters())
    learning = [p for name in ("trunk", "head", "dense_head") for p in objective.modules[name].parameters()]
    assert all(p.grad is not None and p.grad.any() for p in learning)
    # Weight decay moves whatever an optimizer holds, gradient or not.
    stepped = {id(p) for group in objective.optimizer.param_groups for p in group["params"]}
    assert stepped == {id(p) for p in learning}


def test_the_key_encoder_follows_by_its_momentum(images):
    objective = begun(images, TINY.changed(momentum=0.75, lr=3))
    query, key = objective.modules["trunk"], objective.modules["key_trunk"]
    assert all(torch.equal(a, b) for a, b in zip(query.parameters(), key.parameters(), strict=True))
    objective.loss(views_of(objective)).backward()
    objective.optimizer.step()
    learned = {name: p.detach().clone() for name, p in query.named_parameters()}
    old = {name: p.detach().clone() for name, p in key.named_parameters()}
    seen = key.bn1.running_mean.clone()

    objective.finish(0.1)

    assert (learned["conv1.weight"] - old["conv1.weight"]).abs().max() > 1e-4
    for name, p in key.named_parameters():
        torch.testing.assert_close(p, 0.75 * old[name] + 0.25 * learned[name])
    assert all(torch.equal(p, learned[name]) for name, p in query.named_parameters())
    # Its statistics are its own batches'.
    assert torch.equal(key.bn1.running_mean, seen) and not torch.equal(seen, query.bn1.running_mean)


class Watcher(nn.Module):
    """A trunk whose levels show each image's number, and how many came together."""

    def __init__(self):
        super().__init__()
        self.together = []

    def forward(self, images):
        self.together.append([int(n) for n in images[:, 0, 0, 0]])
        return images * 0, images[:, :1, :2, :2], images[:, :2, :1, :1]


def test_keys_pass_in_other_company_than_queries_and_come_back_in_order():
    numbered = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 3, 4, 4)
    straight, shuffled = Watcher(), Watcher()
    torch.manual_seed(0)
    for levels in (in_groups(straight, numbered, 3, 2), in_shuffled_groups(shuffled, numbered, 3, 2)):
        assert [tuple(level.shape[1:]) for level in levels] == [(1, 2, 2), (2, 1, 1)]
        assert all(torch.equal(level[:, 0, 0, 0], torch.arange(12.0)) for level in levels)
    assert straight.together == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [len(group) for group in shuffled.together] == [4, 4, 4]
    assert sorted(sum(shuffled.together, [])) == list(range(12))
    assert all(set(group) not in map(set, straight.together) for group in shuffled.together)


def test_batch_statistics_are_a_groups_own():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images):
            return images, self.norm(images)

    images = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    _, normed = in_groups(Normed(), images, 2, 2)
    for half in (slice(0, 3), slice(3, 6)):
        own = images[half]
        mean, var = own.mean((0, 2, 3), keepdim=True), own.var((0, 2, 3), unbiased=False, keepdim=True)
        torch.testing.assert_close(normed[half], (own - mean) / (var + 1e-5).sqrt(), atol=1e-5, rtol=0)


def play(objective, out, stop_at=None):
    recipe = LoopRecipe(kimg=0.032, batch=8, precision="fp32", checkpoint_seconds=0 if stop_at else 60)
    if stop_at is None:
        run_loop(objective, recipe, out, "moco", "f", journal_every=2, quiet=True)
        return
    steps, batch = iter(range(stop_at)), objective.batch

    def stopping(rng, images):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return batch(rng, images)

    objective.batch = stopping
    with pytest.raises(KeyboardInterrupt):
        run_loop(objective, recipe, out, "moco", "f", journal_every=2, quiet=True)


class Doll(nn.Module):
    """A trunk of two levels, small enough to be saved in every step."""

    channels = (4, 8)

    def __init__(self, name, stem_stride):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8)

    def forward(self, images):
        level = self.norm(self.first(images)).relu()
        return level, self.last(self.second(level)).relu()


def test_a_cut_run_ends_with_the_same_bits(images, tmp_path, monkeypatch):
    monkeypatch.setattr("partshot.pretext.moco.ResNetTrunk", Doll)
    whole, cut = MoCo(images, TINY), MoCo(images, TINY)
    play(whole, tmp_path / "whole")
    # After the third of four steps: the queue of two batches has begun anew.
    play(MoCo(images, TINY), tmp_path / "cut", stop_at=3)
    play(cut, tmp_path / "cut")
    for name, module in whole.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, cut.modules[name].state_dict()[key]), (name, key)
    figures = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_journal(tmp_path / run / "journal.jsonl")]
        for run in ("whole", "cut")
    ]
    assert figures[0] == figures[1]
    assert set(figures[0][-1]) == {"step", "images", "loss", "spread", "accuracy"}


def queued(rank, folder):
    # Every process has keys of its own, and the queue gets them all.
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    queue = Queue(8, 2)
    queue.push(all_gather(torch.full((2, 2), float(rank + 1))))
    torch.save(queue.keys, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_queue_is_the_same_in_every_process(tmp_path):
    alone = unit(3, 2, 0)
    assert all_gather(alone) is alone
    # Forked, not spawned: importing everything anew would take longer than the test.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=queued, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt").tolist() == [[1, 1], [1, 1], [2, 2], [2, 2]]


def found_again(objective):
    """Loss and accuracy among 64 images, both views seen by the encoder that learns."""
    views = objective.batch(torch.Generator().manual_seed(99), 64)
    with torch.no_grad():
        q, k = (
            F.normalize(objective.modules["head"](objective.modules["trunk"](normalize(view))[-1].mean((2, 3))), dim=1)
            for view in (views.first, views.second)
        )
    own = torch.arange(64)
    return float(F.cross_entropy(q @ k.T / 0.2, own)), float(((q @ k.T).argmax(1) == own).float().mean())


def test_a_short_training_finds_more_images_again(images):
    objective = MoCo(images, TINY.changed(batch=16, lr=0.1, color=0.3, smallest=0.5))
    loss, accuracy = found_again(objective)
    for step in range(12):
        torch.manual_seed(step)
        objective.optimizer.zero_grad()
        objective.loss(objective.batch(torch.Generator().manual_seed(step), 16)).backward()
        objective.optimizer.step()
        objective.finish(0.1)
    lower, higher = found_again(objective)
    assert lower < loss and higher > accuracy


def test_the_rate_falls_to_nothing(images):
    objective = MoCo(images, TINY.changed(lr=0.03))
    for progress, share in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
        objective.prepare(progress)
        assert objective.optimizer.param_groups[0]["lr"] == pytest.approx(0.03 * 8 / 256 * share)


def test_what_is_kept_has_torchvisions_names(images):
    names = set(torchvision.models.resnet18().state_dict())
    assert set(MoCo(images, TINY).trained()) == {n for n in names if not n.startswith("fc.")}


def test_initial_weights_follow_the_seed(images):
    one, same, other = (MoCo(images, TINY, seed).trained()["conv1.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_written_and_read(name, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(PRESETS[name].to_toml())
    assert MoCoRecipe.from_toml(path) == PRESETS[name]
    assert math.isclose(PRESETS["moco-v2-paper"].view * PRESETS["moco-v2-paper"].size, 224)


@pytest.mark.parametrize(
    ("wrong", "cure"),
    [
        ({"batch": 32}, "a queue of 16 keys holds no batch of 32; take a batch of 16 or less"),
        ({"strangers": "spots", "dense": 0}, "in the dense term alone, and dense is 0; set it above 0"),
        ({"groups": 5}, "a batch of 8 makes no 5 groups of two images or more; take a batch of 10 or more"),
        ({"batch": 1}, "batch' = 1"),
        ({"temperature": 0}, "temperature' = 0"),
        ({"momentum": 1}, "momentum' = 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_cure(wrong, cure):
    with pytest.raises(BadRecipe, match=cure):
        TINY.changed(**wrong)


def test_too_many_groups_for_a_devices_share_are_refused(images):
    with pytest.raises(BadRecipe, match="3 images a device do not make 2 groups of two or more; raise the batch"):
        MoCo(images, TINY).batch(torch.Generator(), 3)
