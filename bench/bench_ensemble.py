"""DatasetGAN's ten MLPs, trained in one batched pass and one after the other: time and mIoU after equally many steps.

The images are the ten labeled faces of the embedded generator, 64 px and 704 channels; five are for training and five
for test, in another split for each seed. "published" trains one network after the other, as the published code: the
same network in plain torch, a DataLoader that shuffles the hypercolumn of all labeled pixels with 64 pixels a step, and
Adam. Its time does not include computing the hypercolumn; the time of "batched" includes reading the pyramids in every
step. "by index" is the same without the DataLoader, whose overhead is large for small networks: rows are selected by
index. Times are CPU seconds on one thread, since wall time on a shared machine includes other processes; on several
threads they are wall time.

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
            loss.item()  # needed by the published early stopping
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
    variants = ("batched", "published", "by index")
    seconds, quality = ({variant: [] for variant in variants} for _ in "sq")
    # Libraries allocate their own buffers on first use.
    batched(pyramid[:1], generator, faces.subset([0]), 0)
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(faces))
        train, held_out = (sorted(half.tolist()) for half in np.split(order, 2))
        shots, test = faces.subset(train), faces.subset(held_out)
        read, unseen = pyramid[torch.tensor(train)], pyramid[torch.tensor(held_out)]
        rows, classes = rows_of(read, shots), len(faces.parts)

        spent, head = timed(batched, read, generator, shots, seed)
        seconds["batched"].append(spent)
        with torch.no_grad():
            found = {"batched": vote_with_uncertainty(head.members(unseen)).labels}
        for variant, batches in (("published", published_loader), ("by index", by_index)):
            spent, nets = timed(one_after_the_other, rows, classes, seed, batches)
            seconds[variant].append(spent)
            with torch.no_grad():
                votes = torch.stack([net(rows_of(unseen, test)[0]).argmax(1) for net in nets])
            found[variant] = vote(votes.view(MEMBERS, *found["batched"].shape), classes).byte()
        for variant, labels in found.items():
            quality[variant].append(score(test.labels, list(labels.cpu().numpy()), test.parts).miou)
        line = (f"{variant} {seconds[variant][-1]:.1f} s, mIoU {quality[variant][-1]:.3f}" for variant in variants)
        print(f"seed {seed}: " + "; ".join(line), flush=True)

    threads = torch.get_num_threads()
    print(f"{MEMBERS} members, {STEPS} steps of {BATCH} pixels, {sum(pyramid.channels)} channels; threads: {threads}")
    for variant in variants:
        print(
            f"{variant:10} {1e3 * np.mean(seconds[variant]) / STEPS:6.2f} ms per step of all members"
            f"   mIoU {np.mean(quality[variant]):.4f} +- {np.std(quality[variant]):.4f} over splits"
        )
    # "published" and "by index" train the same networks; their mean is a less noisy reference.
    difference = np.subtract(quality["batched"], (np.array(quality["published"]) + quality["by index"]) / 2)
    error = difference.std(ddof=1) / np.sqrt(SEEDS)
    ratios = {
        variant: round(float(np.median(np.divide(seconds[variant], seconds["batched"]))), 2) for variant in variants[1:]
    }
    result = {"speed_ratio": ratios["published"], "miou_difference": round(float(difference.mean()), 4)}
    more = {
        "speed_ratio_by_index": ratios["by index"],
        "miou_difference_error": round(float(error), 4),
        "miou": {variant: np.round(quality[variant], 4).tolist() for variant in variants},
        "seconds": {variant: np.round(seconds[variant], 2).tolist() for variant in variants},
        "steps": STEPS,
        "machine": {"cpu": platform.machine(), "threads": threads, "torch": torch.__version__},
    }
    print(f"without the DataLoader {ratios['by index']} times; mIoU difference {difference.mean():.4f} +- {error:.4f}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench_ensemble.json").write_text(json.dumps({**result, **more}, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
