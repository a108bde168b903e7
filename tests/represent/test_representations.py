"""Properties of individual representations; the checks that apply to all of them are in tests/contract."""

import numpy as np
import pytest
import torch

from partshot.artifact import Artifact
from partshot.errors import BadArtifact, BadImage, BadRecipe
from partshot.nets.resnet import CHANNELS, ResNetTrunk
from partshot.represent.choose import open_representation, rebuild, tensors_of
from partshot.represent.concatenated import Several
from partshot.represent.levels import Levels
from partshot.represent.pixels import Pixels
from partshot.represent.position import Positioned, position_map
from partshot.represent.reduced import sample_points
from partshot.represent.resnet import ResNet, load_resnet, random_resnet


def some_images(n=2, height=32, width=48, seed=0):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def save_trunk(folder, net="resnet18", **changes):
    tensors = {k: v.numpy() for k, v in ResNetTrunk(net).state_dict().items()}
    return Artifact("representation", {"net": net, **changes}, tensors).save(folder)


def test_the_stem_has_stride_1():
    trunk = ResNetTrunk("resnet18")
    assert trunk.conv1.stride == (2, 2)
    levels = ResNet(trunk, "trained").features(some_images(1, 64, 64)).maps
    assert [m.shape[2] for m in levels] == [32, 16, 8, 4]


def test_the_channels_of_the_four_stages_are_those_published():
    assert random_resnet("resnet50").spec.channels == (256, 512, 1024, 2048)
    assert sum(CHANNELS["resnet50"]) == 3840


def test_running_statistics_and_mode_do_not_change():
    representation = random_resnet()
    before = representation.trunk.bn1.running_mean.clone()
    representation.train()
    representation.features(some_images())
    assert not representation.training and not representation.trunk.bn1.training
    assert torch.equal(representation.trunk.bn1.running_mean, before)


def test_random_initialization_depends_only_on_the_seed():
    torch.manual_seed(1)
    first = random_resnet()
    torch.manual_seed(2)
    assert first.spec.fingerprint == random_resnet().spec.fingerprint
    assert first.spec.fingerprint != random_resnet(seed=1).spec.fingerprint


def test_calibration_normalizes_the_features_of_the_given_images():
    dark = some_images(4, 32, 32) * 0.05 - 0.9
    representation = random_resnet()
    seen = []
    for _ in range(2):
        x = representation.trunk.bn1(representation.trunk.conv1(representation._prepared(dark)))
        seen.append(float((x.mean(dim=(0, 2, 3)).abs()).max()))
        before = representation.spec.fingerprint
        representation.calibrate(dark)
    assert seen[0] > 0.5 and seen[1] < 1e-3
    # Calibrating on the same images again changes nothing, so the fingerprint stays the same.
    assert representation.spec.fingerprint == before


def test_normalization_is_imagenets():
    gray = torch.zeros(1, 3, 16, 16)
    expected = (0.5 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(random_resnet()._prepared(gray)[0, :, 0, 0], expected)


def test_small_images_are_rejected_with_instructions():
    with pytest.raises(BadImage, match="use a size of 32 or more"):
        random_resnet().features(some_images(1, 8, 40))


def test_a_trained_resnet_is_loaded_from_its_artifact(tmp_path):
    folder = save_trunk(tmp_path / "trained", title="simsiam")
    representation = load_resnet(folder)
    assert representation.spec.name == "simsiam"
    expected = Artifact.load(folder).tensors["layer4.0.conv1.weight"]
    assert np.array_equal(representation.trunk.layer4[0].conv1.weight.numpy(), expected)


def test_a_reduced_resnet_gives_the_principal_components_of_each_stage(tmp_path):
    whole = load_resnet(save_trunk(tmp_path / "trained"))
    images = some_images(6, 32, 32)
    found = ResNet(whole.trunk, "trained", 5).fit_components(images)
    assert found.spec.channels == (5, 5, 5, 5) and found.spec.strides == whole.spec.strides
    assert found.spec.fingerprint != whole.spec.fingerprint
    for level, reduced in zip(whole.features(images).maps, found.features(images).maps, strict=True):
        points = level.permute(0, 2, 3, 1).flatten(0, 2).double()
        deviation = points.std(0, correction=0)
        points = (points - points.mean(0)) / deviation.clamp(min=float(deviation.max()) / 100)
        u, s, _ = torch.linalg.svd(points, full_matrices=False)
        expected = u[:, :5] * s[:5] / s[0] * len(points) ** 0.5
        given = reduced.permute(0, 2, 3, 1).flatten(0, 2).double()
        # The sign of a component is arbitrary.
        signs = (given * expected).sum(0).sign()
        torch.testing.assert_close(given, expected * signs, atol=1e-3, rtol=1e-3)


def test_shared_scale_follows_its_maps_through_wrappers(tmp_path):
    whole = load_resnet(save_trunk(tmp_path / "trained"))
    found = ResNet(whole.trunk, "trained", 3).fit_components(some_images(2, 32, 32))
    assert whole.spec.shared_scale == (False,) * 4 and found.spec.shared_scale == (True,) * 4
    assert Positioned(found).spec.shared_scale == (False, True, True, True, True)
    assert Levels(found, 4, 8).spec.shared_scale == (True, True)
    # Pixels have strides 1 to 16; at equal strides the encoder's map comes first.
    both = Several([found, Pixels()]).spec
    assert both.strides == (1, 2, 2, 4, 4, 8, 8, 16, 16)
    assert both.shared_scale == (False, *(True, False) * 4)


def test_a_reduced_resnet_is_saved_and_loaded(tmp_path):
    trunk = load_resnet(save_trunk(tmp_path / "trained")).trunk
    found = ResNet(trunk, "moco", 3).fit_components(some_images(2, 32, 32))
    tensors = {name.removeprefix("trunk."): tensor.numpy() for name, tensor in found.state_dict().items()}
    card = {"net": "resnet18", "title": "moco", "components": 3}
    read = load_resnet(Artifact("representation", card, tensors).save(tmp_path / "reduced"))
    again = rebuild(read.card(), tensors_of(read))
    expected = found.features(some_images(1, 32, 32)).maps
    for other in (read, again):
        assert other.spec == found.spec
        for a, b in zip(other.features(some_images(1, 32, 32)).maps, expected, strict=True):
            assert torch.equal(a, b)
    with pytest.raises(BadArtifact, match=r"condensed\.[0-3]\.basis"):
        load_resnet(Artifact("representation", {**card, "components": 4}, tensors).save(tmp_path / "other"))


def test_a_trained_resnet_is_opened_by_its_output_folder(tmp_path):
    save_trunk(tmp_path / "encoder" / "representation")
    found = open_representation(f"{tmp_path / 'encoder'}[4-8]+position")
    assert found.spec.strides == (4, 4, 8)
    assert open_representation(f"{tmp_path / 'encoder'},pixels").spec.strides == (1, 2, 2, 4, 4, 8, 8, 16, 16)


def test_sampled_points_cover_the_whole_map():
    level = torch.arange(128 * 128.0).view(1, 1, 128, 128)
    points = sample_points(level)[:, 0].long()
    assert 900 < len(points) < 1200
    assert len(set((points % 128).tolist())) == 128 and len(set((points // 128).tolist())) == 128
    assert len(sample_points(level[:, :, :8, :8])) == 64
    narrow = sample_points(torch.arange(48 * 48.0).view(1, 1, 48, 48))[:, 0].long()
    assert len(set((narrow % 48).tolist())) == 48


def test_weights_of_another_net_are_rejected(tmp_path):
    save_trunk(tmp_path / "a", net="resnet18")
    tensors = dict(Artifact.load(tmp_path / "a").tensors)
    with pytest.raises(BadArtifact, match="weights of another net"):
        load_resnet(Artifact("representation", {"net": "resnet50"}, tensors).save(tmp_path / "b"))
    with pytest.raises(BadArtifact, match="has the net 'None'"):
        load_resnet(Artifact("representation", {}, tensors).save(tmp_path / "c"))
    tensors["conv1.weight"] = np.zeros((64, 3, 3, 3), np.float32)
    with pytest.raises(BadArtifact, match="conv1.weight"):
        load_resnet(Artifact("representation", {"net": "resnet18"}, tensors).save(tmp_path / "d"))


def test_pixels_are_the_image_and_its_block_means():
    images = some_images(1, 16, 16)
    maps = Pixels().features(images).maps
    assert torch.equal(maps[0], images)
    torch.testing.assert_close(maps[2][0, :, 1, 2], images[0, :, 4:8, 8:12].mean(dim=(1, 2)))
    torch.testing.assert_close(maps[4][0, :, 0, 0], images[0].mean(dim=(1, 2)))


def test_position_is_antisymmetric_under_flips():
    positions = position_map(6, 8)[0]
    assert torch.equal(positions[0].flip(1), -positions[0])
    assert torch.equal(positions[2].flip(1), positions[2])
    torch.testing.assert_close(positions[4], positions[0] * positions[1])
    # The short side has a smaller range: 6 pixels of 8.
    assert float(positions[1, 0, 0]) == pytest.approx((-1 + 1 / 6) * 6 / 8)


def test_the_position_map_has_the_finest_size():
    plain, positioned = random_resnet(), Positioned(random_resnet())
    maps = positioned.features(some_images()).maps
    assert positioned.spec.channels == (5, *plain.spec.channels)
    assert maps[0].shape[2:] == maps[1].shape[2:]
    assert positioned.spec.fingerprint != plain.spec.fingerprint


@pytest.mark.parametrize("name", ["pixels", "random+position", "resnet"])
def test_saved_and_rebuilt_features_are_bit_equal(name, tmp_path):
    first = open_representation(name, save_trunk(tmp_path / "trained") if name == "resnet" else None)
    second = rebuild(first.card(), tensors_of(first))
    assert second.spec == first.spec
    for a, b in zip(first.features(some_images()).maps, second.features(some_images()).maps, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pixel", "did you mean 'pixels'"),
        ("resnet", "must be trained first: run partshot pretrain"),
        ("timm", "write timm:NAME"),
        ("pixels:3", "takes no '3'"),
        ("random:resnet19", "did you mean 'resnet18'"),
        ("timm:vit_tinny_patch16_224", "has no model"),
    ],
)
def test_unknown_names_are_rejected(name, message):
    with pytest.raises(BadRecipe, match=message):
        open_representation(name)


def test_an_unknown_kind_of_card_is_rejected():
    with pytest.raises(BadArtifact, match="unknown to this version; upgrade"):
        rebuild({"kind": "ddpm"}, {})


def test_several_representations_are_concatenated():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    both = open_representation("random,pixels")
    maps, color = (open_representation(name).features(images).maps for name in ("random", "pixels"))
    # Finest first: pixels at stride 1, then both at 2, 4, 8 and 16, in the order of the names.
    expected = [color[0], *(level for pair in zip(maps, color[1:], strict=True) for level in pair)]
    assert both.spec.strides == (1, 2, 2, 4, 4, 8, 8, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(both.features(images).maps, expected, strict=True))
    assert both.spec.fingerprint != open_representation("pixels,random").spec.fingerprint


def test_levels_are_selected_by_stride():
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    some, whole = open_representation("random[4-8]+position"), open_representation("random")
    assert some.spec.strides == (4, 4, 8) and some.spec.channels == (5, 128, 256)[:1] + whole.spec.channels[1:3]
    kept = some.features(images).maps[1:]
    assert all(torch.equal(a, b) for a, b in zip(kept, whole.features(images).maps[1:3], strict=True))
    assert some.spec.fingerprint != open_representation("random[4-16]+position").spec.fingerprint


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("random[32-64]", "no maps of strides 32-64; its strides are"),
        ("random[4]", r"\[LOW-HIGH\]"),
        ("random[4-8", r"\[LOW-HIGH\]"),
        ("random,", "unknown representation ''"),
        ("random,pixels+position,random", "after a \\+ only 'position' is allowed"),
        ("random+positon", "after a \\+ only 'position' is allowed, as in random\\+position"),
        ("moco", "run partshot pretrain moco"),
        ("stylegan2[8-16]", "a generator cannot be combined"),
        ("stylegan2,pixels+position", "a generator cannot be combined"),
        ("stylegan2+position", "its features encode position"),
    ],
)
def test_invalid_names_are_rejected(name, reason):
    with pytest.raises(BadRecipe, match=reason):
        open_representation(name)


def test_names_take_precedence_over_folders(tmp_path, monkeypatch):
    (tmp_path / "random").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_representation("random+position").spec.channels[0] == 5


def test_members_of_several_are_checked():
    some = open_representation("random[4-8]")
    with pytest.raises(BadRecipe, match="members of several must not be wrapped"):
        Several([some, Pixels()])
    with pytest.raises(BadRecipe, match="1 representations to concatenate"):
        Several([Pixels()])
