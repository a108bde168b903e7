"""One-shot fit of ReGAN's CNN-L on a 256 px pyramid with 5,000 channels, 100 epochs of the published schedule.

The features are computed once, as for one annotated image, so only the head is timed: 100 forward and backward passes
of a whole image. Memory is the peak of the whole process, libraries included.

    python bench/bench_fit.py
"""

import json
import os
import platform
import resource
import time
from pathlib import Path

import numpy as np
import torch

from partshot.data.shots import Shots
from partshot.heads.cnn import cnn_l
from partshot.parts import PartSet
from partshot.pyramid import Pyramid
from partshot.represent.spec import Spec
from partshot.train.fit_head import PRESETS, fit_head

SIZE, EPOCHS, CLASSES = 256, 100, 10

# (side, channels), finest first: two maps per size as StyleGAN2 has them, 5,000 channels in all.
MAPS = tuple((side, c) for side, c in ((256, 196), (128, 256), (64, 512), (32, 512), (16, 512), (8, 512)) for _ in "12")


class Fixed(torch.nn.Module):
    """A representation that returns the same maps for every image."""

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.maps = tuple(torch.randn(1, c, s, s, generator=rng) for s, c in MAPS)
        self.spec = Spec("fixed", tuple(c for _, c in MAPS), tuple(SIZE // s for s, _ in MAPS), "0" * 12)

    def features(self, images: torch.Tensor) -> Pyramid:
        return Pyramid(self.maps, (SIZE, SIZE))

    def card(self) -> dict:
        return {"kind": "fixed"}


def one_shot() -> Shots:
    """A gray image whose mask is ten rings, so that every class has pixels and boundaries."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    labels = np.clip(np.hypot(x, y) / SIZE * 2 * CLASSES, 0, CLASSES - 1).astype(np.uint8)
    parts = PartSet.of(*(f"ring {i}" for i in range(CLASSES)))
    return Shots((np.full((SIZE, SIZE, 3), 128, np.uint8),), (labels,), ("rings",), parts)


def main() -> None:
    representation, shots = Fixed(), one_shot()
    recipe = PRESETS["regan-code"].changed(epochs=EPOCHS)
    head = cnn_l(representation.spec.channels, CLASSES)

    began, busy = time.perf_counter(), time.process_time()
    fit_head(head, representation, shots, recipe, SIZE, quiet=True)
    seconds, busy = time.perf_counter() - began, time.process_time() - busy

    # Kilobytes on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    with torch.no_grad():
        found = head(representation.features(torch.zeros(1, 3, SIZE, SIZE)))[0].argmax(0).numpy()
    learned = float((found == shots.labels[0]).mean())

    threads = torch.get_num_threads()
    print(f"CNN-L, 1 shot, {SIZE} px, {sum(representation.spec.channels)} channels, {EPOCHS} epochs, {threads} threads")
    print(f"wall {seconds:.1f} s   all cores {busy:.1f} s   peak memory {peak:.2f} GB   pixels learned {learned:.3f}")
    print(f"load average at the end {os.getloadavg()[0]:.1f}: above {threads}, the wall time includes other processes")
    result = {"seconds": round(seconds, 1), "peak_gb": round(peak, 2)}
    more = {"core_seconds": round(busy, 1), "threads": threads, "load": os.getloadavg()[0], "pixels_learned": learned}
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    machine = {"cpu": platform.machine(), "torch": torch.__version__}
    text = json.dumps({**result, **more, "machine": machine}, indent=1)
    (results / "bench_fit.json").write_text(text + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
