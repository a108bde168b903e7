"""Lazy against materialized hypercolumn: a first layer of 128 outputs at 512 px over StyleGAN2-shaped maps.

Each way runs in a process of its own; its memory is the peak above what the maps and the libraries take. The
materialized way is what published code does: resize every map, concatenate, 1x1 convolution.

    python bench/bench_pyramid.py
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from partshot.ops.hypercolumn import project, stack
from partshot.pyramid import Pyramid

SIZE, OUTPUTS = 512, 128

# (side, channels), finest first: 16 maps of 8-512 px and 4,992 channels, the widths of a 512 px StyleGAN2. Two maps
# per size, except that the 128 channels at 512 px come as four maps of 32.
MAPS = tuple(
    (side, channels)
    for side, channels, count in (
        (512, 32, 4),
        (256, 128, 2),
        (128, 256, 2),
        (64, 512, 2),
        (32, 512, 2),
        (16, 512, 2),
        (8, 512, 2),
    )
    for _ in range(count)
)
RUNS = {"lazy": 5, "materialized": 2}


def lazy(pyramid, weights):
    return project(pyramid, weights)


def materialized(pyramid, weights):
    return F.conv2d(stack(pyramid), torch.cat(weights, 1)[:, :, None, None])


def make_maps(maps, size):
    rng = torch.Generator().manual_seed(0)
    levels = tuple(torch.randn(1, c, s, s, generator=rng) for s, c in maps)
    return Pyramid(levels, (size, size)), [torch.randn(OUTPUTS, c, generator=rng) / 70 for _, c in maps]


def measure(way: str, out: Path) -> dict:
    """Runs one way in this process; writes its result for comparison."""
    function = {"lazy": lazy, "materialized": materialized}[way]
    with torch.no_grad():
        # Libraries allocate their own buffers on first use; a small run gets that over with.
        function(*make_maps([(32, 8), (8, 8)], 32))
        pyramid, weights = make_maps(MAPS, SIZE)
        before = memory("VmRSS")
        # Linux: from here on the peak starts anew.
        Path("/proc/self/clear_refs").write_text("5")
        times = []
        for _ in range(RUNS[way]):
            began = time.perf_counter()
            result = function(pyramid, weights)
            times.append(time.perf_counter() - began)
        peak = memory("VmHWM")
    np.save(out, result.contiguous().numpy())
    return {"seconds": min(times), "added_gb": (peak - before) / 1e9}


def memory(line: str) -> int:
    """Bytes, from this process's status in /proc."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 for text in status if text.startswith(line))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", choices=list(RUNS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.out)))
        return

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in RUNS:
            command = [sys.executable, __file__, "--measure", way, "--out", str(Path(folder) / f"{way}.npy")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way] = json.loads(done.stdout.splitlines()[-1])
        first, second = (np.load(Path(folder) / f"{way}.npy") for way in RUNS)
    result = {
        "memory_ratio": round(found["materialized"]["added_gb"] / found["lazy"]["added_gb"], 2),
        "speed_ratio": round(found["materialized"]["seconds"] / found["lazy"]["seconds"], 2),
        "max_diff": float(np.abs(first - second).max()),
    }

    channels = sum(c for _, c in MAPS)
    print(f"hypercolumn at {SIZE} px: {len(MAPS)} maps, {channels} channels, to {OUTPUTS}; one image, float32")
    print(f"{'way':14} {'added memory':>13} {'time':>9}")
    for way, row in found.items():
        print(f"{way:14} {row['added_gb']:10.2f} GB {row['seconds']:7.2f} s")
    print(f"largest value {np.abs(second).max():.2f}, largest difference {result['max_diff']:.1e}")
    machine = {"cpu": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    text = json.dumps({**result, **found, "machine": machine}, indent=1)
    (results / "bench_pyramid.json").write_text(text + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
