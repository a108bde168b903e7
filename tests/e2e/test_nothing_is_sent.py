"""Nothing is sent: what the operating system sees of a prediction, native code included, holds no packet to anywhere.

A library's own threads send without Python's knowledge, so the witness is strace, which sees every system call.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import partshot
from partshot.telemetry import SWITCHES

ROOT = Path(partshot.__file__).parents[2]

# Seconds that a process lives on after its prediction: onnxruntime's report comes about eight behind its import.
PATIENCE = 12

PREDICT = f"""
import sys, time
import numpy as np
from partshot.inference.exported_model import ExportedModel
labels, _ = ExportedModel(sys.argv[1], threads=1).predict(np.zeros((1, 8, 8, 3), np.uint8))
assert labels.shape == (1, 8, 8)
time.sleep({PATIENCE})
"""

# An address behind one of the calls that send or connect. Unix sockets, and what the kernel tells of itself (netlink),
# stay on the machine; so does the loopback; but for those that are asked for names (port 53, systemd's resolver).
_SENT = re.compile(
    r"(?:connect|sendto|sendmsg|sendmmsg)\(.*?sa_family=(?:AF_INET|AF_UNIX, sun_path=\"[^\"]*resolve).*", re.IGNORECASE
)
_LOOPBACK = re.compile(r'"(?:127\.[\d.]+|::1|::ffff:127\.[\d.]+)"')
_NAMES = re.compile(r"port=htons\((?:53|853|5353)\)")


def calls_that_leave(trace: str) -> list[str]:
    """Lines of a trace that send to, or connect to, another machine, or ask for a name."""
    sent = [match.group() for match in map(_SENT.search, trace.splitlines()) if match]
    return [line for line in sent if not _LOOPBACK.search(line) or _NAMES.search(line)]


def traced(arguments: list[str], into: Path, environment: dict[str, str] | None = None) -> list[str]:
    """Calls that leave the machine while Python runs with these arguments; skips where nothing can be traced."""
    command = ["strace", "-f", "-qq", "-e", "trace=network", "-o", str(into), sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return calls_that_leave(into.read_text(errors="replace"))


@pytest.fixture(scope="module")
def strace():
    """Skips, with the reason, where there is no strace, or where it is not allowed to look."""
    try:
        done = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, text=True)
    except OSError:
        pytest.skip("strace is not installed; apt-get install strace")
    if done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:200]}")


@pytest.fixture
def model(tmp_path):
    """The smallest model that partshot runs: every pixel's label is its red channel."""
    from onnx import TensorProto, helper, save

    from partshot.inference.exported_model import model_metadata
    from partshot.parts import PartSet

    pixels = ["b", "h", "w"]
    index = helper.make_tensor("index", TensorProto.INT64, [], [0])
    nodes = [helper.make_node("Gather", ["images", "index"], [name], axis=3) for name in ("labels", "confidence")]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [*pixels, 3])],
        [helper.make_tensor_value_info(name, TensorProto.UINT8, pixels) for name in ("labels", "confidence")],
        [index],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, model_metadata(PartSet.of("background", "part"), 64, "0.1.0"))
    save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_prediction_sends_nothing_from_native_code_either(strace, model, tmp_path):
    # As a user has it who never heard of the switches, or who had set one the other way.
    environment = {k: v for k, v in os.environ.items() if k not in SWITCHES} | {"ORT_DISABLE_TELEMETRY": "0"}
    environment["PYTHONPATH"] = str(ROOT / "src")

    assert traced(["-c", PREDICT, str(model)], tmp_path / "trace", environment) == []


@pytest.mark.parametrize(
    "sends",
    [
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'hello', ('192.0.2.1', 9))",
        "s = socket.socket(); s.settimeout(.1); s.connect_ex(('192.0.2.1', 9))",
        "threading.Thread(target=lambda: socket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 53))).start()",
    ],
)
def test_the_witness_sees_what_does_leave(strace, tmp_path, sends):
    assert traced(["-c", f"import socket, threading\ntry:\n {sends}\nexcept OSError: pass"], tmp_path / "trace")


def test_the_loopback_and_unix_sockets_are_no_other_machine():
    kept = [
        'connect(7, {sa_family=AF_UNIX, sun_path="/run/x"}, 110) = 0',
        'connect(7, {sa_family=AF_INET, sin_port=htons(8000), sin_addr=inet_addr("127.0.0.1")}, 16) = 0',
        'connect(7, {sa_family=AF_INET6, sin6_port=htons(80), inet_pton(AF_INET6, "::1", &sin6_addr)}, 28) = 0',
    ]
    left = [
        'connect(7, {sa_family=AF_UNIX, sun_path="/run/systemd/resolve/io.systemd.Resolve"}, 42) = 0',
        'connect(7, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.53")}, 16) = 0',
        'sendto(7, "x", 1, 0, {sa_family=AF_INET6, sin6_port=htons(80), inet_pton(AF_INET6, "2001:db8::1", &a)}, 28)',
    ]
    assert calls_that_leave("\n".join(kept)) == []
    assert calls_that_leave("\n".join(left)) == left


def test_the_switches_are_set_before_anything_is_loaded_and_for_other_processes():
    child = "import os; print(dict(os.environ))"
    code = f"import partshot, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    environment = {k: v for k, v in os.environ.items() if k not in SWITCHES} | {"DO_NOT_TRACK": "0"}

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)

    inherited = ast.literal_eval(done.stdout)
    assert {name: inherited.get(name) for name in SWITCHES} == SWITCHES


def test_one_file_imports_onnxruntime():
    """Its import starts the telemetry: a file that imports it alone, without partshot, would send."""
    importing = set()
    for path in [p for folder in ("src", "bench", "tests", "tools") for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "onnxruntime" for name in names):
                importing.add(path.relative_to(ROOT).as_posix())
    assert importing == {"src/partshot/inference/exported_model.py"}
