import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from partshot.artifact import Artifact, read_card, replacing_file, replacing_folder, standing, write_json
from partshot.errors import BadArtifact, DiskFull

TENSORS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "steps": np.array(7),  # a scalar, like BatchNorm's num_batches_tracked
    "transposed": np.arange(6).reshape(2, 3).T,  # not contiguous
    "half": np.ones(3, np.float16),
    "none": np.zeros((0, 4), np.uint8),
}


def head(**card) -> Artifact:
    return Artifact("head", {"fingerprint": "abc", **card}, TENSORS)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_saving_and_loading_is_bit_exact(tmp_path):
    back = Artifact.load(head(parts=["a", "ü"]).save(tmp_path / "new" / "head"), kind="head", fingerprint="abc")
    assert back.kind == "head" and back.card["parts"] == ["a", "ü"] and back.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert back.tensors[name].dtype == tensor.dtype and back.tensors[name].shape == tensor.shape
        np.testing.assert_array_equal(back.tensors[name], tensor)
    assert os.listdir(tmp_path / "new") == ["head"]


def test_a_loaded_and_changed_artifact_can_be_saved(tmp_path):
    back = Artifact.load(head().save(tmp_path / "a"))
    changed = Artifact(back.kind, back.card, {"weight": np.zeros(2)})
    assert Artifact.load(changed.save(tmp_path / "a")).tensors["weight"].shape == (2,)


def test_another_kind_or_recipe_is_rejected(tmp_path):
    path = head().save(tmp_path / "a")
    with pytest.raises(BadArtifact, match="a: is an artifact of kind head, not student"):
        Artifact.load(path, kind="student")
    with pytest.raises(BadArtifact, match=r"other settings or other data; use those again"):
        Artifact.load(path, fingerprint="xyz")


@pytest.mark.parametrize("cut", [0, 8, -1])
def test_truncated_tensors_are_rejected(tmp_path, cut):
    blob = head().save(tmp_path / "a") / "tensors.safetensors"
    blob.write_bytes(blob.read_bytes()[:cut])
    with pytest.raises(BadArtifact, match=r"tensors\.safetensors: truncated or changed.*delete"):
        Artifact.load(tmp_path / "a")


def test_missing_files_are_rejected(tmp_path):
    with pytest.raises(BadArtifact, match="no trained artifact in this folder"):
        Artifact.load(tmp_path)
    with pytest.raises(BadArtifact, match="nowhere: no such folder; give the --out"):
        Artifact.load(tmp_path / "nowhere")
    (head().save(tmp_path / "a") / "tensors.safetensors").unlink()
    with pytest.raises(BadArtifact, match=r"tensors\.safetensors: cannot be read"):
        Artifact.load(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"partshot": "x", "kind": "head", "sha256": ""}'])
def test_an_invalid_card_is_rejected(tmp_path, text):
    card = head().save(tmp_path / "a") / "card.json"
    card.write_text(text)
    with pytest.raises(BadArtifact, match=r"card\.json: not an artifact's card"):
        Artifact.load(tmp_path / "a")


def test_a_newer_format_is_rejected(tmp_path):
    card = head().save(tmp_path / "a") / "card.json"
    card.write_text(json.dumps({**read_card(tmp_path / "a"), "partshot": 99}))
    with pytest.raises(BadArtifact, match="newer partshot .*upgrade"):
        Artifact.load(tmp_path / "a")


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(BadArtifact, match="contains other files, which would be lost"):
        head().save(tmp_path)
    assert os.listdir(tmp_path) == ["holiday.jpg"]
    (tmp_path / "empty").mkdir()
    assert Artifact.load(head().save(tmp_path / "empty")).kind == "head"


def test_files_that_were_added_to_an_artifact_are_kept(tmp_path):
    path = head(version=1).save(tmp_path / "a")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(BadArtifact, match=r"contains other files, which would be lost, such as notes.txt"):
        head(version=2).save(path)
    assert (path / "notes.txt").read_text() == "mine" and read_card(path)["version"] == 1
    os.replace(path / "notes.txt", path / ".DS_Store")  # as file managers write it
    assert read_card(head(version=2).save(path))["version"] == 2


def test_tensors_without_a_card_are_kept(tmp_path):
    (tmp_path / "tensors.safetensors").write_text("of another program")
    with pytest.raises(BadArtifact, match="contains other files"):
        head().save(tmp_path)


@pytest.mark.parametrize("method", ["write_bytes", "write_text"])
def test_a_full_disk_keeps_the_older_artifact(tmp_path, monkeypatch, method):
    path = head(version=1).save(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(Path, method, full)
        with pytest.raises(DiskFull, match="a: the disk is full; free some space and run again"):
            head(version=2).save(path)
    assert Artifact.load(path).card["version"] == 1 and os.listdir(tmp_path) == ["a"]


def test_a_failing_rename_keeps_the_older_artifact(tmp_path, monkeypatch):
    path, rename = head(version=1).save(tmp_path / "a"), os.replace
    for failing in (0, 1):  # the rename of the older folder, then that of the new one
        calls = iter(range(9))
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda *a, f=failing, t=calls: full() if next(t) == f else rename(*a))
            with pytest.raises(DiskFull):
                head(version=2).save(path)
        assert Artifact.load(path).card["version"] == 1 and os.listdir(tmp_path) == ["a"]


def test_a_writer_killed_between_the_two_renames_loses_nothing(tmp_path):
    path = head(version=1).save(tmp_path / "a")
    os.replace(path, tmp_path / ".a-old")  # as a kill leaves it
    assert standing(path).exists() and Artifact.load(path).card["version"] == 1 and read_card(path)["version"] == 1
    head(version=2).save(path)
    assert Artifact.load(path).card["version"] == 2 and os.listdir(tmp_path) == ["a"]


def test_leftovers_of_a_writer_killed_during_cleanup_are_ignored(tmp_path):
    path = head(version=1).save(tmp_path / "a")
    shutil.copytree(path, tmp_path / ".a-old")
    head(version=2).save(path)
    assert Artifact.load(path).card["version"] == 2 and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("killed", ["during the deletion", "before the deletion"])
def test_a_leftover_backup_is_not_loaded_after_its_folder_was_deleted(tmp_path, monkeypatch, killed):
    path = head(version=1).save(tmp_path / "a")
    if killed == "during the deletion":

        def kill(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), replacing_folder(path):
            patch.setattr(shutil, "rmtree", lambda f, **_: kill() if Path(f).exists() else None)
        assert path.exists()
    else:
        shutil.copytree(path, tmp_path / ".a-old")
        Artifact.load(path)
        assert os.listdir(tmp_path) == ["a"]
    shutil.rmtree(path)
    assert not standing(path).exists()
    with pytest.raises(BadArtifact, match="no such folder"):
        Artifact.load(path)
    head(version=2).save(path)
    head(version=3).save(path)
    assert os.listdir(tmp_path) == ["a"]


def test_a_conflicting_file_is_named_and_kept(tmp_path):
    file = tmp_path / "a"
    file.write_text("mine")
    for target in (file, file / "b"):
        with pytest.raises(DiskFull, match="a file is in the way of a folder"):
            head().save(target)
    with pytest.raises(DiskFull, match="a folder of that name exists"), replacing_file(tmp_path / "c") as temporary:
        (tmp_path / "c").mkdir()
        temporary.write_text("new")
    assert file.read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["a", "c"]


def test_an_error_or_an_interrupt_leaves_no_files(tmp_path):
    for problem in (ValueError, KeyboardInterrupt):
        with pytest.raises(problem), replacing_folder(tmp_path / "a") as temporary:
            (temporary / "half").touch()
            raise problem
        with pytest.raises(problem), replacing_file(tmp_path / "b.txt") as temporary:
            raise problem
    assert os.listdir(tmp_path) == []


def test_replacing_file_keeps_the_suffix_is_hidden_and_readable_by_others(tmp_path):
    with replacing_file(tmp_path / "deep" / "a.png") as temporary:
        assert temporary.suffix == ".png" and temporary.name.startswith(".")
        temporary.write_text("new")
    assert (tmp_path / "deep" / "a.png").read_text() == "new"
    assert (tmp_path / "deep" / "a.png").stat().st_mode & 0o777 == 0o644


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"name": "ü"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "ü"}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"name": object()})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "ü"}
    assert os.listdir(tmp_path) == ["a.json"]
