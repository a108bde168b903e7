import re
import sys
import tomllib
from pathlib import Path

import pytest

from partshot import machine
from partshot.machine import available_cores, available_memory
from partshot.tasks import doctor as task
from partshot.tasks.doctor import CORE, TRAIN, Finding, check_pair, diagnose, doctor, probe

NMS = "RuntimeError: operator torchvision::nms does not exist"
WELL = {name: Finding(name, "1.0", "") for name in {**CORE, **TRAIN}} | {
    "torch": Finding("torch", "2.15.0", ""),
    "torchvision": Finding("torchvision", "0.29.2", ""),
}


def absent(*names: str) -> dict[str, Finding]:
    return {name: Finding(name, "", f"ModuleNotFoundError: No module named '{name}'") for name in names}


def broken(name: str, error: str, version: str = "1.0") -> dict[str, Finding]:
    return {name: Finding(name, version, error)}


@pytest.mark.parametrize(
    "torch, torchvision, error, said",
    [
        (None, None, "", ""),
        (None, "0.28.0", "", ""),
        ("2.15.0+cu132", "0.29.2+cu132", "", ""),
        ("2.14.1", "0.30.0", "", ""),
        ("2.13.0+cpu", "0.28.0", NMS, "two platforms.*torchvision==0.28.*whl/cpu"),
        ("2.13.0+cu126", "0.28.0+cu118", NMS, r"two platforms \(cu126, cu118\).*torchvision==0.28"),
        ("2.9.1", "0.28.0", NMS, r"do not belong together \(.*torchvision==0\.24\.\*'$"),
        ("2.6.0+cpu", "0.29.0", NMS, "versions.*torchvision==0.21.*whl/cpu"),
        ("2.15.0", "0.28.0", NMS, "versions.*torchvision>=0.29"),
        ("2.13.0", "0.28.0", NMS, "do not belong together.*torchvision==0.28"),
        ("2.13.0", None, NMS, "not installed beside torch 2.13.0.*torchvision==0.28"),
        (
            "2.13.0",
            "0.28.0",
            "OSError: libcudart.so.12: no such file",
            "libcudart.*-c constraints.txt torch torchvision",
        ),
        ("3.0.0", "0.50.0", NMS, "-c constraints.txt torch torchvision"),
        ("odd", "stranger", NMS, "constraints"),
    ],
)
def test_recognizes_the_pairs_of_torch_and_torchvision(torch, torchvision, error, said):
    advice = check_pair(torch, torchvision, error)

    assert re.search(said, advice) if said else advice == ""
    assert "\n" not in advice
    assert ("pip install" in advice) == bool(said)


def test_a_whole_installation_and_one_for_predicting_alone_have_no_problems():
    assert diagnose(WELL) == []
    assert diagnose(WELL | absent(*TRAIN)) == []


def test_a_broken_pair_is_one_problem_with_one_cure():
    followers = ("torchvision", "timm", "segmentation_models_pytorch", "lightly")
    findings = WELL | {name: Finding(name, "0.28.0", NMS) for name in followers}
    findings |= broken("torch", "", "2.13.0+cpu")

    (problem,) = diagnose(findings)

    assert "torch 2.13.0+cpu and torchvision 0.28.0" in problem


def test_each_library_that_is_missing_or_broken_by_itself_is_named_with_its_cure():
    findings = WELL | absent("timm", "numpy") | broken("lightly", "ImportError: cannot import name 'x'")

    numpy, timm, lightly = diagnose(findings)

    assert numpy == "numpy is not installed; run: pip install partshot"
    assert timm.startswith("timm is not installed") and "pip install -c constraints.txt 'partshot[train]'" in timm
    assert "lightly cannot be imported (ImportError: cannot import name 'x')" in lightly


def test_a_torch_that_cannot_be_imported_hides_what_follows_from_it():
    torch = broken("torch", "OSError: libtorch_cpu.so: cannot open", "2.13.0")
    followers = {name: Finding(name, "1.0", "OSError: libtorch_cpu.so") for name in ("timm", "lightly")}

    assert len(diagnose(WELL | torch | followers)) == 1


def test_the_tables_are_those_of_the_project():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

    def names(requirements):
        return {re.match(r"[\w-]+", line)[0] for line in requirements}

    assert set(CORE.values()) == names(project["dependencies"])
    # jaxtyping stands in the annotations of what needs torch.
    assert set(TRAIN.values()) - {"jaxtyping"} == names(project["optional-dependencies"]["train"]) - {"jaxtyping"}


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Writes modules that the other process imports."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)

    return write


def test_a_library_that_fails_exits_or_crashes_is_a_finding(library):
    library("fine", "print('noise on stdout')\n__version__ = '7.1'")
    library("failing", f"raise RuntimeError('{NMS.partition(': ')[2]}')")
    library("leaving", "import sys; sys.exit(3)")
    library("crashing", "import os; os._exit(9)")
    library("last", "__version__ = '1.2'")
    names = ("failing", "leaving", "missing", "crashing", "fine", "last")

    findings, devices = probe({name: f"no-such-project-{name}" for name in names})

    assert findings["fine"] == Finding("fine", "7.1", "")
    assert findings["last"] == Finding("last", "1.2", "")
    assert findings["failing"].error == NMS
    assert findings["leaving"].error == "SystemExit: 3"
    assert findings["missing"] == absent("missing")["missing"]
    assert "crashed the interpreter, exit code 9" in findings["crashing"].error
    assert devices == []


def test_a_library_that_hangs_is_a_finding(library, monkeypatch):
    library("hanging", "import time; time.sleep(60)")
    monkeypatch.setattr(task, "_PATIENCE", 1)

    findings, _ = probe({"hanging": "hanging"})

    assert "did not finish importing in 1 s" in findings["hanging"].error


def test_devices_are_what_torch_says(library):
    library(
        "torch",
        "from types import SimpleNamespace as N\n__version__ = '2.15.0'\n"
        "gpu = N(name='Imaginary 9000', total_memory=24 * 2**30)\n"
        "cuda = N(device_count=lambda: 2, get_device_properties=lambda i: gpu)\n"
        "backends = N(mps=N(is_available=lambda: True))\n",
    )

    _, devices = probe({"torch": "torch"})

    assert devices == ["cuda:0 Imaginary 9000, 24 GB", "cuda:1 Imaginary 9000, 24 GB", "mps"]


def test_no_process_at_all_is_not_the_end(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")

    findings, _ = probe({"numpy": "numpy", "rich": "rich"})

    assert all("no process could be started" in found.error for found in findings.values())


def test_the_checkup_reads_as_a_page(monkeypatch):
    monkeypatch.setattr(task, "probe", lambda libraries: (WELL | absent(*TRAIN), []))
    alone = doctor()
    monkeypatch.setattr(task, "probe", lambda libraries: (WELL | broken("timm", "ImportError: x"), ["cuda:0 A, 8 GB"]))
    ill = doctor()

    assert alone.healthy and any("training: not installed; to add it: pip install" in line for line in alone.lines)
    assert not ill.healthy and len(ill.problems) == 1
    assert any("devices for training: cpu, cuda:0 A, 8 GB" in line for line in ill.lines)
    assert any("BROKEN: ImportError: x" in line for line in ill.lines)


def test_the_machine_is_what_this_process_may_use(tmp_path, monkeypatch):
    assert available_cores() >= 1
    (tmp_path / "memory.max").write_text("104857600\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert available_memory() == 104857600
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 104857600
    monkeypatch.setattr(machine, "_physical_memory", lambda: None)
    assert available_memory() is None
