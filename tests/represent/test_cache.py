"""The feature cache: bit-identical features, a size limit, several processes, and no errors from the disk."""

import dataclasses
import multiprocessing
import os
import shutil
import sys
import warnings
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from partshot import laws
from partshot.data.augment import PRESETS as AUGMENTS
from partshot.heads.linear import Linear
from partshot.nets.stylegan2 import Discriminator, Generator, Shape
from partshot.represent import cache
from partshot.represent.cache import VARIABLE, Cached, Store, cache_folder, open_store
from partshot.represent.choose import cached, open_representation, rebuild, tensors_of
from partshot.represent.invert import InvertRecipe
from partshot.represent.pixels import Pixels
from partshot.represent.position import Positioned
from partshot.represent.resnet import random_resnet
from partshot.represent.stylegan import StyleGAN
from partshot.segmenter import Segmenter
from partshot.toy.dataset import toy_shots
from partshot.train.fit_head import FitHead, cross_validate, fit_head


@pytest.fixture(scope="module")
def encoder():
    return random_resnet()


def some_images(count=3, size=32, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def same(a, b):
    return a.image_size == b.image_size and all(torch.equal(x, y) for x, y in zip(a.maps, b.maps, strict=True))


def test_features_are_bit_identical_computed_or_cached_and_in_any_batch(encoder, tmp_path):
    given, store = some_images(), Store(tmp_path / "one")
    fresh = Cached(encoder, store).features(given)
    assert (store.found, store.extracted) == (0, 3)
    for i, image in enumerate(given.split(1)):
        maps = encoder.features(image).maps
        assert all(torch.equal(m.half().float(), kept[i : i + 1]) for m, kept in zip(maps, fresh.maps, strict=True))

    assert same(Cached(encoder, store).features(given), fresh)
    assert (store.found, store.extracted) == (3, 3)
    # Some of them cached, and in another order.
    other = Store(tmp_path / "two")
    Cached(encoder, other).features(given[1:2])
    assert same(Cached(encoder, other).features(given.flip(0)), fresh[torch.tensor([2, 1, 0])])
    assert (other.found, other.extracted) == (1, 3)
    assert str(other) == "1 from cache, 3 extracted"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_cached_representation_fulfills_the_contract(encoder, tmp_path, wrapped):
    cached_encoder = cached(Positioned(encoder) if wrapped else encoder, Store(tmp_path))
    assert laws.representation_laws(cached_encoder, some_images(2, 64)) == []


def test_different_features_have_different_keys(encoder, tmp_path):
    store, given = Store(tmp_path), some_images(1)
    cached_encoder = Cached(encoder, store)
    plain = cached_encoder.features(given)
    with torch.autocast("cpu", torch.bfloat16):
        rough = cached_encoder.features(given)
    assert store.extracted == 2 and not same(plain, rough)
    cached_encoder.features(given[:, :, :16])
    Cached(random_resnet(seed=1), store).features(given)
    assert (store.found, store.extracted) == (0, 4)


def test_a_generator_caches_latents_per_inversion_recipe(tmp_path):
    torch.manual_seed(0)
    shape = Shape(resolution=16, z_dim=8, w_dim=8, mapping_layers=1, channel_base=64, channel_max=8)
    nets = Generator(shape), Discriminator(shape)
    few, more = (StyleGAN(*nets, recipe=InvertRecipe(steps=steps)) for steps in (2, 3))
    given, store = some_images(2, 16), Store(tmp_path)
    assert cached(few, store) is few
    first = few.features(given)
    again = cached(StyleGAN(*nets, recipe=InvertRecipe(steps=2)), store).features(given.flip(0))
    assert (store.found, store.extracted) == (2, 2)
    torch.testing.assert_close(again.maps[0].flip(0), first.maps[0])
    cached(more, store).features(given)
    assert (store.found, store.extracted) == (2, 4)


def test_values_beyond_float16_are_stored_in_float32(tmp_path):
    class Large(Pixels):
        def features(self, images):
            found = super().features(images)
            return type(found)(tuple(m * 1e6 for m in found.maps), found.image_size)

    given, store = some_images(), Store(tmp_path)
    for _ in range(2):
        assert same(Cached(Large(), store).features(given), Large().features(given))
    assert (store.found, store.extracted) == (3, 3)


def test_only_representations_with_weights_are_cached(encoder, tmp_path):
    store = Store(tmp_path)
    pixels = open_representation("pixels+position")
    assert cached(pixels, store) is pixels and cached(encoder, None) is encoder
    positioned = cached(Positioned(encoder), store)
    assert isinstance(positioned, Positioned) and isinstance(positioned.representation, Cached)


def test_a_saved_model_does_not_include_the_store(encoder, tmp_path):
    plain, cached_encoder = Positioned(encoder), cached(Positioned(encoder), Store(tmp_path / "store"))
    assert cached_encoder.spec == plain.spec
    assert same(
        rebuild(cached_encoder.card(), tensors_of(cached_encoder)).features(some_images()),
        plain.features(some_images()),
    )
    shots = toy_shots("faces", 32, 2)
    fitted = Segmenter(cached_encoder, shots.parts, "linear", 32, FitHead(epochs=1)).fit(shots, quiet=True)
    loaded = Segmenter.load(fitted.save(tmp_path / "saved"))
    assert not any(isinstance(module, Cached) for module in loaded.representation.modules())
    assert loaded.fitted == loaded.fingerprint(shots)
    near = zip(fitted.predict(shots.images), loaded.predict(shots.images), strict=True)
    assert all(np.abs(a.probabilities - b.probabilities).max() < 1e-3 for a, b in near)


def test_features_are_computed_once_for_other_labels_and_more_shots(encoder, tmp_path):
    recipe = FitHead(images=24, batch=4, standardize=True, augment=AUGMENTS["strong"])
    shots = toy_shots("faces", 32, 3)
    store = Store(tmp_path)
    cached_encoder = Cached(encoder, store)

    def fit(some):
        before = store.extracted
        head = fit_head(
            Linear(cached_encoder.spec.channels, len(shots.parts)), cached_encoder, some, recipe, 32, quiet=True
        )
        return store.extracted - before, torch.cat([p.flatten() for p in head.parameters()])

    two = shots.subset([0, 1])
    assert fit(two)[0] == 2 + 24
    changed = tuple(np.where(mask == 1, 2, mask).astype(np.uint8) for mask in two.labels)
    extracted, weights = fit(dataclasses.replace(two, labels=changed))
    assert extracted == 0
    assert not torch.equal(weights, fit(two)[1])
    # A third shot: eight views of each of the first two shots are cached already.
    assert fit(shots)[0] == 1 + 8
    # Leave-one-out uses up to twelve views of each other shot.
    before = store.extracted
    cross_validate(
        lambda some: Segmenter(cached_encoder, shots.parts, "linear", 32, recipe).fit(some, quiet=True), shots
    )
    assert store.extracted - before <= 12 - 8 + 3


# --- the store ---


def array(key: int) -> np.ndarray:
    """1,000 bytes determined by the key."""
    return np.random.default_rng(key).integers(0, 1000, 500).astype(np.float16)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def put(store: Store, *keys: int) -> None:
    for key in keys:
        store.put(str(key), [array(key)])


def kept(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir()}


def set_old(folder: Path, keys: str) -> None:
    """Sets the times of last use to long ago, in this order."""
    for second, key in enumerate(keys):
        os.utime(folder / f"{key}.safetensors", (second, second))


@pytest.fixture
def one(tmp_path) -> int:
    """Size of one entry in bytes."""
    put(Store(tmp_path / "one"), 1)
    return size_of(tmp_path / "one")


def test_least_recently_used_entries_are_evicted(tmp_path, one):
    folder = tmp_path / "store"
    put(Store(folder, 4 * one), 1, 2, 3, 4)
    set_old(folder, "1234")
    later = Store(folder, 4 * one)
    assert np.array_equal(later.get("1")[0], array(1))
    put(later, 5)
    assert kept(folder) == set("1345")
    put(later, 6, 7)
    assert kept(folder) == set("1567") and size_of(folder) <= 4 * one
    # All remaining entries were used by this store, so none is evicted for 8.
    put(later, 8)
    assert kept(folder) == set("1567") and later.extracted == 4
    put(Store(folder, 4 * one), 8)
    assert "8" in kept(folder) and size_of(folder) <= 4 * one


def test_an_entry_above_the_limit_is_not_stored(tmp_path):
    put(Store(tmp_path / "store", 500), 1)
    assert kept(tmp_path / "store") == set()


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "foreign"])
def test_a_damaged_file_is_computed_and_stored_again(encoder, tmp_path, damage):
    given = some_images(1)
    fresh = Cached(encoder, Store(tmp_path)).features(given)
    (path,) = tmp_path.iterdir()
    blob = bytearray(path.read_bytes())
    if damage == "flipped":
        blob[len(blob) // 2] ^= 1
    path.write_bytes({"cut": blob[: len(blob) // 2], "empty": b"", "flipped": blob, "foreign": b"x" * 99}[damage])
    for counts in ((0, 1), (1, 0)):
        store = Store(tmp_path)
        assert same(Cached(encoder, store).features(given), fresh)
        assert (store.found, store.extracted) == counts


def test_an_unwritable_folder_gives_one_warning(encoder, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    cached_encoder = Cached(encoder, Store(tmp_path / "file" / "store"))
    with pytest.warns(UserWarning, match=f"are not cached .*{VARIABLE}"):
        fresh = cached_encoder.features(some_images(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(cached_encoder.features(some_images(1)), fresh)
        cached_encoder.features(some_images(1, seed=1))
    assert (cached_encoder.store.found, cached_encoder.store.extracted) == (0, 3)


def test_a_full_disk_gives_one_warning_and_is_not_filled_further(tmp_path, monkeypatch):
    free = namedtuple("usage", "free")(1000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: free)
    store = Store(tmp_path)
    with pytest.warns(UserWarning, match="nearly full"):
        put(store, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        put(store, 2)
    assert kept(tmp_path) == set() and store.extracted == 2


def test_a_deleted_folder_is_created_again(tmp_path):
    store = Store(tmp_path / "store")
    put(store, 1)
    shutil.rmtree(tmp_path / "store")
    assert store.get("1") is None
    put(store, 1)
    assert np.array_equal(store.get("1")[0], array(1))


def hammer(folder: Path, limit: int, seed: int, wrong) -> None:
    """Reads and writes entries that another process reads, writes and evicts."""
    warnings.simplefilter("error")
    rng = np.random.default_rng(seed)
    for _ in range(40):
        store = Store(folder, limit)
        for key in rng.integers(0, 16, 10):
            found = store.get(str(key))
            if found is None:
                put(store, key)
            elif not np.array_equal(found[0], array(key)):
                wrong.value += 1
    wrong.value += 1000 * (store.found + store.extracted != 10)


def test_two_processes_share_a_small_store(tmp_path, one):
    spawn, limit = multiprocessing.get_context("spawn"), 8 * one
    wrong = [spawn.Value("i", 0) for _ in range(2)]
    both = [spawn.Process(target=hammer, args=(tmp_path / "store", limit, i, wrong[i])) for i in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert [value.value for value in wrong] == [0, 0]
    # Each process may exceed the limit by one share; no partial files are left.
    assert size_of(tmp_path / "store") <= limit + 2 * one
    assert all(np.array_equal(Store(tmp_path / "store").get(k)[0], array(int(k))) for k in kept(tmp_path / "store"))


# --- the cache folder ---


def test_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert open_store().folder == tmp_path / "mine" / "features" and open_store(False) is None
    monkeypatch.setenv(VARIABLE, "")
    assert cache_folder() is None and open_store() is None
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "partshot"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "partshot"
