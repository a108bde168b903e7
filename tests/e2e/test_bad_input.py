"""Bad input, at the command line: one line that names the file and the cure, exit code 2, and nothing half-written."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from partshot.artifact import read_card
from partshot.cli import app
from partshot.toy.dataset import write_toy

RUN = "run --images {toy}/images --labels {toy}/masks --out {out} --representation pixels --size 32 --minutes 0.01"
FIT = "fit --images {toy}/images --labels {toy}/masks --out {out} --representation pixels --head linear --size 32"
DISTILL = "distill --images {toy}/images --labels {toy}/masks --out {out} --size 32 --kimg 0.016 --student fast-unet"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return write_toy("faces", 4, 32, tmp_path_factory.mktemp("drawn"))


@pytest.fixture
def toy(drawn, tmp_path):
    """Four faces, two of them labeled."""
    shutil.copytree(drawn, tmp_path / "toy")
    for i in (2, 3):
        (tmp_path / "toy" / "masks" / f"0000{i}.png").unlink()
    return tmp_path / "toy"


@pytest.fixture(scope="module")
def student(drawn, tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("student")
    done = CliRunner().invoke(app, DISTILL.format(toy=drawn, out=out).split())
    assert done.exit_code == 0, (done.output, done.exception)
    return out


def refused(line: str, *said: str, **places) -> str:
    result = CliRunner().invoke(app, line.format(**places).split())
    assert result.exit_code == 2, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    # Lines of progress may stand before it, where there was work before the error.
    message = result.stderr.splitlines()[-1]
    assert message.startswith("error: ") and result.stderr.count("error: ") == 1, result.stderr
    assert "Traceback" not in result.output
    for words in said:
        assert words in message, message
    return message


def indexed(path: Path, ids: np.ndarray) -> None:
    Image.fromarray(ids.astype(np.uint8)).save(path)


def smaller(toy):
    indexed(toy / "masks" / "00001.png", np.zeros((20, 32)))


def stranger(toy):
    ids = np.zeros((32, 32))
    ids[3, 3:5] = 77
    indexed(toy / "masks" / "00001.png", ids)


def in_colors(toy):
    mask = toy / "masks" / "00001.png"
    Image.open(mask).convert("RGB").save(mask)


def without_partner(toy):
    (toy / "images" / "00001.png").unlink()


def without_masks(toy):
    for mask in (toy / "masks").glob("*.png"):
        mask.unlink()


def without_images(toy):
    for image in (toy / "images").iterdir():
        image.unlink()


def torn_mask(toy):
    mask = toy / "masks" / "00001.png"
    mask.write_bytes(mask.read_bytes()[:80])


def empty_mask(toy):
    (toy / "masks" / "00001.png").write_bytes(b"")


def torn_shot(toy):
    image = toy / "images" / "00001.png"
    image.write_bytes(image.read_bytes()[:80])


def empty_shot(toy):
    (toy / "images" / "00001.png").write_bytes(b"")


def one_class(toy):
    for mask in (toy / "masks").glob("*.png"):
        indexed(mask, np.zeros((32, 32)))


def twins(toy):
    Image.open(toy / "images" / "00003.png").save(toy / "images" / "00003.jpg")


def broken_parts(toy):
    (toy / "classes.json").write_text("{")


SPOILED = {
    smaller: ("00001.png is 32x20 pixels, but its image", "export it at the image's size"),
    stranger: ("00001.png contains id 77 (2 pixels)", "correct the mask or add the part to classes.json"),
    in_colors: ("00001.png is RGB", "add --rgb-masks"),
    without_partner: ("00001.png has no image", "add the image or remove the mask"),
    without_masks: ("masks: contains no mask", "save the mask of each labeled image there"),
    without_images: ("images: contains no image", "give a folder that does"),
    torn_mask: ("00001.png cannot be read", "export it again"),
    empty_mask: ("00001.png is empty (0 bytes)", "export it again"),
    torn_shot: ("00001.png: cannot be read", "replace it or delete it"),
    empty_shot: ("00001.png: is empty (0 bytes)", "copy it again or delete it"),
    one_class: ("masks: the masks contain only 'background'", "label at least two classes"),
    twins: ("00003.jpg and 00003.png share a name", "rename one"),
    broken_parts: ("classes.json: not JSON", "see the format"),
}


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("line", [RUN, FIT, DISTILL], ids=["run", "fit", "distill"])
def test_bad_images_and_masks(toy, tmp_path, line, spoil):
    spoil(toy)
    refused(line, *SPOILED[spoil], toy=toy, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_time_is_refused(toy, tmp_path):
    line = RUN.replace("--minutes 0.01", "--minutes 0")
    refused(line, "--minutes 0: must be a positive, finite number", toy=toy, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rgb_masks_are_read_when_asked_for(toy, tmp_path):
    in_colors(toy)
    done = CliRunner().invoke(app, f"{RUN} --rgb-masks --dry-run".format(toy=toy, out=tmp_path / "out").split())
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (RUN + " --student fast-unte", "unknown student 'fast-unte'; did you mean 'fast-unet'?"),
        (RUN + " --representation pixles", "unknown representation 'pixles'; did you mean 'pixels'?"),
        (RUN + " --representation timm", "write timm:NAME"),
        (RUN + " --representation pixles --dry-run", "unknown representation 'pixles'"),
        (RUN + " --size 50", "size"),
        (FIT + " --preset fats", "head 'linear' has no preset 'fats'; did you mean 'fast'?"),
        (FIT + " --head linaer", "unknown head 'linaer'; did you mean 'linear'?"),
        (DISTILL + " --preset supervized", "distill has no preset 'supervized'; did you mean 'supervised'?"),
        (DISTILL + " --student unet-resnet81", "unknown encoder 'resnet81' in student 'unet-resnet81'; did you mean"),
        ("toy facse {out}", "unknown toy 'facse'; did you mean 'faces'?"),
        ("pretrain simsaim --images {toy}/images --out {out}", "unknown pretext 'simsaim'; did you mean 'simsiam'?"),
        ("demo --out {out} --kind hores", "unknown toy 'hores'; did you mean 'horses'?"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(toy, tmp_path, line, hint):
    refused(line, hint, toy=toy, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_part_is_answered_with_the_nearest():
    from partshot.errors import BadParts
    from partshot.parts import PartSet

    with pytest.raises(BadParts, match="unknown part 'hiar'; did you mean 'hair'"):
        PartSet.of("background", "hair").id_of("hiar")


def test_a_truncated_student_is_not_exported(student, tmp_path):
    shutil.copytree(student / "student", tmp_path / "student")
    tensors = tmp_path / "student" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    refused("export {s} {o}", str(tensors), "truncated", "run again", s=tmp_path / "student", o=tmp_path / "s.onnx")
    assert not (tmp_path / "s.onnx").exists()
    (tmp_path / "student" / "card.json").write_text("{}")
    refused("export {s} {o}", "card.json", "run again", s=tmp_path / "student", o=tmp_path / "s.onnx")


def test_a_truncated_checkpoint_is_not_gone_on_from(student, drawn, tmp_path):
    shutil.copytree(student, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "student")
    tensors = tmp_path / "out" / "checkpoint" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    refused(DISTILL, str(tensors), "truncated", "run again", toy=drawn, out=tmp_path / "out")
    assert not (tmp_path / "out" / "student").exists()


def test_a_run_of_another_recipe_is_not_gone_on_from(student, drawn, tmp_path):
    shutil.copytree(student, tmp_path / "out")
    before = read_card(tmp_path / "out" / "student")
    refused(
        DISTILL + " --seed 1", "other settings or other data", "choose another --out", toy=drawn, out=tmp_path / "out"
    )
    assert read_card(tmp_path / "out" / "student") == before
    shutil.rmtree(tmp_path / "out" / "student")
    refused(DISTILL + " --seed 1", "checkpoint", "other settings or other data", toy=drawn, out=tmp_path / "out")


def test_an_artifact_of_another_kind_is_refused(student, drawn, tmp_path):
    line = DISTILL + f" --teacher {student}/checkpoint"
    refused(line, "is an artifact of kind checkpoint, not segmenter", toy=drawn, out=tmp_path / "out")
    refused(
        "predict {s}/card.json {toy}/images --out {out}", "card.json", s=student / "student", toy=drawn, out=tmp_path
    )
    refused("export {t} {out}/x.onnx", "no trained artifact in this folder", t=tmp_path, out=tmp_path)


@pytest.mark.parametrize("line", [FIT, DISTILL])
def test_a_full_disk_leaves_nothing_half_written(toy, tmp_path, monkeypatch, line):
    def full(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    refused(
        line, "the disk is full; free some space and run again", str(tmp_path / "out"), toy=toy, out=tmp_path / "out"
    )
    left = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    # What is there is whole: the journal and the estimate, no weights, nothing temporary.
    assert {p.name for p in left} <= {"journal.jsonl", "leave_one_out.json"}
    for path in left:
        [json.loads(text) for text in ([path.read_text()] if path.suffix == ".json" else path.read_text().splitlines())]
