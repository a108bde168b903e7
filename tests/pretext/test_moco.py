"""MoCo: loss, queue, momentum encoder, shuffling BN, recipes, and reproducible resuming."""

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
from partshot.pretext.view_pairs import GRID, normalize, point_features
from partshot.train.journal import read_journal
from partshot.train.loop import LoopRecipe, run_loop

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = PRESETS["small-folder"].changed(size=32, view=1.0, batch=8, queue=16, groups=2)


@pytest.fixture(scope="module")
def images():
    """Random color blocks."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (64, 4, 4, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 8, 8, 1), np.uint8))


def views_of(objective, seed=0):
    return objective.batch(torch.Generator().manual_seed(seed), 8)


def rng(seed):
    return torch.Generator().manual_seed(seed)


def unit(rows, dim, seed):
    return F.normalize(torch.randn(rows, dim, generator=rng(seed)), dim=1)


def with_filled_queues(images, recipe):
    """An objective with keys in its queues; without negatives the loss is 0."""
    objective = MoCo(images, recipe)
    for name in ("queue", "dense_queue"):
        objective.modules[name].push(unit(8, recipe.dim, 3))
    return objective


def reference(queries, keys, negatives, temperature):
    """Equation 1 for one query at a time, in float64; and the share of queries whose positive is the nearest."""
    q, k, rest = (x.detach().double().numpy() for x in (queries, keys, negatives))
    losses, correct = [], 0
    for i in range(len(q)):
        positive = math.exp(q[i] @ k[i] / temperature)
        negative = [math.exp(q[i] @ other / temperature) for other in rest]
        losses.append(-math.log(positive / (positive + sum(negative))))
        correct += positive > max(negative)
    return sum(losses) / len(q), correct / len(q)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_the_loss_is_equation_one(temperature):
    queries, negatives = unit(6, 8, 0), unit(12, 8, 1)
    keys = F.normalize(queries + 0.7 * unit(6, 8, 2), dim=1)
    keys[4:] = -queries[4:]
    loss, accuracy = info_nce(queries, keys, negatives, temperature)
    expected, correct = reference(queries, keys, negatives, temperature)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(accuracy) == pytest.approx(correct) and 0 < correct < 1


def test_the_accuracy_of_a_collapsed_encoder_is_0():
    point = unit(1, 8, 0)
    loss, accuracy = info_nce(point.expand(4, 8), point.expand(4, 8), point.expand(7, 8), 0.2)
    assert float(loss) == pytest.approx(math.log(8), rel=1e-5)
    assert accuracy == 0


def embed(objective, prefix, view, points):
    """Global and local embeddings of the query encoder (prefix "") or the key encoder ("key_"), without groups."""
    nets = {name: objective.modules[prefix + name] for name in ("trunk", "head", "dense_head")}
    levels = nets["trunk"](normalize(view))
    pair = nets["head"](levels[-1].mean((2, 3))), nets["dense_head"](point_features(levels[-2:], points))
    return tuple(F.normalize(x, dim=1) for x in pair)


def test_the_loss_has_both_terms_and_keys_are_queued(images):
    objective = with_filled_queues(images, TINY.changed(groups=1, dense=0.3))
    views = views_of(objective)
    with torch.no_grad():
        for net in ("key_trunk", "key_head", "key_dense_head"):  # so that query and key encoders differ
            for parameter in objective.modules[net].parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        queries, local_queries = embed(objective, "", views.first, views.first_points)
        keys, local_keys = embed(objective, "key_", views.second, views.second_points)
    negatives = unit(8, 128, 3)
    expected, correct = reference(queries, keys, negatives, 0.2)
    dense, _ = reference(local_queries, local_keys, negatives, 0.2)

    loss = objective.loss(views)
    assert float(loss.detach()) == pytest.approx(expected + 0.3 * dense, rel=1e-4)
    assert all(torch.equal(objective.modules[name].keys, negatives) for name in ("queue", "dense_queue"))

    figures = objective.finish(0.1)
    assert figures["accuracy"] == pytest.approx(correct) and 0 < figures["spread"] < 1.1
    pooled = F.normalize(local_keys.view(8, GRID * GRID, -1).mean(1), dim=1)
    for name, new in (("queue", keys), ("dense_queue", pooled)):
        torch.testing.assert_close(objective.modules[name].keys, torch.cat([negatives, new]), atol=1e-4, rtol=0)


def dense_reference(queries, keys, negatives, points, min_distance, temperature):
    """InfoNCE for one point at a time, in float64, with distant points of the same image and `negatives`."""
    losses = []
    for image in range(len(points)):
        for i, query in enumerate(queries[image].double()):
            distances = (points[image, i] - points[image]).norm(dim=1)
            far = [j for j in range(points.shape[1]) if j != i and distances[j] >= 2 * min_distance]
            negative = torch.cat([keys[image, far], negatives]).double() @ query / temperature
            positive = keys[image, i].double() @ query / temperature
            losses.append(torch.logsumexp(torch.cat([positive[None], negative]), 0) - positive)
    return float(torch.stack(losses).mean())


def test_local_negatives_are_distant_points_of_the_same_image_and_the_queue():
    queries, keys = (F.normalize(torch.randn(3, 5, 8, generator=rng(seed)), dim=2) for seed in (0, 1))
    # The first two points are closer than 0.15 of a view, which is 0.3 in its coordinates.
    points = torch.tensor([[-0.5, 0.0], [-0.25, 0.0], [0.5, 0.0], [0.0, 0.9], [0.0, -0.9]]).expand(3, 5, 2)
    queue = unit(6, 8, 2)
    for negatives in (queue, queue[:0]):
        loss = dense_info_nce(points, queries.flatten(0, 1), keys.flatten(0, 1), negatives)
        assert float(loss) == pytest.approx(dense_reference(queries, keys, negatives, points, 0.15, 0.1), rel=1e-5)
    without_close_points = dense_reference(queries, keys, queue, points, 0.15, 0.1)
    assert dense_reference(queries, keys, queue, points, 0.0, 0.1) > without_close_points + 1e-3


def test_local_negatives_are_queued(images):
    objective = MoCo(images, TINY.changed(dense_negatives="local", dense=1))
    assert len(objective.modules["dense_queue"].places) == 4096
    losses = [float(objective.loss(views_of(objective)).detach())]
    objective.finish(0.1)
    keys = objective.modules["dense_queue"].keys
    assert keys.shape == (8 * GRID * GRID, 128)
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(len(keys)))
    losses.append(float(objective.loss(views_of(objective)).detach()))
    assert losses[1] > losses[0] + 1, "negatives from the queue increase the loss"


def test_views_are_not_flipped_if_all_objects_face_one_way():
    facing = np.full((40, 32, 32, 3), 90, np.uint8)
    facing[:, 8:24, 4:12] = np.random.default_rng(0).integers(150, 255, (40, 1, 1, 3), dtype=np.uint8)
    recipe = TINY.changed(color=0, min_scale=1)
    auto, half = (MoCo(facing, recipe.changed(flip=flip)) for flip in ("auto", "half"))
    left = [views_of(objective).first[:, :, :, :16].mean((1, 2, 3)) for objective in (auto, half)]
    right = [views_of(objective).first[:, :, :, 16:].mean((1, 2, 3)) for objective in (auto, half)]
    assert bool((left[0] > right[0]).all())
    assert 0 < int((left[1] > right[1]).sum()) < 8
    both = np.concatenate([facing, facing[:, :, ::-1]])
    assert MoCo(both, recipe.changed(flip="auto")).flip


@pytest.mark.parametrize("pushed", [4, 5, 12])  # 12 is not a multiple of 5
def test_the_queue_is_first_in_first_out(pushed):
    queue, expected = Queue(12, 3), deque(maxlen=12)
    assert queue.keys.shape == (0, 3)
    for step in range(8):
        keys = torch.arange(step * 12.0, step * 12 + pushed)[:, None].expand(pushed, 3)
        queue.push(keys)
        expected.extend(keys[:, 0].tolist())
        assert sorted(queue.keys[:, 0].tolist()) == sorted(expected)


def test_without_negatives_the_loss_is_0(images):
    objective = MoCo(images, TINY)
    loss = objective.loss(views_of(objective))
    loss.backward()
    assert loss == 0 and not any(p.grad.any() for p in objective.modules["trunk"].parameters())
    assert objective.finish(0.1)["accuracy"] == 1


def test_keys_get_no_gradient(images):
    objective = with_filled_queues(images, TINY)
    key_nets = {name: net for name, net in objective.modules.items() if name.startswith("key_")}
    assert {name.removeprefix("key_") for name in key_nets} == {"trunk", "head", "dense_head"}
    objective.loss(views_of(objective)).backward()
    assert not any(p.requires_grad or p.grad is not None for net in key_nets.values() for p in net.parameters())
    trained = [p for name in ("trunk", "head", "dense_head") for p in objective.modules[name].parameters()]
    assert all(p.grad is not None and p.grad.any() for p in trained)
    # Weight decay changes all parameters of an optimizer, so key encoders must not be in it.
    optimized = {id(p) for group in objective.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in trained}


def test_momentum_update_of_the_key_encoder(images):
    objective = with_filled_queues(images, TINY.changed(momentum=0.75, lr=3))
    query, key = objective.modules["trunk"], objective.modules["key_trunk"]
    assert all(torch.equal(a, b) for a, b in zip(query.parameters(), key.parameters(), strict=True))
    objective.loss(views_of(objective)).backward()
    objective.optimizer.step()
    learned = {name: p.detach().clone() for name, p in query.named_parameters()}
    old = {name: p.detach().clone() for name, p in key.named_parameters()}
    running_mean = key.bn1.running_mean.clone()

    objective.finish(0.1)

    assert (learned["conv1.weight"] - old["conv1.weight"]).abs().max() > 1e-4
    for name, p in key.named_parameters():
        torch.testing.assert_close(p, 0.75 * old[name] + 0.25 * learned[name])
    assert all(torch.equal(p, learned[name]) for name, p in query.named_parameters())
    # BatchNorm statistics are not updated.
    assert torch.equal(key.bn1.running_mean, running_mean)
    assert not torch.equal(running_mean, query.bn1.running_mean)


class RecordingTrunk(nn.Module):
    """A trunk that records the groups of images it gets; its levels contain each image's number."""

    def __init__(self):
        super().__init__()
        self.groups = []

    def forward(self, images):
        self.groups.append([int(n) for n in images[:, 0, 0, 0]])
        return images * 0, images[:, :1, :2, :2], images[:, :2, :1, :1]


def test_shuffled_groups_differ_and_results_are_in_order():
    numbered = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 3, 4, 4)
    ordered, shuffled = RecordingTrunk(), RecordingTrunk()
    torch.manual_seed(0)
    for levels in (in_groups(ordered, numbered, 3, 2), in_shuffled_groups(shuffled, numbered, 3, 2)):
        assert [tuple(level.shape[1:]) for level in levels] == [(1, 2, 2), (2, 1, 1)]
        assert all(torch.equal(level[:, 0, 0, 0], torch.arange(12.0)) for level in levels)
    assert ordered.groups == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [len(group) for group in shuffled.groups] == [4, 4, 4]
    assert sorted(sum(shuffled.groups, [])) == list(range(12))
    assert all(set(group) not in map(set, ordered.groups) for group in shuffled.groups)


def test_groups_have_separate_batch_statistics():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images):
            return images, self.norm(images)

    images = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    _, normed = in_groups(Normed(), images, 2, 2)
    for half in (slice(0, 3), slice(3, 6)):
        group = images[half]
        mean, var = group.mean((0, 2, 3), keepdim=True), group.var((0, 2, 3), unbiased=False, keepdim=True)
        torch.testing.assert_close(normed[half], (group - mean) / (var + 1e-5).sqrt(), atol=1e-5, rtol=0)


def train(objective, out, stop_at=None):
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


class SmallTrunk(nn.Module):
    """A trunk of two levels, small enough to be saved in every step."""

    channels = (4, 8)

    def __init__(self, name, stem_stride):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8)

    def forward(self, images):
        level = self.norm(self.first(images)).relu()
        return level, self.last(self.second(level)).relu()


def test_a_resumed_run_gives_the_same_bits(images, tmp_path, monkeypatch):
    monkeypatch.setattr("partshot.pretext.moco.ResNetTrunk", SmallTrunk)
    whole, resumed = MoCo(images, TINY), MoCo(images, TINY)
    train(whole, tmp_path / "whole")
    # Stopped after three of four steps, when the queue of two batches has started to replace keys.
    train(MoCo(images, TINY), tmp_path / "resumed", stop_at=3)
    train(resumed, tmp_path / "resumed")
    for name, module in whole.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, resumed.modules[name].state_dict()[key]), (name, key)
    figures = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_journal(tmp_path / run / "journal.jsonl")]
        for run in ("whole", "resumed")
    ]
    assert figures[0] == figures[1]
    assert set(figures[0][-1]) == {"step", "images", "loss", "spread", "accuracy"}


def run_process(rank, folder):
    # Each process has its own keys; the queue gets all of them.
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    queue = Queue(8, 2)
    queue.push(all_gather(torch.full((2, 2), float(rank + 1))))
    torch.save(queue.keys, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_queue_is_the_same_in_every_process(tmp_path):
    keys = unit(3, 2, 0)
    assert all_gather(keys) is keys
    # Forked instead of spawned, because imports would take longer than the test.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_process, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt").tolist() == [[1, 1], [1, 1], [2, 2], [2, 2]]


def evaluate(objective):
    """Loss and accuracy for 64 images, both views embedded by the query encoder."""
    views = objective.batch(torch.Generator().manual_seed(99), 64)
    with torch.no_grad():
        q, k = (
            F.normalize(objective.modules["head"](objective.modules["trunk"](normalize(view))[-1].mean((2, 3))), dim=1)
            for view in (views.first, views.second)
        )
    target = torch.arange(64)
    return float(F.cross_entropy(q @ k.T / 0.2, target)), float(((q @ k.T).argmax(1) == target).float().mean())


def test_a_short_training_improves_loss_and_accuracy(images):
    objective = MoCo(images, TINY.changed(batch=16, lr=0.1, color=0.3, min_scale=0.5))
    loss, accuracy = evaluate(objective)
    for step in range(12):
        torch.manual_seed(step)
        objective.optimizer.zero_grad()
        objective.loss(objective.batch(torch.Generator().manual_seed(step), 16)).backward()
        objective.optimizer.step()
        objective.finish(0.1)
    trained_loss, trained_accuracy = evaluate(objective)
    assert trained_loss < loss and trained_accuracy > accuracy


def test_the_learning_rate_decays_to_0(images):
    objective = MoCo(images, TINY.changed(lr=0.03))
    for progress, share in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
        objective.prepare(progress)
        assert objective.optimizer.param_groups[0]["lr"] == pytest.approx(0.03 * 8 / 256 * share)


def test_trained_weights_have_torchvisions_names(images):
    names = set(torchvision.models.resnet18().state_dict())
    assert set(MoCo(images, TINY).trained()) == {n for n in names if not n.startswith("fc.")}


def test_initial_weights_depend_on_the_seed(images):
    one, same, other = (MoCo(images, TINY, seed).trained()["conv1.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_written_and_read(name, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(PRESETS[name].to_toml())
    assert MoCoRecipe.from_toml(path) == PRESETS[name]
    assert math.isclose(PRESETS["moco-v2-paper"].view * PRESETS["moco-v2-paper"].size, 224)


def test_fingerprints_of_presets_are_those_of_older_versions():
    """Settings and values have been renamed since."""
    expected = {
        "moco-v2-paper": "3b32a9f21575",
        "ganorcon": "8b37b750a601",
        "small-folder": "df07d6607d6d",
        "small-folder-gpu": "e8344c4a7fdf",
        "small-folder-long": "8c4ee452879b",
    }
    assert {name: recipe.fingerprint for name, recipe in PRESETS.items()} == expected


def test_old_names_of_settings_and_values_are_read(tmp_path):
    path = tmp_path / "recipe.toml"
    current = PRESETS["small-folder-long"].to_toml()
    assert 'dense_negatives = "local"' in current and 'flip = "auto"' in current
    old = current.replace('dense_negatives = "local"', 'strangers = "spots"')
    old = old.replace('flip = "auto"', 'mirror = "read"').replace("min_scale =", "smallest =")
    path.write_text(old.replace("lr =", "rate =").replace("weight_decay =", "decay ="))
    assert MoCoRecipe.from_toml(path) == PRESETS["small-folder-long"]
    for values in ({"strangers": "pictures"}, {"strangers": "images"}, {"mirror": "half"}):
        assert TINY == MoCoRecipe.parse({**TINY.model_dump(exclude={"dense_negatives", "flip"}), **values})
    with pytest.raises(BadRecipe, match="setting 'dense_negatives' = 'spot': must be 'images' or 'local'"):
        TINY.changed(dense_negatives="spot")
    with pytest.raises(BadRecipe, match="setting 'flip'"):
        TINY.changed(flip=["auto"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 32}, "a batch of 32 does not fit in a queue of 16 keys; use a batch of 16 or less"),
        ({"dense_negatives": "local", "dense": 0}, "needs the dense loss, but dense is 0; set it above 0"),
        (
            {"groups": 5},
            "cannot be divided into 5 groups of two or more images; use a batch of 10 or more",
        ),
        ({"batch": 1}, "batch' = 1"),
        ({"temperature": 0}, "temperature' = 0"),
        ({"momentum": 1}, "momentum' = 1"),
    ],
)
def test_invalid_settings_are_refused_with_a_fix(wrong, message):
    with pytest.raises(BadRecipe, match=message):
        TINY.changed(**wrong)


def test_too_few_images_per_device_for_the_groups_are_refused(images):
    with pytest.raises(BadRecipe, match="3 images per device cannot be divided into 2 groups of two or more; raise"):
        MoCo(images, TINY).batch(torch.Generator(), 3)
