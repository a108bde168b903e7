"""bench: rows, their order, resuming, and the page; with methods that take no time."""

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
    """Eight synthetic horses with masks; the split has two test images."""
    folder = write_toy("horses", 8, 32, tmp_path_factory.mktemp("pack") / "horses")
    stems = [f"{i:05d}" for i in range(8)]
    split = {"train": stems[:6], "val": stems[6:], "fewshot": {"1": {"0": stems[2:3], "1": stems[3:4]}}}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


def floor(fits):
    """A method that predicts the most frequent label of its shots for all pixels; appends each fit to `fits`."""

    def fit(shots):
        fits.append(shots.names)
        most = np.bincount(np.concatenate([mask.ravel() for mask in shots.labels])).argmax()
        return lambda images: [np.full(image.shape[:2], most, np.uint8) for image in images]

    return fit


@pytest.fixture
def tiny(monkeypatch):
    """A table of two rows, one of which has its own k; returns the list of fits."""
    fits = []

    def rows(builder):
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
    written = json.loads((tmp_path / "tiny-horses.json").read_text())
    test = load_shots(folder, names=["00006", "00007"])
    background = np.mean(np.stack(test.labels) == 0)
    # "floor" predicts background for all pixels: one of five classes has that IoU, the others have 0.
    assert written["table"]["floor"]["1"]["miou"] == pytest.approx(background / 5)
    assert written["table"]["floor"]["1"]["seeds"] == 2 and list(written["table"]) == ["floor", "other"]
    assert sorted(tiny) == [("00002",), ("00002",), ("00003",), ("00003",)]


def test_settings_change_the_preset_or_a_given_recipe(folder, tiny, tmp_path):
    def card(**given):
        page = bench("tiny", str(folder), tmp_path, quiet=True, seeds=(0,), **given)
        return json.loads(page.with_suffix(".json").read_text())["card"]["recipe"]

    found = card(size=None, ks=(), kimg=2, preset="small-folder-gpu", student_kimg=3)
    preset = module.PRESETS["pack"].changed(seeds=(0,))
    assert found == preset.changed(encoder_kimg=2, encoder_preset="small-folder-gpu", student_kimg=3).model_dump(
        mode="json"
    )
    recipe = BenchRecipe(size=64, ks=(1,), steps=7)
    assert card(recipe=recipe, fit_images=5) == recipe.changed(seeds=(0,), fit_images=5).model_dump(mode="json")


def test_it_resumes_from_rows_of_earlier_versions(folder, tiny, tmp_path):
    """They have "per_picture" instead of "per_image"."""
    page = bench("tiny", str(folder), tmp_path, quiet=True).read_text()
    for path in tmp_path.rglob("*.jsonl"):
        path.write_text(path.read_text().replace('"per_image"', '"per_picture"'))
    assert "per_picture" in path.read_text()
    assert bench("tiny", str(folder), tmp_path, quiet=True).read_text() == page and len(tiny) == 4


def test_it_resumes_and_names_the_machines(folder, tiny, tmp_path, monkeypatch):
    page = bench("tiny", str(folder), tmp_path, seeds=(0,), quiet=True)
    assert len(tiny) == 2 and f"Measured on {module._machine()}." in page.read_text()
    monkeypatch.setattr(module, "_machine", lambda: "an abacus")
    page = bench("tiny", str(folder), tmp_path, quiet=True)
    assert len(tiny) == 4 and "an abacus (2 of the rows)" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["card"]["machines"]["an abacus"] == 2
    # Only the requested rows are shown.
    page = bench("tiny", str(folder), tmp_path, seeds=(1,), quiet=True)
    assert len(tiny) == 4 and "One split, 1;" in page.read_text()


def test_a_stopped_run_shows_the_rows_that_are_measured(folder, tiny, tmp_path, monkeypatch):
    def stopping(shots):
        raise KeyboardInterrupt

    rows = module.TABLES["tiny"].rows
    cut = Table("Why?", "nowhere", lambda builder: [rows(builder)[0], rows(builder)[1]._replace(fit=stopping)])
    monkeypatch.setitem(module.TABLES, "tiny", cut)
    with pytest.raises(KeyboardInterrupt):
        bench("tiny", str(folder), tmp_path, quiet=True)
    page = (tmp_path / "tiny-horses.md").read_text()
    assert re.search(r"Unfinished: 1 of 4 rows measured. Splits so far: \S+ \(k = 1\) 1, \S+ \(k = 1\) 0\.", page)
    monkeypatch.setitem(module.TABLES, "tiny", Table("Why?", "nowhere", rows))
    assert "Unfinished" not in bench("tiny", str(folder), tmp_path, quiet=True).read_text()


def test_invalid_arguments_are_refused_before_any_work(folder, tiny, tmp_path):
    with pytest.raises(BadRecipe, match="unknown table 'tny'.*tiny"):
        bench("tny", str(folder), tmp_path)
    with pytest.raises(BadRecipe, match="neither a folder nor a toy.*toy-face"):
        bench("tiny", "toy-fase", tmp_path)
    with pytest.raises(BadRecipe, match=r"no k = 2 for all of --seeds \[0, 1\]; it has"):
        bench("tiny", str(folder), tmp_path, ks=(1, 2))
    with pytest.raises(BadRecipe, match="seeds are .* each once, all at least 0"):
        bench("tiny", str(folder), tmp_path, seeds=(1, 1))
    with pytest.raises(BadRecipe, match="has no preset 'smal-folder'; did you mean 'small-folder'"):
        bench("tiny", str(folder), tmp_path, preset="smal-folder")
    with pytest.raises(BadRecipe, match="has no preset 'small-folder-lang'; did you mean 'small-folder-long'"):
        bench("tiny", str(folder), tmp_path, preset="small-folder,moco=small-folder-lang")
    with pytest.raises(BadRecipe, match="pretext 'simsiam' has no preset 'small-folder-long'.*A,moco=B"):
        bench("tiny", str(folder), tmp_path, preset="small-folder-long")
    twice = "small-folder,moco=small-folder,moco=small-folder-gpu"
    for mistyped in ("moco=small-folder", "small-folder,small-folder-gpu", "", "small-folder,moco=", twice):
        with pytest.raises(BadRecipe, match="write PRESET for all pretexts"):
            bench("tiny", str(folder), tmp_path, preset=mistyped)
    with pytest.raises(BadRecipe, match="unknown pretext 'moca'.*moco"):
        bench("tiny", str(folder), tmp_path, preset="small-folder,moca=small-folder")
    with pytest.raises(BadRecipe, match="ks are .* at least 1"):
        bench("tiny", str(folder), tmp_path, ks=(0,))
    with pytest.raises(BadRecipe, match="unknown setting 'encoder_kimgs'; did you mean 'encoder_kimg'"):
        bench("tiny", str(folder), tmp_path, encoder_kimgs=1)
    with pytest.raises(BadArtifact):
        bench("tiny", str(folder), tmp_path, generator=folder)
    assert not tiny and not list(Path(tmp_path).iterdir())


def test_one_pretext_with_another_preset(folder, tmp_path):
    recipe = BenchRecipe(size=32, encoder_preset="small-folder-gpu, moco=small-folder-long")
    builder = MethodBuilder(open_dataset(str(folder), tmp_path), tmp_path, recipe)
    assert builder.encoder_recipe("simsiam") == SIMSIAM["small-folder-gpu"].changed(size=32)
    assert builder.encoder_recipe("moco") == MOCO["small-folder-long"].changed(size=32)


def test_tables_that_need_a_generator_raise_without_one(folder, tmp_path):
    builder = MethodBuilder(open_dataset(str(folder), tmp_path), tmp_path, BenchRecipe(size=32))
    for name in ("layers", "inversion", "gan-images"):
        with pytest.raises(BadRecipe, match="--generator"):
            TABLES[name].rows(builder)


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_every_table(name, folder, tmp_path):
    """Rows are built without training, and their names are unique."""
    builder = MethodBuilder(open_dataset(str(folder), tmp_path), tmp_path, BenchRecipe(size=32), generator=EMBEDDED)
    entries = TABLES[name].rows(builder)
    assert len({entry.name for entry in entries}) == len(entries) > 1
    for entry in entries:
        assert all(recipe.to_toml() for recipe in entry.recipes.values())


def test_test_images_are_not_among_the_unlabeled_images(folder, tmp_path):
    dataset = open_dataset(str(folder), tmp_path)
    assert dataset.pool.names == tuple(f"{i:05d}" for i in range(6)) and dataset.test.names == ("00006", "00007")
    assert len(dataset.images(32)) == 6
    assert dataset.splits == {1: {0: ("00002",), 1: ("00003",)}}


def test_the_name_of_a_journal_depends_on_everything_that_affects_its_rows(folder, tmp_path):
    """The same settings give the same journal, and other settings another one."""
    dataset, recipe = open_dataset(str(folder), tmp_path), BenchRecipe(size=32)
    entry = Entry("inverted", lambda shots: None, {"fit": FitHead(images=7)}, source="a generator")

    def place(entry=entry, recipe=recipe, dataset=dataset):
        return module._journal(tmp_path, entry, recipe, dataset).path

    more = shutil.copytree(folder, tmp_path / "more" / folder.name)
    shutil.copy(more / "images" / "00000.png", more / "images" / "plain.png")
    others = [
        place(entry._replace(source="another")),
        place(entry._replace(recipes={"fit": FitHead(images=8)})),
        place(entry._replace(test=shifted(dataset.test, 0.5))),
        place(recipe=recipe.changed(size=64)),
        place(dataset=open_dataset(str(more), tmp_path)),
    ]
    assert place() == place() and len({place(), *others}) == 6


def test_students_with_other_settings_have_another_folder(folder, tmp_path):
    dataset = open_dataset(str(folder), tmp_path)
    one, other = (MethodBuilder(dataset, tmp_path, BenchRecipe(size=size)) for size in (32, 64))
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
def test_invalid_splits_are_refused(tmp_path, split, reason):
    pack = write_toy("cars", 4, 32, tmp_path / "cars")
    (pack / "split.json").write_text(json.dumps(split))
    with pytest.raises(BadLabels, match=reason):
        open_dataset(str(pack), tmp_path)


def test_images_without_a_mask_are_unlabeled_images(tmp_path):
    pack = write_toy("cars", 9, 32, tmp_path / "cars")
    for i in (1, 2):
        (pack / "masks" / f"0000{i}.png").unlink()
    dataset = open_dataset(str(pack), tmp_path)
    assert len(dataset.pool) + len(dataset.test) == 7 and len(dataset.images(32)) == 9 - len(dataset.test)


def test_unlabeled_images_are_from_both_folders(tmp_path):
    """Without the test images; images of the labeled collection come first if there are too many."""
    pack = write_toy("cars", 8, 32, tmp_path / "cars")
    write_toy("horses", 20, 32, tmp_path / "others")
    (tmp_path / "others" / "images").rename(pack / "unlabeled")
    dataset = open_dataset(str(pack), tmp_path / "work")
    names = [path.name for path in list_images(dataset.unlabeled)]
    assert len([name for name in names if name.startswith("train-")]) == 8 - len(dataset.test) == len(dataset.near)
    assert not {f"train-{name}.png" for name in dataset.test.names} & set(names) and len(names) == 6 + 20
    assert np.array_equal(dataset.images(32)[0], dataset.pool.images[0]) and len(dataset.images(32)) == 26
    assert open_dataset(str(pack), tmp_path / "elsewhere").fingerprint == dataset.fingerprint
    # Another split leaves out other images, also in the same work folder.
    split = {"train": ["00000", "00001"], "val": ["00002", "00003"]}
    (pack / "split.json").write_text(json.dumps(split))
    names = [path.name for path in list_images(open_dataset(str(pack), tmp_path / "work").unlabeled)]
    assert len(names) == 6 + 20 and not {"train-00002.png", "train-00003.png"} & set(names)


def test_the_number_of_unlabeled_images_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("partshot.benchmark.datasets.MOST_IMAGES", 10)
    pack = write_toy("cars", 8, 32, tmp_path / "cars")
    write_toy("horses", 20, 32, tmp_path / "others")
    (tmp_path / "others" / "images").rename(pack / "unlabeled")
    images = open_dataset(str(pack), tmp_path / "work").images(32)
    others = load_shots(tmp_path / "others", pack / "unlabeled").images
    assert len(images) == 10 and np.array_equal(images[6:], np.stack(others[::5]))


def test_a_student_that_starts_from_a_pretrained_encoder(folder, tmp_path, monkeypatch):
    """Students with pretrained and with randomly initialized encoders are separate rows in separate folders."""
    tiny = BenchRecipe(size=32, ks=(1,), seeds=(0,), encoder_kimg=0.032, student_kimg=0.016)
    builder = MethodBuilder(open_dataset(str(folder), tmp_path), tmp_path, tiny, quiet=True)
    shots = builder.dataset.pool.sample(1, 0)
    monkeypatch.setattr(MethodBuilder, "student_size", 32)
    for pretext, links in ((None, ["student"]), ("moco", ["encoder", "student"])):
        entry = builder.initialized("unet-resnet18", pretext)
        assert [*entry.recipes] == links
        assert entry.fit(shots)(shots.images)[0].shape == (32, 32)
    kept = {path.name.rsplit("-", 2)[0] for path in (tmp_path / "students").glob("*/*")}
    assert kept == {"unet-resnet18-random", "unet-resnet18-moco"}


def test_a_dataset_without_a_split(folder, tmp_path):
    pack = write_toy("cars", 9, 32, tmp_path / "cars")
    dataset = open_dataset(str(pack), tmp_path)
    assert dataset.test.names == ("00000", "00004", "00008") and len(dataset.pool) == 6 and dataset.splits is None
    few = write_toy("cars", 3, 32, tmp_path / "few")
    with pytest.raises(BadLabels, match="at least 4"):
        open_dataset(str(few), tmp_path)
    (pack / "split.json").write_text('{"train": ["00001"], "val": ["0007"]}')
    with pytest.raises(BadLabels, match="'0007'"):
        open_dataset(str(pack), tmp_path)


def test_shifted(folder):
    shots = load_shots(folder, names=["00000"])
    moved = shifted(shots, 0.25)
    assert np.array_equal(moved.images[0][:, :24], shots.images[0][:, 8:])
    assert np.array_equal(moved.labels[0][:, :24], shots.labels[0][:, 8:])
    assert (moved.labels[0][:, 24:] == 255).all() and (moved.images[0][:, 24:] == shots.images[0][:, -1:]).all()
    assert shifted(shots, 0.0).fingerprint == shots.fingerprint
