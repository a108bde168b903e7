"""pretrain: a folder of images becomes a representation that can be opened; running again repeats nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

from partshot.artifact import Artifact, read_card
from partshot.errors import BadArtifact, BadImage, BadRecipe
from partshot.pretext.stylegan2 import PRESETS
from partshot.represent.choose import open_representation
from partshot.tasks import pretrain as task
from partshot.tasks.pretrain import pretrain, resolve
from partshot.toy.dataset import write_toy
from partshot.train.journal import read_journal


@pytest.fixture
def folder(tmp_path):
    """Eight images and one that is torn."""
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))).save(images / f"{index}.png")
    (images / "torn.png").write_bytes((images / "0.png").read_bytes()[:40])
    return images


def train(folder, out, seed=0, kimg=0.012, batch=4, shelf=None):
    return pretrain("simsiam", folder, out, size=32, kimg=kimg, batch=batch, seed=seed, quiet=True, shelf=shelf)


def test_a_folder_of_images_becomes_a_representation(folder, tmp_path):
    with pytest.warns(UserWarning, match=r"1 image is left out; first: .*torn\.png"):
        made = train(folder, tmp_path / "out")

    card = read_card(made)
    assert (card["kind"], card["pretext"], card["net"], card["images"]) == (
        "representation",
        "simsiam",
        "resnet18",
        8,
    )
    assert (card["size"], card["kimg"], card["batch"]) == (32, 0.012, 4)
    representation = open_representation("resnet", made)
    pyramid = representation.features(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert pyramid.channels == (64, 128, 256, 512)
    assert [tuple(m.shape[2:]) for m in pyramid.maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    # The stored statistics are those of the images as they are read: normalized maps have unit variance.
    plain = np.stack([np.asarray(Image.open(folder / f"{i}.png")) for i in range(8)])
    images = torch.from_numpy(plain).permute(0, 3, 1, 2) / 127.5 - 1
    trunk = representation.trunk
    stem = trunk.bn1(trunk.conv1(representation._prepared(images)))
    torch.testing.assert_close(stem.var((0, 2, 3)), torch.ones(64), atol=0.02, rtol=0)

    # Again: nothing is done. Other settings or other images: refused.
    written = (made / "card.json").stat().st_mtime_ns
    assert train(folder, tmp_path / "out") == made
    assert (made / "card.json").stat().st_mtime_ns == written
    with pytest.raises(BadArtifact, match="other settings or other data"):
        train(folder, tmp_path / "out", seed=1)
    (folder / "torn.png").unlink()
    with pytest.raises(BadArtifact, match="other settings or other data"):
        train(folder, tmp_path / "out")


def test_a_run_stopped_halfway_goes_on(folder, tmp_path, monkeypatch):
    (folder / "torn.png").unlink()
    whole = Artifact.load(train(folder, tmp_path / "whole"))

    # Stopped after the loop, before the representation was written.
    with monkeypatch.context() as patch:
        patch.setattr("partshot.tasks.pretrain._calibrated", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(folder, tmp_path / "cut")
    assert not (tmp_path / "cut" / "representation").exists()
    cut = Artifact.load(train(folder, tmp_path / "cut"))

    assert whole.tensors.keys() == cut.tensors.keys()
    assert all(np.array_equal(whole.tensors[k], cut.tensors[k]) for k in whole.tensors)


def test_moco_leaves_what_simsiam_does_and_tells_how_often_keys_are_found(folder, tmp_path):
    (folder / "torn.png").unlink()
    made = pretrain("moco", folder, tmp_path / "out", size=32, kimg=0.012, batch=4, quiet=True)
    card = read_card(made)
    assert (card["pretext"], card["net"], card["images"], card["batch"]) == ("moco", "resnet18", 8, 4)
    pyramid = open_representation("resnet", made).features(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert pyramid.channels == (64, 128, 256, 512)
    assert {"loss", "spread", "accuracy"} < set(read_journal(tmp_path / "out" / "journal.jsonl")[-1])


def test_what_was_trained_is_taken_from_the_shelf(folder, tmp_path, monkeypatch):
    bitmaps, shelf = tmp_path / "bitmaps", tmp_path / "shelf"
    bitmaps.mkdir()
    for i in range(8):
        Image.open(folder / f"{i}.png").save(bitmaps / f"{i}.bmp")
    monkeypatch.setattr(task, "SHELVED", 1)
    first = Artifact.load(train(bitmaps, tmp_path / "one", shelf=shelf))
    (place,) = shelf.iterdir()

    loop = task.run_loop
    monkeypatch.setattr(task, "run_loop", lambda *_, **__: pytest.fail("trained again"))
    second = Artifact.load(train(bitmaps, tmp_path / "two", shelf=shelf))
    assert first.card == second.card
    assert all(np.array_equal(first.tensors[k], second.tensors[k]) for k in first.tensors)
    # Other settings; another image in a file of the same name and size; what is damaged.
    with pytest.raises(pytest.fail.Exception):
        train(bitmaps, tmp_path / "three", seed=1, shelf=shelf)
    other = bitmaps / "3.bmp"
    blob = other.read_bytes()
    Image.new("RGB", (32, 32), "red").save(other)
    with pytest.raises(pytest.fail.Exception):
        train(bitmaps, tmp_path / "four", shelf=shelf)
    other.write_bytes(blob)
    (place / "tensors.safetensors").write_bytes(b"torn")
    monkeypatch.setattr(task, "run_loop", loop)
    healed = Artifact.load(train(bitmaps, tmp_path / "five", shelf=shelf))
    assert all(np.array_equal(first.tensors[k], healed.tensors[k]) for k in first.tensors)
    assert Artifact.load(place).card == first.card
    # The shelf holds one, the newest.
    train(bitmaps, tmp_path / "six", seed=1, shelf=shelf)
    assert [path.name for path in shelf.iterdir()] != [place.name] and len(list(shelf.iterdir())) == 1


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadImage, match="no image"):
        train(tmp_path / "empty", tmp_path / "out")


def test_unknown_names_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(BadRecipe, match="did you mean 'simsiam'"):
        resolve("simsam")
    with pytest.raises(BadRecipe, match="did you mean 'small-folder'"):
        resolve("simsiam", preset="small-folders")
    with pytest.raises(BadRecipe, match="batch"):
        resolve("simsiam", batch=1)
    with pytest.raises(BadRecipe, match="a batch of 200 does not fit in a queue of 128 keys; use a batch of 128"):
        resolve("moco", batch=200)


def test_what_is_asked_replaces_the_presets_value():
    recipe = resolve("simsiam", preset="ganorcon", size=64, kimg=3)
    assert (recipe.size, recipe.kimg, recipe.batch, recipe.net) == (64, 3, 32, "resnet50")


def test_a_preset_grows_to_any_size():
    sides = {size: [side for side, _ in resolve("stylegan2", size=size).grow] for size in (16, 32, 64, 256)}
    assert sides == {16: [], 32: [16], 64: [16, 32], 256: [16, 32, 64, 128]}
    assert resolve("stylegan2", preset="stylegan2-paper", size=64).grow == ()


def test_a_generator_is_trained_on_drawn_images_and_shows_samples(tmp_path, monkeypatch):
    small = PRESETS["toy-face-64"].changed(size=32, kimg=0.032, batch=8, grow=((16, 0.5),))
    monkeypatch.setitem(PRESETS, "toy-face-64", small)
    monkeypatch.setitem(task.TOY_PRESETS, "toy-face-64", ("faces", 50, 7))
    options = {"preset": "toy-face-64", "quiet": True}
    made = pretrain("stylegan2", None, tmp_path / "out", **options)
    card = read_card(made)
    assert (card["kind"], card["pretext"], card["images"], card["flip"]) == ("representation", "stylegan2", 50, True)
    generator = open_representation("stylegan2", made)
    images, pyramid = generator.synthesize(generator.sample([0, 1]))
    assert images.shape == (2, 3, 32, 32) and len(pyramid.maps) == 6
    assert float(generator.distance()(images[:1])(images[1:])) > 0
    grids = sorted((tmp_path / "out" / "samples").iterdir())
    assert [Image.open(path).size for path in grids] == [(8 * 32, 4 * 32)] * 4
    written = (made / "card.json").stat().st_mtime_ns
    assert pretrain("stylegan2", None, tmp_path / "out", **options) == made
    assert (made / "card.json").stat().st_mtime_ns == written


def test_a_trained_generator_is_gone_on_with(tmp_path):
    images = write_toy("faces", 50, 32, tmp_path / "toy") / "images"
    given = {"size": 32, "kimg": 0.016, "batch": 8, "quiet": True}
    first = pretrain("stylegan2", images, tmp_path / "first", **given)
    made = pretrain("stylegan2", images, tmp_path / "second", start=tmp_path / "first", **given)
    card = read_card(made)
    assert (card["started_from"], card["grow"], card["lr"]) == ("stylegan2 small", [], PRESETS["further"].lr)
    # What was made from another start is another run.
    with pytest.raises(BadArtifact, match="other settings or other data"):
        pretrain("stylegan2", images, tmp_path / "second", start=made, **given)
    with pytest.raises(BadRecipe, match="first/representation: generates 32 px, which differs from --size 64"):
        pretrain("stylegan2", images, tmp_path / "third", start=first, **{**given, "size": 64})
    with pytest.raises(BadRecipe, match="--start is only for stylegan1 and stylegan2"):
        pretrain("simsiam", images, tmp_path / "third", start=first, **given)
    # Size and net are the generator's own, whatever the preset says.
    del given["size"]
    growing = pretrain("stylegan2", images, tmp_path / "fourth", "small-folder", start=first, **given)
    assert (read_card(growing)["size"], read_card(growing)["grow"]) == (32, [])
    assert not (tmp_path / "third").exists()


def test_a_stylegan_is_trained_and_named_by_its_folder(tmp_path):
    images = write_toy("faces", 50, 32, tmp_path / "toy") / "images"
    made = pretrain("stylegan1", images, tmp_path / "out", size=32, kimg=0.016, batch=8, quiet=True)
    card = read_card(made)
    assert (card["pretext"], card["net"], card["grow"], card["path"]) == ("stylegan1", "adain-small", [[16, 0.15]], 0)
    generator = open_representation(f"{made}:all")
    assert generator.kind == "stylegan1" and open_representation(str(made)).layers == "datasetgan"
    images, pyramid = generator.synthesize(generator.sample([0, 1]))
    assert images.shape == (2, 3, 32, 32) and [m.shape[2] for m in pyramid.maps] == [32, 32, 16, 16, 8, 8, 4, 4]
    assert len(list((tmp_path / "out" / "samples").iterdir())) > 0


def test_only_some_presets_draw_their_own_images(tmp_path):
    with pytest.raises(BadRecipe, match="--images is missing; only these presets make their own images: toy-face-64"):
        pretrain("stylegan2", None, tmp_path / "out")


def test_a_generator_needs_more_images_and_a_power_of_two(folder, tmp_path):
    with (
        pytest.warns(UserWarning),
        pytest.raises(BadImage, match="only 8 images; a StyleGAN needs 50 or more"),
    ):
        pretrain("stylegan2", folder, tmp_path / "out", size=32)
    with pytest.raises(BadRecipe, match="100 px is not a power of two; the nearest is 128"):
        pretrain("stylegan2", folder, tmp_path / "out", size=100)
