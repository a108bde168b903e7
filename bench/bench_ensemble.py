"""DatasetGAN's ten MLPs, trained in one batched pass and one after the other: time, and quality after as many steps.

The images are the ten labeled faces of the embedded generator, 64 px and 704 channels; five are learned from and the
other five measured on, another split for each seed. One after the other is as published: the same network in plain
torch, a DataLoader that shuffles the hypercolumn of all labeled pixels, 64 a step, and Adam. The hypercolumn's making
is not counted; what the batched way reads of the pyramids, step by step, is. A second figure does without the
DataLoader, whose part is large where networks are small: rows are taken by index. On one thread times are processor
seconds, since on a machine that is shared the wall clock counts others' work; on several they are the wall clock's.

    python bench/bench_ensemble.py [--threads 2]
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from partshot.data.shots import Shots
from partshot.heads.ensemble import Ensemble
from partshot.machine import available_cores
from partshot.metrics import score
from partshot.ops.disagreement import vote, vote_with_uncertainty
from partshot.ops.hypercolumn import stack
from partshot.pyramid import Pyramid
from partshot.represent.stylegan import StyleGAN, load_stylegan
from partshot.tasks.sample import embedded_shots, latents_of_names
from partshot.train.fit_ensemble import PRESETS, fit_ensemble

MEMBERS, STEPS, BATCH, SEEDS = 10, 600, 64, 8
RESULTS = Path(__file__).parent / "results"

Rows = tuple[torch.Tensor, torch.Tensor]


def published_loader(rows: Rows) -> Iterator[Rows]:
    while True:
        yield from DataLoader(TensorDataset(*rows), batch_size=BATCH, shuffle=True)


def by_index(rows: Rows) -> Iterator[Rows]:
    while True:
        for chosen in torch.randperm(len(rows[0])).split(BATCH):
            yield rows[0][chosen], rows[1][chosen]


def member(channels: int, classes: int) -> nn.Sequential:
    """The published network for fewer than 32 classes."""
    net = nn.Sequential(
        nn.Linear(channels, 128), nn.ReLU(), nn.BatchNorm1d(128),
        nn.Linear(128, 32), nn.ReLU(), nn.BatchNorm1d(32),
        nn.Linear(32, classes),
    )  # fmt: skip
    for layer in net[::3]:
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return net


def one_after_the_other(
    rows: Rows, classes: int, seed: int, batches: Callable[[Rows], Iterator[Rows]]
) -> list[nn.Module]:
    torch.manual_seed(seed)
    nets = []
    for _ in range(MEMBERS):
        net = member(rows[0].shape[1], classes)
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for _, (features, ids) in zip(range(STEPS), batches(rows), strict=False):
            loss = F.cross_entropy(net(features), ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # what the published early stop looks at
        nets.append(net.eval())
    return nets


def batched(pyramid: Pyramid, generator: StyleGAN, shots: Shots, seed: int) -> Ensemble:
    recipe = PRESETS["datasetgan"].changed(pixels=STEPS * BATCH, patience=None, seed=seed)
    head = Ensemble(pyramid.channels, len(shots.parts), MEMBERS)
    return fit_ensemble(head, generator, shots, recipe, generator.size, quiet=True, read=pyramid)


def rows_of(pyramid: Pyramid, shots: Shots) -> Rows:
    """The hypercolumn of all pixels, [pixels, channels], and their ids."""
    ids = torch.from_numpy(np.stack(shots.labels)).long().flatten().to(pyramid.maps[0].device)
    return stack(pyramid).permute(0, 2, 3, 1).flatten(0, 2).contiguous(), ids


def timed(work: Callable, *given) -> tuple[float, object]:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    made = work(*given)
    return clock() - began, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=available_cores())
    torch.set_num_threads(parser.parse_args().threads)
    generator, faces = load_stylegan(), embedded_shots()
    with torch.no_grad():
        pyramid = generator.synthesize(latents_of_names(generator, faces))[1]
    ways = ("batched", "published", "by index")
    seconds, quality = ({way: [] for way in ways} for _ in "sq")
    # Libraries allocate their own buffers on first use.
    batched(pyramid[:1], generator, faces.subset([0]), 0)
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(faces))
        learned, held = (sorted(half.tolist()) for half in np.split(order, 2))
        shots, test = faces.subset(learned), faces.subset(held)
        read, unseen = pyramid[torch.tensor(learned)], pyramid[torch.tensor(held)]
        rows, classes = rows_of(read, shots), len(faces.parts)

        spent, head = timed(batched, read, generator, shots, seed)
        seconds["batched"].append(spent)
        with torch.no_grad():
            found = {"batched": vote_with_uncertainty(head.members(unseen)).labels}
        for way, batches in (("published", published_loader), ("by index", by_index)):
            spent, nets = timed(one_after_the_other, rows, classes, seed, batches)
            seconds[way].append(spent)
            with torch.no_grad():
                ballots = torch.stack([net(rows_of(unseen, test)[0]).argmax(1) for net in nets])
            found[way] = vote(ballots.view(MEMBERS, *found["batched"].shape), classes).byte()
        for way, labels in found.items():
            quality[way].append(score(test.labels, list(labels.cpu().numpy()), test.parts).miou)
        told = (f"{way} {seconds[way][-1]:.1f} s, mIoU {quality[way][-1]:.3f}" for way in ways)
        print(f"seed {seed}: " + "; ".join(told), flush=True)

    threads = torch.get_num_threads()
    print(f"{MEMBERS} members, {STEPS} steps of {BATCH} pixels, {sum(pyramid.channels)} channels; threads: {threads}")
    for way in ways:
        print(
            f"{way:10} {1e3 * np.mean(seconds[way]) / STEPS:6.2f} ms per step of all members"
            f"   mIoU {np.mean(quality[way]):.4f} +- {np.std(quality[way]):.4f} over splits"
        )
    # Both ways of one after the other train alike; their mean is the less noisy reference.
    apart = np.subtract(quality["batched"], (np.array(quality["published"]) + quality["by index"]) / 2)
    error = apart.std(ddof=1) / np.sqrt(SEEDS)
    ratios = {way: round(float(np.median(np.divide(seconds[way], seconds["batched"]))), 2) for way in ways[1:]}
    result = {"speed_ratio": ratios["published"], "miou_difference": round(float(apart.mean()), 4)}
    more = {
        "speed_ratio_by_index": ratios["by index"],
        "miou_difference_error": round(float(error), 4),
        "miou": {way: np.round(quality[way], 4).tolist() for way in ways},
        "seconds": {way: np.round(seconds[way], 2).tolist() for way in ways},
        "steps": STEPS,
        "machine": {"cpu": platform.machine(), "threads": threads, "torch": torch.__version__},
    }
    print(f"without the DataLoader {ratios['by index']} times; mIoU apart {apart.mean():.4f} +- {error:.4f}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench_ensemble.json").write_text(json.dumps({**result, **more}, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
