"""Commands, Python code and JSON of README and docs: run on tiny data, or checked against what exists.

A comment `<!-- snippet: parse only -->` above a block keeps it from being run. Training is never run.
"""

import ast
import json
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.testing import CliRunner

import partshot
from partshot.cli import app
from partshot.parts import PartSet
from partshot.toy.dataset import write_toy
from partshot.train import fit_head

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands
PARSE_ONLY = "<!-- snippet: parse only -->"

# What a shell line may begin with, beside `partshot`.
OTHERS = {"pip", "python", "python3", "mkdir", "cp", "."}

# Options that are added to a command so that it takes a second; commands without a row are parsed only.
RUN = {
    "toy": ["--count", "2", "--size", "32"],
    "encoders": [],
    "sample": ["--count", "1"],
    "predict": [],
    "evaluate": [],
    "fit": ["--representation", "pixels", "--head", "linear", "--size", "32"],
    "run": ["--dry-run", "--size", "32"],
}
# With --minutes, a plan times some steps of training.
QUICK_STUDENT = ["--student", "fast-unet"]


class Block(NamedTuple):
    """A fenced block of a page. line: its first. run: False below the comment PARSE_ONLY."""

    page: str
    line: int
    language: str
    text: str
    run: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    found = []
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
            above = page[: match.start()].rstrip().rpartition("\n")[2]
            line = page.count("\n", 0, match.start()) + 2
            found.append(Block(str(path.relative_to(ROOT)), line, match[1], match[2], above != PARSE_ONLY))
    return [block for block in found if block.language in languages]


def shell_lines(block: Block) -> list[list[str]]:
    """The commands of a block as lists of words; those joined by && are several."""
    commands = []
    for line in block.text.splitlines():
        words = [word.removeprefix(".venv/bin/") for word in shlex.split(line, comments=True)]
        while "&&" in words:
            commands.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        commands.append(words)
    return [words for words in commands if words]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """The folders that pages speak of, with toy faces."""
    folder = tmp_path_factory.mktemp("docs")
    toy = write_toy("faces", 4, 32, folder / "toy")
    for name in ("photos", "new-photos", "test-photos", "plates"):
        shutil.copytree(toy / "images", folder / name)
    (folder / "new-photos" / "00000.png").rename(folder / "new-photos" / "a.png")
    shutil.copytree(toy / "masks", folder / "test-masks")
    for name, masks in {"masks": ("00000", "00001"), "rgb-masks": ("00000",), "kept": ("00002",)}.items():
        (folder / name).mkdir()
        for mask in masks:
            shutil.copy(toy / "masks" / f"{mask}.png", folder / name)
    shutil.copy(toy / "classes.json", folder)
    shutil.copytree(toy, folder / "practice")
    shutil.copytree(folder / "masks", folder / "practice" / "few")
    shutil.copytree(toy / "images", folder / "samples" / "images")
    shutil.copytree(folder / "masks", folder / "samples" / "masks")
    return folder


@pytest.fixture
def inside(workspace, monkeypatch, pixel_model):
    """In the workspace, with an untrained model, where fitting a head takes a moment."""
    for model in (workspace / "parts" / "student.onnx", workspace / "practice" / "parts" / "student.onnx"):
        if not model.exists():
            model.parent.mkdir(exist_ok=True)
            pixel_model(model, parts=PartSet.load(workspace / "classes.json"))
    monkeypatch.chdir(workspace)
    monkeypatch.setitem(fit_head.PRESETS, "fast", fit_head.PRESETS["fast"].changed(images=8))
    return workspace


SHELL = [(words, block) for block in blocks("sh", "bash", "console", "shell") for words in shell_lines(block)]


@pytest.mark.parametrize(("words", "block"), SHELL, ids=[f"{block} {' '.join(w[:2])}" for w, block in SHELL])
def test_shell_line(words, block, inside):
    if words[0] != "partshot":
        assert words[0] in OTHERS
        assert words[0] not in ("python", "python3") or words[1] == "-m" or (ROOT / words[1]).is_file()
        return
    verb, *given = words[1:]
    parsed = COMMANDS[verb].make_context(verb, list(given)).params
    check_values(verb, parsed)
    if not block.run or verb not in RUN or parsed.get("by_folds"):
        return
    quick = QUICK_STUDENT if parsed.get("minutes") else []
    shown = CliRunner().invoke(app, [verb, *given, *RUN[verb], *quick])
    assert shown.exit_code == 0, shown.output


def check_values(verb: str, parsed: dict) -> None:
    """Names that the parser takes as any text: presets, and the tables of bench."""
    for name in ("preset", "table", "pretext", "kind"):
        option = next((option for option in COMMANDS[verb].params if option.name == name), None)
        if parsed.get(name) is not None and option is not None:
            assert parsed[name] in re.findall(r"[\w-]+", option.help), f"{verb}: {name} {parsed[name]}"


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python(block, inside):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "partshot":
            assert [a.name for a in node.names if not hasattr(import_module(node.module), a.name)] == []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "partshot":
            assert hasattr(partshot, node.attr)
    if block.run:
        exec(compile(tree, str(block), "exec"), {})


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_a_classes_file(block):
    assert len(PartSet.from_dict(json.loads(block.text))) >= 2


def test_every_block_has_a_known_language():
    """A block without a language would not be tested."""
    fences = [line for path in PAGES for line in re.findall(r"^```.*$", path.read_text(encoding="utf-8"), re.MULTILINE)]
    assert set(fences) <= {"```", "```sh", "```python", "```json", "```text"}
    assert len(fences) == 2 * len(blocks("sh", "python", "json", "text"))


@pytest.mark.parametrize("path", PAGES, ids=[path.name for path in PAGES])
def test_commands_and_options_in_sentences_exist(path):
    prose = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    known = {name: {text for option in command.params for text in option.opts + option.secondary_opts}
             for name, command in COMMANDS.items()}  # fmt: skip
    everywhere = set().union(*known.values()) | {"--help", "--version"}
    foreign = {"--check", "--strict"}  # of tools/file_map.py and mkdocs
    for code in re.findall(r"`([^`\n]+)`", prose):
        first, *rest = code.split()
        options = {word for word in code.split() if word.startswith("--")} - foreign
        if first == "partshot" and rest and rest[0][0] != "-":
            assert rest[0] in COMMANDS, code
            assert options <= known[rest[0]] | {"--help"}, code
        assert options <= everywhere, code


def test_relative_links_of_the_readme_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE))
    public = {f"{getattr(partshot, name).__module__}.{name}" for name in partshot.__all__ if name != "__version__"}
    # Beside them, the settings that a plan prints.
    assert documented == public | {f"partshot.train.distill_recipe.{name}" for name in ("Distill", "Consistency")}
    for name in documented:
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute)
