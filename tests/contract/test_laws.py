"""The contract checks, for everything in the catalog; and each check detects a violation."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partshot import laws
from partshot.artifact import Artifact
from partshot.catalog import HEADS, REPRESENTATIONS, lookup
from partshot.data.augment import PRESETS as AUGMENTS
from partshot.data.shots import Shots
from partshot.heads.cnn import Cnn
from partshot.heads.linear import Linear
from partshot.nets import stylegan1, stylegan2
from partshot.nets.resnet import ResNetTrunk
from partshot.nets.stylegan import Shape
from partshot.ops.hypercolumn import project, stack
from partshot.ops.images import as_tensors
from partshot.parts import PartSet
from partshot.pyramid import Pyramid
from partshot.represent.choose import open_representation, rebuild, reduced_on, tensors_of
from partshot.represent.encoders import is_available
from partshot.represent.invert import InvertRecipe
from partshot.represent.pixels import Pixels
from partshot.represent.position import Positioned
from partshot.represent.stylegan import StyleGAN, load_stylegan
from partshot.train.fit_head import FitHead, class_weights, fit_head, pixel_loss

# The catalog's names, and combinations of them.
NAMES = [*REPRESENTATIONS, "random+position", "pixels,random", "random[4-8]+position", "reduced", "stylegan2, reduced"]
# Small examples for the names that need an argument.
FULL_NAMES = {"timm": "timm:resnet10t", "encoder": "efficientnet-lite0"}
SIZE = 32


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A function name -> representation, which opens each once."""
    folder = tmp_path_factory.mktemp("trained")
    tensors = {k: v.numpy() for k, v in ResNetTrunk("resnet18").state_dict().items()}
    Artifact("representation", {"net": "resnet18"}, tensors).save(folder / "resnet")
    nets = {"stylegan1": stylegan1.Generator, "stylegan2": stylegan2.Generator}
    found = {name: small_generator(folder / name, net) for name, net in nets.items()}
    found["reduced"] = reduced_on(open_representation("random[4-8]+position"), some_images())
    found["stylegan2, reduced"] = reduced_on(found["stylegan2"], some_images(), 4)

    def get(name):
        if name == "encoder" and not is_available(FULL_NAMES[name]):
            pytest.skip("the extra [pretrained] is missing")
        if name not in found:
            place = folder / "resnet" if name.startswith("resnet") else None
            found[name] = open_representation(FULL_NAMES.get(name, name), place)
        return found[name]

    return get


def small_generator(folder, net):
    """A small generator, with few inversion steps, since rounding errors grow with each step."""
    torch.manual_seed(0)
    shape = Shape(resolution=SIZE, z_dim=8, w_dim=8, mapping_layers=2, channel_base=128, channel_max=8)
    generator = net(shape)
    if net is stylegan1.Generator:
        # The constant is uniform before training, and normalizing a uniform map amplifies rounding errors.
        nn.init.normal_(generator.synthesis.blocks["4x4"].const)
    made = StyleGAN(generator, stylegan2.Discriminator(shape))
    card = {"title": made.kind, "pretext": made.kind, "shape": shape.model_dump(mode="json")}
    Artifact("representation", card, tensors_of(made)).save(folder)
    return load_stylegan(folder, recipe=InvertRecipe(steps=3))


def images_for(name):
    """Test images; a generator's maps have its own size, whatever the size of the images."""
    return some_images(height=SIZE) if name.startswith("stylegan") else some_images()


def some_images(count=2, height=64, width=SIZE):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def make_pyramid(batch=2):
    rng = torch.Generator().manual_seed(0)
    shapes = ((3, 32, 40), (4, 16, 20), (5, 16, 20), (6, 4, 5))
    return Pyramid(tuple(torch.randn(batch, c, h, w, generator=rng) for c, h, w in shapes), (32, 40))


@pytest.mark.parametrize("name", NAMES)
def test_representations(name, opened):
    assert laws.representation_laws(opened(name), images_for(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_representations_are_identical_after_reloading(name, opened, tmp_path):
    first = opened(name)
    folder = Artifact("representation", first.card(), tensors_of(first)).save(tmp_path / "saved")
    # The artifact's card has its own "kind", so the representation's card is passed separately.
    second = rebuild(first.card(), Artifact.load(folder).tensors)
    assert second.spec == first.spec
    given = images_for(name)
    pairs = zip(first.features(given).maps, second.features(given).maps, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", HEADS)
def test_heads(name):
    torch.manual_seed(0)
    assert laws.head_laws(lookup(HEADS, name, "head"), make_pyramid(), classes=6) == []


@pytest.mark.parametrize("name", NAMES)
def test_lazy_equals_materialized(name, opened):
    pyramid = opened(name).features(some_images())
    scale = max(float(m.abs().max()) for m in pyramid.maps)
    unit = Pyramid(tuple(m / scale for m in pyramid.maps), pyramid.image_size)
    assert laws.lazy_equals_materialized(project, stack, unit) == []


def test_ignored_pixels():
    weights = class_weights(torch.arange(5).view(1, 1, 5), 5, 0.4)
    assert laws.ignored_pixels_have_no_effect(lambda z, y: pixel_loss(z, y, weights), 5) == []


PARTS = PartSet.of("background", "left eye", "right eye", "nose")
RECIPE = FitHead(epochs=50, batch=4, lr=0.03, standardize=True, augment=AUGMENTS["weak"].changed(scale=1, rotation=0))


def faces(count=3, size=SIZE):
    """Gray images with two white eyes and a red nose; left and right eyes differ only in position."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    images, labels = [], []
    for _ in range(count):
        mask = np.zeros((size, size), np.uint8)
        for part, cx, cy in ((1, 9, 10), (2, 22, 10), (3, 16, 20)):
            at_x, at_y = cx + rng.integers(-3, 4), cy + rng.integers(-3, 4)
            mask[(x - at_x) ** 2 + (y - at_y) ** 2 < 14] = part
        color = np.array([[90, 90, 90], [240, 240, 240], [240, 240, 240], [220, 40, 40]])[mask]
        images.append(np.clip(color + rng.normal(0, 6, color.shape), 0, 255).astype(np.uint8))
        labels.append(mask)
    return Shots(tuple(images), tuple(labels), tuple(f"face-{i}" for i in range(count)), PARTS)


def fitting(head):
    """A function shots -> Predictor that always uses the same head object."""
    representation = Positioned(Pixels())

    def fit(shots):
        fit_head(head, representation, shots, RECIPE, SIZE)
        return predictor(head, representation)

    return fit


def predictor(head, representation):
    def predict(images):
        with torch.no_grad():
            return list(head(representation.features(as_tensors(np.stack(images)))).numpy())

    return predict


def make_head():
    return Cnn(Positioned(Pixels()).spec.channels, len(PARTS), (1, 1), (16, 16))


def test_fitting():
    shots = faces()
    assert laws.fit_laws(fitting(make_head()), shots, shots.images) == []


def test_flip_equivariance():
    shots = faces()
    predict = fitting(make_head())(shots)
    found = np.mean([(s.argmax(0) == t).mean() for s, t in zip(predict(shots.images), shots.labels, strict=True)])
    assert found > 0.95
    assert laws.flip_equivariance(predict, shots.images, PARTS, agreement=0.95) == []


def test_heads_are_identical_after_reloading(tmp_path):
    shots, head, again = faces(), make_head(), make_head()
    predict = fitting(head)(shots)
    folder = Artifact("head", {}, {k: v.numpy() for k, v in head.state_dict().items()}).save(tmp_path / "head")
    again.load_state_dict({k: torch.from_numpy(v) for k, v in Artifact.load(folder).tensors.items()})
    again.eval()
    assert laws.reload_is_identical(predict, predictor(again, Positioned(Pixels())), shots.images) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second kind of device")
@pytest.mark.parametrize("name", ["cnn-l", "mlp-2", "conv"])
def test_devices_agree(name):
    head = lookup(HEADS, name, "head")(make_pyramid().channels, 6).eval()

    def call(device):
        with torch.no_grad():
            return [head.to(device)(make_pyramid().to(device))]

    # TF32, cuDNN's default for convolutions, has a mantissa of ten bits.
    assert laws.devices_agree(call, "cpu", "cuda", tolerance=5e-3) == []


# --- each check detects a violation ---


class Broken(Pixels):
    """Pixels with one violation of the contract."""

    def __init__(self, how):
        super().__init__()
        self.how, self.calls = how, 0
        self.weight = nn.Parameter(torch.ones(1), requires_grad=how == "thawed")
        self.register_buffer("seen", torch.zeros(1))
        if how == "wrong spec":
            self.spec = dataclasses.replace(self.spec, strides=(1, 2, 4, 8, 32))

    def features(self, images):
        pyramid = super().features(images)
        self.calls += 1
        if self.how == "counts":
            self.seen += 1
        factor = {
            "noise": lambda: 1 + self.calls * 1e-3,
            "batch": lambda: images.mean(),
            "gradient": lambda: images.sum() * 1e-9 + 1,
            "in place": lambda: images.mul_(0.5).mean(),
        }.get(self.how, lambda: 1)()
        return Pyramid(tuple(m * factor for m in pyramid.maps), pyramid.image_size)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("noise", "differs between two calls"),
        ("batch", "of a batch differs"),
        ("gradient", "requires a gradient"),
        ("thawed", "is not frozen"),
        ("counts", "features() changed 'seen'"),
        ("wrong spec", "the spec gives"),
        ("in place", "features() changed the images"),
    ],
)
def test_broken_representations_are_detected(how, message):
    assert any(message in line for line in laws.representation_laws(Broken(how), some_images()))


def test_broken_heads_are_detected():
    class Smoothing(Linear):
        """Declares a reach of 0 but uses a neighborhood of 3 x 3 pixels."""

        def forward(self, pyramid):
            return F.avg_pool2d(super().forward(pyramid), 3, 1, 1)

    class Mixing(Linear):
        def forward(self, pyramid):
            x = super().forward(pyramid)
            return x - x.mean()

    class Short(Linear):
        def forward(self, pyramid):
            return super().forward(pyramid)[:, :-1]

    for kind, message in ((Smoothing, "more than 0 px away"), (Mixing, "of a batch"), (Short, "expected")):
        assert any(message in line for line in laws.head_laws(kind, make_pyramid(), 4)), kind


def test_broken_losses_are_detected():
    broken = laws.ignored_pixels_have_no_effect(lambda z, y: F.cross_entropy(z, y.clamp(max=3)), 4)
    assert any("gradient" in line for line in broken) and any("the loss is" in line for line in broken)


def test_broken_fits_are_detected():
    shots, calls = faces(1), []

    def unlike(_shots):
        calls.append(1)
        return lambda images: [np.full((4, SIZE, SIZE), len(calls), np.float32) for _ in images]

    def by_name(shots):
        return lambda images: [np.full((4, SIZE, SIZE), len(shots.parts.names[1]), np.float32) for _ in images]

    def by_labels(shots):
        return lambda images: [np.zeros((int(shots.labels[0][shots.labels[0] < 255].max()) + 1, SIZE, SIZE))]

    for fit, message in ((unlike, "fitting again"), (by_name, "renaming"), (by_labels, "there are {3} outputs")):
        assert any(message in line for line in laws.fit_laws(fit, shots, shots.images)), message
    left = np.zeros((4, SIZE, SIZE), np.float32)
    left[1, :, :16] = 1
    assert laws.flip_equivariance(lambda images: [left for _ in images], shots.images, PARTS)
    assert laws.reload_is_identical(unlike(shots), lambda images: [left for _ in images], shots.images)
    assert laws.lazy_equals_materialized(lambda p, w: project(p, w) + 1e-3, stack, make_pyramid())
    assert laws.devices_agree(lambda device: [torch.full((2,), float(len(str(device))))], "cpu", "meta") == [
        "output 0: cpu and meta differ by 0.33"
    ]
