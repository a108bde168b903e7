"""Speed of StyleGAN2 synthesis and training, compared with the PyPI package stylegan2-pytorch in the same run.

Both have 64 px, the same channels in every block (32 at 64 px up to 512 at 4 px; twice as many in the discriminator),
the same batch size and two threads. Synthesis is one call under no_grad. A training step is one discriminator step and
one generator step with Adam, without regularization, EMA and data loading. The package is timed in its default
precision (float32) and in bf16, and the better time counts; partshot is timed in bf16 with channels_last, as in its
training loop. `peak_share` is the ratio of partshot's training throughput in FLOP/s to that of a large bf16 matrix
product on the same threads.

    pip install --no-deps stylegan2-pytorch einops kornia kornia_rs
    python bench/bench_stylegan2.py [--rounds 5]
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from partshot.nets.stylegan2 import Discriminator, Generator, Shape
from partshot.ops.gan_losses import discriminator_loss, generator_loss

SIZE, BATCH, LATENT, CAPACITY = 64, 16, 512, 16
RESULTS = Path(__file__).parent / "results"
INSTALL = "pip install --no-deps stylegan2-pytorch einops kornia kornia_rs"


def main() -> None:
    """Prints a card and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    ours, theirs = our_work(), their_work(package())
    bf16 = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    found: dict[str, dict[str, float]] = {}
    for task in ("synthesis", "training"):
        runs = {
            "partshot": (ours[task], bf16),
            "stylegan2-pytorch": (theirs[task], nullcontext),
            "stylegan2-pytorch bf16": (theirs[task], bf16),
        }
        # All variants in every round, so that a slowdown of the machine affects all of them.
        seconds = {name: float("inf") for name in runs}
        for _ in range(args.rounds + 1):
            for name, (work, precision) in runs.items():
                with precision():
                    began = time.perf_counter()
                    work()
                    seconds[name] = min(seconds[name], time.perf_counter() - began)
        found[task] = {name: round(BATCH / s, 1) for name, s in seconds.items()}
        print(task, *(f"{name} {rate} images/s" for name, rate in found[task].items()), sep="  ", flush=True)
    flops, peak = counted(ours["training"]), matrix_peak()
    last = {
        "synthesis_ratio": ratio(found["synthesis"]),
        "training_ratio": ratio(found["training"]),
        "peak_share": round(flops / BATCH * found["training"]["partshot"] / peak, 3),
    }
    card = {"images_per_s": found, "peak_gflops": round(peak / 1e9), "training_gflop_per_image": flops / BATCH / 1e9}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench_stylegan2.json").write_text(json.dumps({**card, **last}, indent=1))
    print(json.dumps(last))


def ratio(rates: dict[str, float]) -> float:
    """Ratio of partshot's rate to the better rate of the package."""
    return round(rates["partshot"] / max(rate for name, rate in rates.items() if name != "partshot"), 2)


def our_work() -> dict[str, Callable[[], object]]:
    """Synthesis and a training step of partshot."""
    channels = {"z_dim": LATENT, "w_dim": LATENT}
    generator = Generator(Shape(resolution=SIZE, channel_base=CAPACITY * 128, channel_max=512, **channels))
    discriminator = Discriminator(Shape(resolution=SIZE, channel_base=CAPACITY * 256, channel_max=512, **channels))
    for net in (generator, discriminator):
        net.to(memory_format=torch.channels_last)
    sides = generator.layers

    def generate() -> torch.Tensor:
        ws = generator.mapping.broadcast(generator.mapping(torch.randn(BATCH, LATENT)))
        return generator.synthesis(ws, tuple(torch.randn(BATCH, 1, side, side) for side in sides))[0]

    return _work(generate, discriminator, generator, discriminator)


def their_work(module: ModuleType) -> dict[str, Callable[[], object]]:
    """The same for stylegan2-pytorch, with partshot's losses instead of its own."""
    generator = module.Generator(SIZE, LATENT, network_capacity=CAPACITY)
    discriminator = module.Discriminator(SIZE, network_capacity=CAPACITY)
    mapping = module.StyleVectorizer(LATENT, 8, lr_mul=0.1)

    def generate() -> torch.Tensor:
        w = mapping(torch.randn(BATCH, LATENT))
        return generator(w[:, None].expand(-1, generator.num_layers, -1), torch.rand(BATCH, SIZE, SIZE, 1))

    return _work(
        generate, lambda images: discriminator(images)[0], torch.nn.ModuleList([generator, mapping]), discriminator
    )


def _work(
    generate, discriminate, generator: torch.nn.Module, discriminator: torch.nn.Module
) -> dict[str, Callable[[], object]]:
    real = torch.rand(BATCH, 3, SIZE, SIZE) * 2 - 1
    adams = [torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.0, 0.99)) for net in (generator, discriminator)]

    def synthesis() -> None:
        with torch.no_grad():
            generate()

    def training() -> None:
        discriminator.requires_grad_(True)
        with torch.no_grad():
            fake = generate()
        _step(discriminator_loss(discriminate(real), discriminate(fake)), adams[1])
        discriminator.requires_grad_(False)
        _step(generator_loss(discriminate(generate())), adams[0])

    return {"synthesis": synthesis, "training": training}


def _step(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def package() -> ModuleType:
    """The module stylegan2_pytorch; missing imports that are not needed here are mocked."""
    absent = {}
    for name in ("fire", "aim", "vector_quantize_pytorch", "retry", "retry.api", "contrastive_learner"):
        try:
            importlib.import_module(name)
        except ImportError:
            absent[name] = mock.MagicMock()
    try:
        with mock.patch.dict(sys.modules, absent), mock.patch("torch.cuda.is_available", return_value=True):
            return importlib.import_module("stylegan2_pytorch.stylegan2_pytorch")
    except ImportError as error:
        raise SystemExit(f"stylegan2-pytorch cannot be imported ({error}); run: {INSTALL}") from error


def counted(work: Callable[[], object]) -> float:
    """Floating point operations of one call; a multiply-add counts as two."""
    counter = FlopCounterMode(display=False)
    # The counter's module tracker fails for inputs without gradient, and counts per module are not needed.
    counter.mod_tracker = _Untracked()
    with counter:
        work()
    return float(counter.get_total_flops())


class _Untracked(nullcontext):
    parents = frozenset({"Global"})


def matrix_peak(side: int = 2048, rounds: int = 8) -> float:
    """FLOP/s of a large bf16 matrix product."""
    a, b = (torch.randn(side, side).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        F.linear(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


if __name__ == "__main__":
    main()
