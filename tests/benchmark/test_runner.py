"""bench: rows, their order, resuming, and the page; with contenders that take no time."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from partshot.benchmark import runner as module
from partshot.benchmark.datasets import open_dataset
from partshot.benchmark.methods import BenchRecipe, Entry, MethodBuilder
from partshot.benchmark.runner import bench
from partshot.benchmark.tables import TABLES, Table, shifted
from partshot.data.images import list_images
from partshot.data.shots import load_shots
from partshot.errors import BadArtifact, BadLabels, BadRecipe
from partshot.pretext.moco import PRESETS as MOCO
from partshot.pretext.simsiam import PRESETS as SIMSIAM
from partshot.represent.stylegan import EMBEDDED
from partshot.toy.dataset import write_toy
from partshot.train.fit_head import FitHead


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight drawn horses with masks; a split that measures on two."""
    folder = write_toy("horses", 8, 32, tmp_path_factory.mktemp("pack") / "horses")
    stems = [f"{i:05d}" for i in range(8)]
    split = {"train": stems[:6], "val": stems[6:], "fewshot": {"1": {"0": stems[2:3], "1": stems[3:4]}}}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


def floor(fits):
    """A contender that says everywhere what its shots show most; notes each fit in `fits`."""

    def fit(shots):
        fits.append(shots.names)
        most = np.bincount(np.concatenate([mask.ravel() for mask in shots.labels])).argmax()
        return lambda images: [np.full(image.shape[:2], most, np.uint8) for image in images]

    return fit


@pytest.fixture
def tiny(monkeypatch):
    """A table of two rows, one of which has a k of its own; returns what was fitted."""
    fits = []

    def rows(every):
        recipe = FitHead(images=7)
        return [Entry("floor", floor(fits), {"fit": recipe}), Entry("other", floor(fits), {}, ks=(1,))]

    monkeypatch.setattr(module, "TABLES", {"tiny": Table("Why?", "nowhere", rows)})
    monkeypatch.setitem(module.PRESETS, "pack", BenchRecipe(size=32, ks=(1,), seeds=(0, 1)))
    return fits


def test_a_table(folder, tiny, tmp_path):
    page = bench("tiny", str(folder), tmp_path, quiet=True)
    assert page == tmp_path / "tiny-horses.md" and (tmp_path / "tiny-horses.png").stat().st_size > 1000
    text = page.read_text()
    link = text.split("| floor | ")[1].split("](")[1].split(")")[0]
    assert "images = 7" in (tmp_path / link).read_text()
    told = json.loads((tmp_path / "tiny-horses.json").read_text())
    test = load_shots(folder, names=["00006", "00007"])
    background = np.mean(np.stack(test.labels) == 0)
    # The floor is background everywhere: of five classes one has that IoU, the others 0.
    assert told["table"]["floor"]["1"]["miou"] == pytest.approx(background / 5)
    assert told["table"]["floor"]["1"]["seeds"] == 2 and list(told["table"]) == ["floor", "other"]
    assert sorted(tiny) == [("00002",), ("00002",), ("00003",), ("00003",)]


def test_it_goes_on_where_it_stopped_and_says_on_which_machines(folder, tiny, tmp_path, monkeypatch):
    page = bench("tiny", str(folder), tmp_path, seeds=(0,), quiet=True)
    assert len(tiny) == 2 and f"Measured on {module._machine()}." in page.read_text()
    monkeypatch.setattr(module, "_machine", lambda: "an abacus")
    page = bench("tiny", str(folder), tmp_path, quiet=True)
    assert len(tiny) == 4 and "an abacus (2 of the rows)" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["card"]["machines"]["an abacus"] == 2
    # Only the rows that were asked for are shown.
    page = bench("tiny", str(folder), tmp_path, seeds=(1,), quiet=True)
    assert len(tiny) == 4 and "One draw, 1;" in page.read_text()


def test_a_run_that_is_cut_short_shows_what_is_there(folder, tiny, tmp_path, monkeypatch):
    def stopping(shots):
        raise KeyboardInterrupt

    rows = module.TABLES["tiny"].rows
    cut = Table("Why?", "nowhere", lambda every: [rows(every)[0], rows(every)[1]._replace(fit=stopping)])
    monkeypatch.setitem(module.TABLES, "tiny", cut)
    with pytest.raises(KeyboardInterrupt):
        bench("tiny", str(folder), tmp_path, quiet=True)
    page = (tmp_path / "tiny-horses.md").read_text()
    assert re.search(r"Unfinished: 1 of 4 rows are there. Splits so far: \S+ \(k = 1\) 1, \S+ \(k = 1\) 0\.", page)
    monkeypatch.setitem(module.TABLES, "tiny", Table("Why?", "nowhere", rows))
    assert "Unfinished" not in bench("tiny", str(folder), tmp_path, quiet=True).read_text()


def test_what_cannot_be_is_refused_before_work(folder, tiny, tmp_path):
    with pytest.raises(BadRecipe, match="unknown table 'tny'.*tiny"):
        bench("tny", str(folder), tmp_path)
    with pytest.raises(BadRecipe, match="no such folder, and no toy.*toy-face"):
        bench("tiny", "toy-fase", tmp_path)
    with pytest.raises(BadRecipe, match=r"no k = 2 for all of --seeds \[0, 1\]; there are"):
        bench("tiny", str(folder), tmp_path, ks=(1, 2))
    with pytest.raises(BadRecipe, match="seeds are .* each once"):
        bench("tiny", str(folder), tmp_path, seeds=(1, 1))
    with pytest.raises(BadRecipe, match="unknown preset 'smal-folder'; did you mean 'small-folder'"):
        bench("tiny", str(folder), tmp_path, preset="smal-folder")
    with pytest.raises(BadRecipe, match="unknown preset 'small-folder-lang'; did you mean 'small-folder-long'"):
        bench("tiny", str(folder), tmp_path, preset="small-folder,moco=small-folder-lang")
    with pytest.raises(BadRecipe, match="simsiam: unknown preset 'small-folder-long'.*A,moco=B"):
        bench("tiny", str(folder), tmp_path, preset="small-folder-long")
    twice = "small-folder,moco=small-folder,moco=small-folder-gpu"
    for mistyped in ("moco=small-folder", "small-folder,small-folder-gpu", "", "small-folder,moco=", twice):
        with pytest.raises(BadRecipe, match="write ROW for all pretexts"):
            bench("tiny", str(folder), tmp_path, preset=mistyped)
    with pytest.raises(BadRecipe, match="unknown pretext 'moca'.*moco"):
        bench("tiny", str(folder), tmp_path, preset="small-folder,moca=small-folder")
    with pytest.raises(BadRecipe, match="ks are .* from 1 on"):
        bench("tiny", str(folder), tmp_path, ks=(0,))
    with pytest.raises(BadArtifact):
        bench("tiny", str(folder), tmp_path, generator=folder)
    assert not tiny and not list(Path(tmp_path).iterdir())


def test_one_pretext_may_take_another_preset(folder, tmp_path):
    recipe = BenchRecipe(size=32, encoder_preset="small-folder-gpu, moco=small-folder-long")
    every = MethodBuilder(open_dataset(str(folder), tmp_path), tmp_path, recipe)
    assert every.encoder_recipe("simsiam") == SIMSIAM["small-folder-gpu"].changed(size=32)
    assert every.encoder_recipe("moco") == MOCO["small-folder-long"].changed(size=32)


def test_tables_that_need_a_generator_say_so(folder, tmp_path):
    every = MethodBuilder(open_dataset(str(folder), tmp_path), tmp_path, BenchRecipe(size=32))
    for name in ("layers", "inversion", "gan-images"):
        with pytest.raises(BadRecipe, match="--generator"):
            TABLES[name].rows(every)


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_every_table(name, folder, tmp_path):
    """Rows are built without any training, their names differ, and their recipes can be shown."""
    every = MethodBuilder(open_dataset(str(folder), tmp_path), tmp_path, BenchRecipe(size=32), generator=EMBEDDED)
    entries = TABLES[name].rows(every)
    assert len({entry.name for entry in entries}) == len(entries) > 1
    for entry in entries:
        assert all(recipe.to_toml() for recipe in entry.recipes.values())


def test_a_field_hides_what_is_measured_on(folder, tmp_path):
    field = open_dataset(str(folder), tmp_path)
    assert field.pool.names == tuple(f"{i:05d}" for i in range(6)) and field.test.names == ("00006", "00007")
    assert len(field.images(32)) == 6
    assert field.splits == {1: {0: ("00002",), 1: ("00003",)}}


def test_what_decides_a_row_is_in_its_name(folder, tmp_path):
    """A journal is found again under the same settings, and under no others."""
    field, recipe = open_dataset(str(folder), tmp_path), BenchRecipe(size=32)
    entry = Entry("inverted", lambda shots: None, {"fit": FitHead(images=7)}, source="a generator")

    def place(entry=entry, recipe=recipe, field=field):
        return module._journal(tmp_path, entry, recipe, field).path

    more = shutil.copytree(folder, tmp_path / "more" / folder.name)
    shutil.copy(more / "images" / "00000.png", more / "images" / "plain.png")
    others = [
        place(entry._replace(source="another")),
        place(entry._replace(recipes={"fit": FitHead(images=8)})),
        place(entry._replace(test=shifted(field.test, 0.5))),
        place(recipe=recipe.changed(size=64)),
        place(field=open_dataset(str(more), tmp_path)),
    ]
    assert place() == place() and len({place(), *others}) == 6


def test_students_of_other_settings_are_trained_elsewhere(folder, tmp_path):
    field = open_dataset(str(folder), tmp_path)
    one, other = (MethodBuilder(field, tmp_path, BenchRecipe(size=size)) for size in (32, 64))
    recipe = FitHead(images=7)
    assert one._students(recipe) != other._students(recipe) != other._students(recipe.changed(images=8))


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        ({"train": ["00000"], "val": ["00000"]}, "'00000' is in both"),
        ({"train": [], "val": ["00000"]}, "train or val is empty"),
        ({"train": ["00000"]}, "not a split"),
        ({"train": ["00000"], "val": ["00001"], "fewshot": {"one": {}}}, "not a split"),
    ],
)
def test_splits_that_cannot_be(tmp_path, split, reason):
    pack = write_toy("cars", 4, 32, tmp_path / "cars")
    (pack / "split.json").write_text(json.dumps(split))
    with pytest.raises(BadLabels, match=reason):
        open_dataset(str(pack), tmp_path)


def test_images_without_a_mask_may_lie_among_the_others(tmp_path):
    pack = write_toy("cars", 9, 32, tmp_path / "cars")
    for i in (1, 2):
        (pack / "masks" / f"0000{i}.png").unlink()
    field = open_dataset(str(pack), tmp_path)
    assert len(field.pool) + len(field.test) == 7 and len(field.images(32)) == 9 - len(field.test)


def test_plain_images_are_the_packs_own_and_those_that_lie_apart(tmp_path):
    """What is measured on is not among them, and the pack's own come first where there are too many."""
    pack = write_toy("cars", 8, 32, tmp_path / "cars")
    write_toy("horses", 20, 32, tmp_path / "others")
    (tmp_path / "others" / "images").rename(pack / "unlabeled")
    field = open_dataset(str(pack), tmp_path / "work")
    names = [path.name for path in list_images(field.plain)]
    assert len([name for name in names if name.startswith("train-")]) == 8 - len(field.test) == len(field.near)
    assert not {f"train-{name}.png" for name in field.test.names} & set(names) and len(names) == 6 + 20
    assert np.array_equal(field.images(32)[0], field.pool.images[0]) and len(field.images(32)) == 26
    assert open_dataset(str(pack), tmp_path / "elsewhere").fingerprint == field.fingerprint
    # Another split hides other images, also in the same place.
    split = {"train": ["00000", "00001"], "val": ["00002", "00003"]}
    (pack / "split.json").write_text(json.dumps(split))
    names = [path.name for path in list_images(open_dataset(str(pack), tmp_path / "work").plain)]
    assert len(names) == 6 + 20 and not {"train-00002.png", "train-00003.png"} & set(names)


def test_only_so_many_images_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("partshot.benchmark.datasets.MOST_IMAGES", 10)
    pack = write_toy("cars", 8, 32, tmp_path / "cars")
    write_toy("horses", 20, 32, tmp_path / "others")
    (tmp_path / "others" / "images").rename(pack / "unlabeled")
    images = open_dataset(str(pack), tmp_path / "work").images(32)
    others = load_shots(tmp_path / "others", pack / "unlabeled").images
    assert len(images) == 10 and np.array_equal(images[6:], np.stack(others[::5]))


def test_a_student_that_starts_from_an_encoder(folder, tmp_path, monkeypatch):
    """It is trained beside the one that starts from chance, and both are rows."""
    tiny = BenchRecipe(size=32, ks=(1,), seeds=(0,), encoder_kimg=0.032, student_kimg=0.016)
    every = MethodBuilder(open_dataset(str(folder), tmp_path), tmp_path, tiny, quiet=True)
    shots = every.field.pool.sample(1, 0)
    monkeypatch.setattr(MethodBuilder, "student_size", 32)
    for pretext, links in ((None, ["student"]), ("moco", ["encoder", "student"])):
        entry = every.started("unet-resnet18", pretext)
        assert [*entry.recipes] == links
        assert entry.fit(shots)(shots.images)[0].shape == (32, 32)
    kept = {path.name.rsplit("-", 2)[0] for path in (tmp_path / "students").glob("*/*")}
    assert kept == {"unet-resnet18-chance", "unet-resnet18-moco"}


def test_a_field_without_a_split(folder, tmp_path):
    plain = write_toy("cars", 9, 32, tmp_path / "cars")
    field = open_dataset(str(plain), tmp_path)
    assert field.test.names == ("00000", "00004", "00008") and len(field.pool) == 6 and field.splits is None
    few = write_toy("cars", 3, 32, tmp_path / "few")
    with pytest.raises(BadLabels, match="4 or more"):
        open_dataset(str(few), tmp_path)
    (plain / "split.json").write_text('{"train": ["00001"], "val": ["0007"]}')
    with pytest.raises(BadLabels, match="'0007'"):
        open_dataset(str(plain), tmp_path)


def test_shifted(folder):
    shots = load_shots(folder, names=["00000"])
    moved = shifted(shots, 0.25)
    assert np.array_equal(moved.images[0][:, :24], shots.images[0][:, 8:])
    assert np.array_equal(moved.labels[0][:, :24], shots.labels[0][:, 8:])
    assert (moved.labels[0][:, 24:] == 255).all() and (moved.images[0][:, 24:] == shots.images[0][:, -1:]).all()
    assert shifted(shots, 0.0).fingerprint == shots.fingerprint
