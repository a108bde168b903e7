"""doctor: reports what is installed, what the machine offers, and what is broken, with the command that repairs it.

Each library is imported in another process, so that one that fails, hangs or crashes is reported.
"""

import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import partshot
from partshot.machine import available_cores, available_memory

# import name -> name on the package index. The order is that in which a broken one breaks the others.
CORE = {
    "numpy": "numpy",
    "PIL": "pillow",
    "pydantic": "pydantic",
    "typer": "typer",
    "rich": "rich",
    "safetensors": "safetensors",
    "onnxruntime": "onnxruntime",
}
TRAIN = {
    "torch": "torch",
    "torchvision": "torchvision",
    "jaxtyping": "jaxtyping",
    "timm": "timm",
    "huggingface_hub": "huggingface-hub",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "lightning_fabric": "lightning-fabric",
    "lightly": "lightly",
    "matplotlib": "matplotlib",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "skia": "skia-python",
}
_NEED_TORCHVISION = ("timm", "segmentation_models_pytorch", "lightly")

CORE_LINE = "pip install --force-reinstall partshot"
TRAIN_LINE = "pip install -c constraints.txt 'partshot[train]'"
_CPU_INDEX = "--index-url https://download.pytorch.org/whl/cpu"

_PATIENCE = 300  # seconds for all imports: a cold disk takes a minute for torch alone

# Runs in the other process. Its own lines begin with a mark, since libraries print, too.
_PROBE = """
import importlib, importlib.metadata, json, sys
def tell(**values):
    print("@partshot", json.dumps(values), flush=True)
for pair in sys.argv[1:]:
    name, project = pair.split("=")
    tell(begun=name)
    version, error = "", ""
    try:
        version = importlib.metadata.version(project)
    except Exception:  # no metadata, or broken ones: whether it imports is what counts
        version = ""
    try:
        module = importlib.import_module(name)
        version = str(getattr(module, "__version__", "") or version)
    except BaseException as caught:
        error = type(caught).__name__ + ": " + (str(caught).strip().splitlines() or [""])[0]
    tell(name=name, version=version, error=error)
    if name == "torch" and not error:
        found = []
        try:
            for i in range(module.cuda.device_count()):
                gpu = module.cuda.get_device_properties(i)
                found.append(f"cuda:{i} {gpu.name}, {gpu.total_memory / 2**30:.0f} GB")
            if module.backends.mps.is_available():
                found.append("mps")
        except BaseException as caught:
            found.append(f"none usable ({caught})")
        tell(devices=found)
"""


@dataclass(frozen=True)
class Finding:
    """One library: version is empty when it is not installed, error is empty when its import succeeds."""

    name: str
    version: str
    error: str


@dataclass(frozen=True)
class Checkup:
    """Results. lines: for a person to read. problems: required libraries that are broken, with their repair."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether all required libraries work."""
        return not self.problems


def doctor() -> Checkup:
    """Checks this installation; never raises for what it finds. Takes as long as importing torch does."""
    findings, devices = probe({**CORE, **TRAIN})
    training = not _absent(findings["torch"])
    lines = [
        f"partshot {partshot.__version__}, Python {platform.python_version()} ({sys.executable})",
        f"{platform.platform()}, {platform.machine()}",
        f"{available_cores()} cores, {_gigabytes(available_memory())} of memory",
        f"devices for training: {', '.join(['cpu', *devices]) if training else 'none, torch is not installed'}",
        "prediction:",
        *(_line(findings[name], project) for name, project in CORE.items()),
        "training:" if training else f"training: not installed; to add it: {TRAIN_LINE}",
        *(_line(findings[name], project) for name, project in TRAIN.items() if training),
    ]
    return Checkup(tuple(lines), tuple(diagnose(findings)))


def diagnose(findings: Mapping[str, Finding]) -> list[str]:
    """What is broken among what is needed, root causes only, each with its cure.

    findings: by import name. A missing training extra is no problem as long as torch is missing too.
    """
    problems = [_core_problem(findings[name], project) for name, project in CORE.items() if findings[name].error]
    torch, vision = findings["torch"], findings["torchvision"]
    if _absent(torch):
        return problems
    advice = check_pair(torch.version or None, vision.version or None, torch.error or vision.error)
    problems += [advice] if advice else []
    for name, project in TRAIN.items():
        found = findings[name]
        follows = name in ("torch", "torchvision") or (advice and (torch.error or name in _NEED_TORCHVISION))
        if found.error and not follows:
            state = "is not installed" if _absent(found) else f"cannot be imported ({found.error})"
            problems.append(f"{project} {state}; run: {TRAIN_LINE}")
    return problems


def check_pair(torch_version: str | None, torchvision_version: str | None, import_error: str) -> str:
    """What is wrong with a torch and a torchvision, and the cure; empty when nothing is.

    torch_version, torchvision_version: such as "2.13.0+cpu"; None = not installed. import_error: of the first of the
    two that fails to import, empty when both do not. They are compiled for each other: a torchvision before 0.29 works
    with one minor version of torch only (0.28 with 2.13, 0.27 with 2.12, ...), and only with its own build (cpu, ...).
    """
    if torch_version is None:
        return ""
    if torchvision_version is None:
        return f"torchvision is not installed beside torch {torch_version}; run: {_matched(torch_version)}"
    if not import_error:
        return ""
    pair = f"torch {torch_version} and torchvision {torchvision_version}"
    if "torchvision" not in import_error and not _are_unlike(torch_version, torchvision_version):
        return f"{pair} cannot be imported ({import_error}); run: {_reinstall(torch_version)}"
    if not _fits(torch_version, torchvision_version):
        why = "are versions that do not belong together"
    elif _build(torch_version) != _build(torchvision_version):
        why = f"are builds for two platforms ({_build(torch_version)}, {_build(torchvision_version)})"
    else:
        why = "do not belong together"
    return f"{pair} {why} ({import_error}); run: {_matched(torch_version)}"


def probe(libraries: Mapping[str, str]) -> tuple[dict[str, Finding], list[str]]:
    """Imports each library (import name -> project) in another process; also the devices torch finds beside the CPU."""
    findings: dict[str, Finding] = {}
    devices: list[str] = []
    while rest := [name for name in libraries if name not in findings]:
        said, end = _run_probe([f"{name}={libraries[name]}" for name in rest])
        for values in said:
            devices += values.get("devices", [])
            if "name" in values:
                findings[values["name"]] = Finding(**values)
        # The library that began and did not report crashed the process; the next round continues after it.
        begun = [values["begun"] for values in said if "begun" in values]
        culprit = next((name for name in begun if name not in findings), rest[0] if not begun else None)
        if culprit:
            findings[culprit] = Finding(culprit, "?", end)
    return findings, devices


def _run_probe(pairs: Sequence[str]) -> tuple[list[dict], str]:
    # Output of the other process, and how it ended.
    command = [sys.executable, "-P", "-c", _PROBE, *pairs]  # -P: a torch.py in the current folder is not torch
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE)
        output, end = done.stdout, f"crashed the interpreter, exit code {done.returncode}"
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode(errors="replace")
        end = f"did not finish importing in {_PATIENCE} s"
    except OSError as error:
        output, end = "", f"no process could be started: {error}"
    marked = [line for line in output.splitlines() if line.startswith("@partshot ")]
    return [json.loads(line.removeprefix("@partshot ")) for line in marked], end


def _absent(found: Finding) -> bool:
    return not found.version and found.error.startswith("ModuleNotFoundError")


def _core_problem(found: Finding, project: str) -> str:
    if _absent(found):
        return f"{project} is not installed; run: pip install partshot"
    return f"{project} {found.version} cannot be imported ({found.error}); run: {CORE_LINE}"


def _line(found: Finding, project: str) -> str:
    state = "" if not found.error else "  not installed" if _absent(found) else f"  BROKEN: {found.error}"
    return f"  {project:<28}{found.version:<16}{state}".rstrip()


def _gigabytes(size: int | None) -> str:
    return "an unknown amount" if size is None else f"{size / 2**30:.1f} GB"


def _numbers(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _build(version: str) -> str:
    return version.partition("+")[2] or "the package index's own"


def _fits(torch_version: str, torchvision_version: str) -> bool:
    torch, vision = _numbers(torch_version), _numbers(torchvision_version)
    if vision >= (0, 29):
        return torch >= (2, 14)
    return torch[0] == 2 and vision == (0, torch[1] + 15)


def _are_unlike(torch_version: str, torchvision_version: str) -> bool:
    return not _fits(torch_version, torchvision_version) or _build(torch_version) != _build(torchvision_version)


def _matched(torch_version: str) -> str:
    # The torchvision for the torch that is there.
    major, minor = _numbers(torch_version)
    if major != 2:
        return _reinstall(torch_version)
    wanted = f"'torchvision==0.{minor + 15}.*'" if minor < 14 else "'torchvision>=0.29'"
    index = f" {_CPU_INDEX}" if _build(torch_version) == "cpu" else ""
    return f"pip install --force-reinstall --no-deps {wanted}{index}"


def _reinstall(torch_version: str) -> str:
    index = f" {_CPU_INDEX}" if _build(torch_version) == "cpu" else ""
    return f"pip install --force-reinstall -c constraints.txt torch torchvision{index}"
