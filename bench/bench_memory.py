"""DatasetGAN's training on sixteen images of 512 px with 5,056 channels: memory of the process and time per step.

The feature maps have the shapes of those that DatasetGAN takes from StyleGAN1 for cars, two of each size from 4 to
512 px; the values are random, in float16. The published code stores the hypercolumn of all labeled pixels instead: 43
GB in float16, and twice that in float32, in which it trains; its users report 160-260 GB. Memory is the peak of a new
process, libraries and features included.

    python bench/bench_memory.py [--threads 1]
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from partshot.data.shots import Shots
from partshot.heads.ensemble import Ensemble
from partshot.parts import PartSet
from partshot.pyramid import Pyramid
from partshot.represent.pixels import Pixels
from partshot.train.fit_ensemble import PRESETS, fit_ensemble

IMAGES, SIZE, CLASSES, STEPS, BATCH = 16, 512, 20, 1000, 64

# (side, channels), finest first: two maps of each size, 5,056 channels in all.
MAPS = tuple(
    (side, channels)
    for side, channels in (
        (512, 32), (256, 64), (128, 128), (64, 256), (32, 512), (16, 512), (8, 512), (4, 512)
    )
    for _ in "12"
)  # fmt: skip


def random_pyramid() -> Pyramid:
    rng, maps = torch.Generator().manual_seed(0), []
    for side, channels in MAPS:
        level = torch.empty(IMAGES, channels, side, side, dtype=torch.float16, memory_format=torch.channels_last)
        for image in level:
            # One image at a time, since random numbers are generated in float32.
            image.copy_(torch.randn(side, side, channels, generator=rng).permute(2, 0, 1))
        maps.append(level)
    return Pyramid(tuple(maps), (SIZE, SIZE))


def rings() -> Shots:
    """Gray images whose masks are rings, each with another center, so that every class has pixels."""
    y, x = np.mgrid[:SIZE, :SIZE]
    centers = np.random.default_rng(0).uniform(0.4, 0.6, (IMAGES, 2)) * SIZE
    labels = tuple(
        np.clip(np.hypot(x - a, y - b) / SIZE * 2 * CLASSES, 0, CLASSES - 1).astype(np.uint8) for a, b in centers
    )
    gray = np.full((SIZE, SIZE, 3), 128, np.uint8)
    parts = PartSet.of(*(f"ring {i}" for i in range(CLASSES)))
    return Shots((gray,) * IMAGES, labels, tuple(f"rings {i}" for i in range(IMAGES)), parts)


def measure() -> dict:
    """Fits in this process. The time per step is for all members, reading of the features included."""
    pyramid, shots = random_pyramid(), rings()
    before = peak()
    head = Ensemble(pyramid.channels, CLASSES)

    def seconds(steps: int) -> float:
        recipe = PRESETS["datasetgan"].changed(pixels=steps * BATCH)
        began = time.perf_counter()
        fit_ensemble(head, Pixels(), shots, recipe, SIZE, quiet=True, read=pyramid)
        return time.perf_counter() - began

    first, whole = seconds(1), seconds(STEPS)
    return {
        "peak_gb": round(peak(), 2),
        "seconds": round((whole - first) / (STEPS - 1), 4),
        "fit_seconds": round(whole, 1),
        "steps": STEPS,
        "gb_before_the_fit": round(before, 2),
        "features_gb": round(sum(m.nbytes for m in pyramid.maps) / 1e9, 2),
        "core_seconds": round(time.process_time(), 1),
        "load": round(os.getloadavg()[0], 1),
    }


def peak() -> float:
    """Peak memory of this process in gigabytes; Linux reports kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measure()))
        return

    command = [sys.executable, __file__, "--measure", "--threads", str(arguments.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    channels, pixels = sum(c for _, c in MAPS), IMAGES * SIZE**2
    print(f"{IMAGES} images of {SIZE} px, {channels} channels, {CLASSES} classes; threads: {arguments.threads}")
    print(f"peak memory {found['peak_gb']:.2f} GB, {found['features_gb']:.2f} GB of it the features in float16")
    print(f"the hypercolumn alone would be {pixels * channels * 2 / 1e9:.1f} GB in float16")
    print(f"a step of ten members {found['seconds'] * 1e3:.1f} ms, {STEPS} steps {found['fit_seconds']:.1f} s")
    print(f"load average at the end {found['load']}: above the number of cores, the times include other processes")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    machine = {"cpu": platform.machine(), "threads": arguments.threads, "torch": torch.__version__}
    (results / "bench_memory.json").write_text(json.dumps({**found, "machine": machine}, indent=1) + "\n")
    print(json.dumps({name: found[name] for name in ("peak_gb", "seconds")}))


if __name__ == "__main__":
    main()
