"""The loop: the same bits after any interruption, no repeated work, no checkpoints with NaN or infinity."""

import math
import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from partshot.artifact import read_card
from partshot.errors import BadArtifact, BadRecipe
from partshot.train.journal import read_journal
from partshot.train.loop import LoopRecipe, Phase, _step_seed, run_loop

RECIPE = LoopRecipe(kimg=0.048, batch=4, precision="fp32")  # 12 steps


class Tiny:
    """A tiny objective: a convolution, batch norm and dropout under Adam, a discriminator under SGD, and an EMA."""

    def __init__(self, at_step=None, event=None):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(8, 4, 3))
        discriminator = nn.Conv2d(4, 1, 1)
        ema = nn.Conv2d(4, 1, 1).requires_grad_(False).to(torch.bfloat16)
        self.modules = {"net": net, "discriminator": discriminator, "ema": ema}
        self.adam = torch.optim.AdamW(net.parameters(), lr=0.1)
        self.sgd = torch.optim.SGD(discriminator.parameters(), lr=0.1, momentum=0.9)
        self.at_step, self.event, self.batches = at_step, event, 0

    def batch(self, rng, images):
        if self.batches == self.at_step:
            self.event()
        self.batches += 1
        return {"images": torch.randn(images, 3, 8, 8, generator=rng)}

    def phases(self):
        return [
            Phase("net", self.adam, self._net_loss, clip=1.0),
            Phase("discriminator", self.sgd, self._discriminator_loss, every=2),
            Phase("again", self.sgd, self._discriminator_loss, every=3),
        ]

    def _net_loss(self, batch):
        return self.modules["discriminator"](self.modules["net"](batch["images"])).square().mean()

    def _discriminator_loss(self, batch):
        return (self.modules["discriminator"](self.modules["net"](batch["images"]).detach()) - 1).square().mean()

    def prepare(self, progress):
        for optimizer in (self.adam, self.sgd):
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * progress))

    def finish(self, progress):
        self.modules["ema"].weight.lerp_(self.modules["discriminator"].weight.bfloat16(), 0.5)
        return {"progress": progress}

    def trained(self):
        return self.modules["net"].state_dict()


def everything(objective):
    tensors = {f"{m}.{k}": v.clone() for m, module in objective.modules.items() for k, v in module.state_dict().items()}
    for name, optimizer in (("adam", objective.adam), ("sgd", objective.sgd)):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{k}": v for k, v in state.items() if isinstance(v, torch.Tensor)}
    return tensors


def assert_equal_bits(objective, other):
    mine, theirs = everything(objective), everything(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name].shape == theirs[name].shape, name
        assert torch.equal(mine[name], theirs[name]), name


def without_seconds(out):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_journal(out / "journal.jsonl")]


def train(out, objective=None, recipe=RECIPE, fingerprint="tiny"):
    objective = objective or Tiny()
    run_loop(objective, recipe, out, "tiny", fingerprint, journal_every=5, quiet=True)
    return objective


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and its objective."""
    out = tmp_path_factory.mktemp("whole")
    return out, train(out)


def stop():
    raise RuntimeError("interrupted")


@pytest.mark.parametrize("seconds", [0, 60])
def test_an_interrupted_and_resumed_run_ends_with_the_same_bits(whole, tmp_path, seconds):
    # With 0 seconds every step is saved, and 5 remain. With 60 none is saved, and the training starts anew.
    recipe = RECIPE.changed(checkpoint_seconds=seconds)
    with pytest.raises(RuntimeError, match="interrupted"):
        train(tmp_path, Tiny(at_step=7, event=stop), recipe)
    assert len(read_journal(tmp_path / "journal.jsonl")) == 1

    again = train(tmp_path, recipe=recipe)

    assert again.batches == (5 if seconds == 0 else 12)
    assert_equal_bits(again, whole[1])
    assert without_seconds(tmp_path) == without_seconds(whole[0])


def test_the_journal_has_the_mean_of_each_loss_over_its_steps(whole):
    lines = without_seconds(whole[0])
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert [line["images"] for line in lines] == [20, 40, 48]
    assert lines[0]["progress"] == pytest.approx((1 + 2 + 3 + 4 + 5) / 5 / 12)
    assert set(lines[0]) == {"step", "images", "net", "discriminator", "again", "progress"}


def test_a_finished_run_returns_at_once_with_its_weights(whole):
    objective = train(whole[0])
    assert objective.batches == 0
    assert_equal_bits(objective, whole[1])


def test_random_numbers_depend_on_the_seed(whole, tmp_path):
    other = train(tmp_path, recipe=RECIPE.changed(seed=1))
    assert not torch.equal(other.modules["discriminator"].weight, whole[1].modules["discriminator"].weight)


def test_the_global_random_state_is_not_changed(tmp_path):
    objective = Tiny()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tmp_path, objective)
    assert torch.equal(torch.rand(3), expected)


def test_ctrl_c_finishes_the_step_and_saves_it(whole, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="run again to go on"):
        train(tmp_path, Tiny(at_step=7, event=lambda: signal.raise_signal(signal.SIGINT)))
    assert read_card(tmp_path / "checkpoint")["step"] == 8
    assert signal.getsignal(signal.SIGINT) is handler

    assert_equal_bits(train(tmp_path), whole[1])


def test_another_recipe_is_refused(whole, tmp_path):
    with pytest.raises(BadArtifact, match="other settings or other data"):
        train(whole[0], fingerprint="other")
    with pytest.raises(BadArtifact, match="other settings or other data"):
        train(whole[0], recipe=RECIPE.changed(batch=8))
    # The interval between checkpoints has no effect on the result, so a resumed run may have another one.
    train(whole[0], recipe=RECIPE.changed(checkpoint_seconds=5))


def test_a_truncated_checkpoint_is_refused(tmp_path):
    train(tmp_path)
    path = tmp_path / "checkpoint" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadArtifact, match="truncated"):
        train(tmp_path)


def test_a_checkpoint_of_other_networks_is_refused(whole):
    objective = Tiny()
    objective.modules["discriminator"] = nn.Conv2d(4, 2, 1)
    with pytest.raises(BadArtifact, match="does not fit"):
        train(whole[0], objective)


def test_leftovers_of_a_killed_write_are_removed(whole, tmp_path):
    train(tmp_path)
    (tmp_path / ".checkpoint-abc").mkdir()
    os.replace(tmp_path / "checkpoint", tmp_path / ".checkpoint-old")  # killed between the two renames of a save
    assert_equal_bits(train(tmp_path), whole[1])
    assert not (tmp_path / ".checkpoint-abc").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nonfinite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, value):
    class Nonfinite(Tiny):
        def _net_loss(self, batch):
            return super()._net_loss(batch) * (value if self.batches == 7 else 1)

    with pytest.raises(BadRecipe, match="loss 'net' .* lower the learning rate"):
        train(tmp_path, Nonfinite(), RECIPE.changed(checkpoint_seconds=0))
    assert read_card(tmp_path / "checkpoint")["step"] == 6
    assert [line["step"] for line in read_journal(tmp_path / "journal.jsonl")] == [5]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"devices": 3}, r"must be a multiple of devices \(3\)"),
        ({"devices": 0}, "devices 0: must be above 0"),
        ({"batch": 0}, "batch 0: must be above 0"),
        ({"kimg": 0.0}, "kimg 0.0: must be above 0"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, wrong, reason):
    with pytest.raises(BadRecipe, match=reason):
        train(tmp_path, recipe=RECIPE.changed(**wrong))


def test_a_killed_process_is_resumed_bit_for_bit(whole, tmp_path):
    # Forked, not spawned: imports would take longer than the run.
    hanging = Tiny(at_step=7, event=lambda: time.sleep(60))
    recipe = RECIPE.changed(checkpoint_seconds=0)
    process = multiprocessing.get_context("fork").Process(target=train, args=(tmp_path, hanging, recipe))
    process.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "checkpoint").exists():
        assert process.is_alive(), "the run ended before it was killed"
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    again = train(tmp_path)

    assert 0 < again.batches < 12
    assert_equal_bits(again, whole[1])
    assert without_seconds(tmp_path) == without_seconds(whole[0])


def test_bf16_trains_and_resumes_to_the_same_bits(tmp_path):
    recipe = RECIPE.changed(precision="bf16", checkpoint_seconds=0)
    whole = train(tmp_path / "whole", recipe=recipe)
    assert whole.modules["net"][0].weight.dtype == torch.float32
    with pytest.raises(RuntimeError, match="interrupted"):
        train(tmp_path / "cut", Tiny(at_step=7, event=stop), recipe)
    assert_equal_bits(train(tmp_path / "cut", recipe=recipe), whole)


def test_the_loop_has_little_overhead(tmp_path):
    # CPU time of whole steps, the tiny network included.
    began = time.process_time()
    train(tmp_path, recipe=RECIPE.changed(kimg=0.8))
    assert (time.process_time() - began) / 200 < 0.03


class Deterministic:
    """A linear layer without dropout or BatchNorm, to compare processes: the loss is a mean over images."""

    def __init__(self):
        torch.manual_seed(0)
        self.modules = {"net": nn.Linear(4, 1)}
        self.sgd = torch.optim.SGD(self.modules["net"].parameters(), lr=0.1, momentum=0.9)

    def batch(self, rng, images):
        return torch.rand(images, 4, generator=rng)

    def phases(self):
        return [Phase("loss", self.sgd, self._loss)]

    def _loss(self, batch):
        return (self.modules["net"](batch) - batch.sum(1, keepdim=True)).square().mean()

    def prepare(self, progress):
        pass

    def finish(self, progress):
        return {}

    def trained(self):
        return self.modules["net"].state_dict()


def test_two_processes_train_together_and_return_the_result(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    recipe = LoopRecipe(kimg=0.064, batch=8, precision="fp32", devices=2)
    objective, alone = Deterministic(), Deterministic()

    run_loop(objective, recipe, tmp_path / "two", "line", "f", journal_every=1, quiet=True)

    # The same by hand: each process has half a batch, from its own seed, and the gradients are averaged.
    for step in range(recipe.steps):
        rngs = [torch.Generator().manual_seed(_step_seed(0, step * 8, rank)) for rank in (0, 1)]
        alone.sgd.zero_grad()
        alone._loss(torch.cat([alone.batch(rng, 4) for rng in rngs])).backward()
        alone.sgd.step()
    torch.testing.assert_close(objective.trained(), alone.trained())
    assert len(read_journal(tmp_path / "two" / "journal.jsonl")) == 8

    # A finished run starts no process.
    monkeypatch.setattr("partshot.train.loop._fabric", lambda recipe: pytest.fail("started processes"))
    again = Deterministic()
    run_loop(again, recipe, tmp_path / "two", "line", "f", quiet=True)
    torch.testing.assert_close(again.trained(), objective.trained(), rtol=0, atol=0)


class Disturbed(Deterministic):
    """Calls `event` before the batch at one step, in process 1 alone."""

    def __init__(self, at_step, event):
        super().__init__()
        self.at_step, self.event, self.batches = at_step, event, 0

    def batch(self, rng, images):
        if self.batches == self.at_step and torch.distributed.get_rank() == 1:
            self.event()
        self.batches += 1
        return super().batch(rng, images)


def interrupt_this_process():
    signal.raise_signal(signal.SIGINT)


def interrupt_the_first_process():
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(2)  # until it has told the others


def fail():
    raise BadRecipe("a setting of process 1")


TWO = LoopRecipe(kimg=0.064, batch=8, precision="fp32", devices=2)


@pytest.mark.parametrize("event", [interrupt_this_process, interrupt_the_first_process])
def test_ctrl_c_stops_all_processes_after_the_same_step(tmp_path, monkeypatch, event):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped and saved"):
        run_loop(Disturbed(3, event), TWO, tmp_path, "line", "f", journal_every=1, quiet=True)
    assert read_card(tmp_path / "checkpoint")["step"] == 4
    assert len(read_journal(tmp_path / "journal.jsonl")) == 4
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_error_in_one_of_several_processes_reaches_the_caller(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(BadRecipe, match="^a setting of process 1$"):
        run_loop(Disturbed(3, fail), TWO, tmp_path, "line", "f", quiet=True)


def test_a_bug_in_one_of_several_processes_ends_all_with_a_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ProcessRaisedException, match="Traceback"):
        run_loop(Disturbed(3, stop), TWO, tmp_path, "line", "f", quiet=True)
