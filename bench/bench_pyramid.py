"""Lazy against materialized hypercolumn: a first layer with 128 outputs at 512 px on maps with StyleGAN2's shapes.

Each variant runs in its own process; its memory is the peak above that of the maps and the libraries. The materialized
variant does what published code does: it resizes every map, concatenates them and applies a 1x1 convolution.

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


def measure(variant: str, out: Path) -> dict:
    """Runs one variant in this process; saves its result for comparison."""
    function = {"lazy": lazy, "materialized": materialized}[variant]
    with torch.no_grad():
        # A small warm-up run, since libraries allocate their own buffers on first use.
        function(*make_maps([(32, 8), (8, 8)], 32))
        pyramid, weights = make_maps(MAPS, SIZE)
        before = memory("VmRSS")
        # Resets the peak (Linux).
        Path("/proc/self/clear_refs").write_text("5")
        times = []
        for _ in range(RUNS[variant]):
            began = time.perf_counter()
            result = function(pyramid, weights)
            times.append(time.perf_counter() - began)
        peak = memory("VmHWM")
    np.save(out, result.contiguous().numpy())
    return {"seconds": min(times), "added_gb": (peak - before) / 1e9}


def memory(line: str) -> int:
    """A value in bytes from /proc/self/status."""
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
        for variant in RUNS:
            command = [sys.executable, __file__, "--measure", variant, "--out", str(Path(folder) / f"{variant}.npy")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[variant] = json.loads(done.stdout.splitlines()[-1])
        first, second = (np.load(Path(folder) / f"{variant}.npy") for variant in RUNS)
    result = {
        "memory_ratio": round(found["materialized"]["added_gb"] / found["lazy"]["added_gb"], 2),
        "speed_ratio": round(found["materialized"]["seconds"] / found["lazy"]["seconds"], 2),
        "max_diff": float(np.abs(first - second).max()),
    }

    channels = sum(c for _, c in MAPS)
    print(f"hypercolumn at {SIZE} px: {len(MAPS)} maps, {channels} channels, to {OUTPUTS}; one image, float32")
    print(f"{'variant':14} {'added memory':>13} {'time':>9}")
    for variant, row in found.items():
        print(f"{variant:14} {row['added_gb']:10.2f} GB {row['seconds']:7.2f} s")
    print(f"largest value {np.abs(second).max():.2f}, largest difference {result['max_diff']:.1e}")
    machine = {"cpu": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    text = json.dumps({**result, **found, "machine": machine}, indent=1)
    (results / "bench_pyramid.json").write_text(text + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
