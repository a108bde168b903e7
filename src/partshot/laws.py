"""Laws of representations, heads and fitted segmenters, as functions that anyone can run on their own.

Every law takes the thing itself or a plain function and returns the violations it found, one line each; an empty list
means that the law holds for what was tried. Knows what is promised; refuses to know who promises it, so that code from
outside is held to the same laws as partshot's own.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from partshot.parts import IGNORE, PartSet
from partshot.pyramid import Pyramid

# How far float32 results may lie apart when the order of additions differs: relative to the largest value.
TOLERANCE = 1e-4

Predictor = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""Images uint8 [h, w, 3] -> one array of scores or probabilities [classes, h, w] each."""


def representation_laws(representation, images: torch.Tensor, tolerance: float = TOLERANCE) -> list[str]:
    """All laws of a representation. images: two or more images [b, 3, h, w] in [-1, 1], sides multiples of 32."""
    return [
        *reads_the_same_again(representation, images),
        *batch_is_singles(lambda x: representation.features(x).maps, images, tolerance),
        *matches_its_spec(representation, images),
        *leaks_no_gradient(representation, images),
        *reading_changes_nothing(representation, images),
    ]


def reads_the_same_again(representation, images: torch.Tensor) -> list[str]:
    """Same input, same output, to the last bit; also after a call to train(), which must not thaw anything."""
    first = representation.features(images).maps
    representation.train()
    second = representation.features(images).maps
    return [
        f"map {i} differs from one reading to the next"
        for i, (a, b) in enumerate(zip(first, second, strict=True))
        if not torch.equal(a, b)
    ]


def batch_is_singles(
    call: Callable[[torch.Tensor], Sequence[torch.Tensor]], batch: torch.Tensor, tolerance: float = TOLERANCE
) -> list[str]:
    """A batch of n equals n batches of one, to rounding. call: [b, ...] -> tensors [b, ...]."""
    with torch.no_grad():
        together, single = call(batch), [call(one) for one in batch.split(1)]
    found = []
    for i, whole in enumerate(together):
        apart = _apart(whole, torch.cat([parts[i] for parts in single]))
        if not apart <= tolerance:
            found.append(f"output {i} of a batch lies {apart:.2g} from that of single images (at most {tolerance})")
    return found


def matches_its_spec(representation, images: torch.Tensor) -> list[str]:
    """Channels and strides are those of the spec, finest first, and the image size is the images'."""
    spec, pyramid = representation.spec, representation.features(images)
    height, width = images.shape[2:]
    expected = [(images.shape[0], c, height // s, width // s) for c, s in zip(spec.channels, spec.strides, strict=True)]
    given = [tuple(m.shape) for m in pyramid.maps]
    found = [] if given == expected else [f"maps are {given}, the spec says {expected}"]
    if pyramid.image_size != (height, width):
        found.append(f"image size is {pyramid.image_size}, the images are {(height, width)}")
    if list(spec.strides) != sorted(spec.strides):
        found.append(f"strides {spec.strides} do not go from the finest to the coarsest")
    return found


def leaks_no_gradient(representation, images: torch.Tensor) -> list[str]:
    """Neither the maps nor the weights take part in anybody's training."""
    with torch.enable_grad():
        # The result of a computation, as images that a generator made would be.
        maps = representation.features(images.clone().requires_grad_() * 1).maps
    found = [f"map {i} carries a gradient" for i, m in enumerate(maps) if m.requires_grad]
    return found + [
        f"weight '{name}' is not frozen" for name, p in representation.named_parameters() if p.requires_grad
    ]


def reading_changes_nothing(representation, images: torch.Tensor) -> list[str]:
    """Weights, stored statistics, fingerprint and the images themselves stay as they are."""
    before = {name: tensor.clone() for name, tensor in representation.state_dict().items()}
    fingerprint, given = representation.spec.fingerprint, images.clone()
    representation.features(images)
    after = representation.state_dict()
    found = [f"reading changed '{name}'" for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    if representation.spec.fingerprint != fingerprint:
        found.append("reading changed the fingerprint")
    return found if torch.equal(given, images) else [*found, "reading changed the images"]


def head_laws(
    make_head: Callable[[Sequence[int], int], nn.Module], pyramid: Pyramid, classes: int, tolerance: float = TOLERANCE
) -> list[str]:
    """All laws of a head. make_head: (channels, classes) -> head. pyramid: two or more images."""
    head = make_head(pyramid.channels, classes).eval()
    found = []
    with torch.no_grad():
        logits = head(pyramid)
        expected = (pyramid.batch, classes, *pyramid.image_size)
        if tuple(logits.shape) != expected:
            found.append(f"logits are {tuple(logits.shape)}, promised are {expected}")
        if not torch.equal(logits, head(pyramid)):
            found.append("logits differ from one call to the next")
    index = torch.arange(pyramid.batch)
    found += batch_is_singles(lambda chosen: [head(pyramid[chosen])], index, tolerance)
    return found + looks_no_further(head, pyramid, tolerance)


def looks_no_further(head: nn.Module, pyramid: Pyramid, tolerance: float = TOLERANCE) -> list[str]:
    """What lies further than `reach` pixels away has no say; None promises nothing. The finest map has image size."""
    if not hasattr(head, "reach"):
        return ["the head does not say its reach: 0, a number of pixels, or None"]
    if head.reach is None or head.reach + 1 >= pyramid.image_size[1]:
        return []
    changed = pyramid.maps[0].clone()
    changed[..., -1] += 1
    with torch.no_grad():
        before, after = head(pyramid), head(Pyramid((changed, *pyramid.maps[1:]), pyramid.image_size))
    # One column more than the reach is out of reach.
    apart = _apart(before[..., : -1 - head.reach], after[..., : -1 - head.reach])
    return [] if apart <= tolerance else [f"logits more than {head.reach} px away moved by {apart:.2g}"]


def ignored_pixels_change_nothing(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], classes: int
) -> list[str]:
    """Neither the loss nor its gradient knows what was predicted where the label is 255.

    loss: (logits [b, classes, h, w], labels int64 [b, h, w]) -> scalar.
    """
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 8, 8, generator=rng)
    labels = torch.randint(0, classes, (2, 8, 8), generator=rng)
    ignored = torch.rand(2, 8, 8, generator=rng) < 0.4
    labels[ignored] = IGNORE
    other = torch.where(ignored[:, None], logits * -3 + 1, logits)
    values, found = [], []
    for given in (logits, other):
        given.requires_grad_()
        value = loss(given, labels)
        value.backward()
        values.append(value.detach())
        if given.grad.movedim(1, -1)[ignored].any():
            found.append("ignored pixels have a gradient")
    if not torch.isclose(*values, rtol=1e-5):
        found.append(f"the loss is {float(values[0])} or {float(values[1])}, by what ignored pixels predict")
    everything = loss(torch.zeros(1, classes, 4, 4), torch.full((1, 4, 4), IGNORE))
    return found if float(everything) == 0 else [*found, f"an image of ignored pixels has the loss {float(everything)}"]


def fit_laws(fit: Callable[..., Predictor], shots, images: Sequence[np.ndarray]) -> list[str]:
    """The laws of fitting that cost a fit each. fit: shots -> Predictor, the same object or a new one each time.

    shots: a `partshot.data.shots.Shots`, or any dataclass with labels and parts. images: uint8 [h, w, 3] to predict.
    """
    first = fit(shots)(images)
    return [
        *_differences(first, fit(shots)(images), "fitting again gives other scores"),
        *_differences(first, fit(renamed(shots))(images), "renaming the parts changes the scores"),
        *missing_part_keeps_its_output(fit, shots, images),
    ]


def missing_part_keeps_its_output(fit: Callable[..., Predictor], shots, images: Sequence[np.ndarray]) -> list[str]:
    """A part that no shot shows still has its output channel, the last part as well."""
    count = len(shots.parts)
    labels = tuple(np.where(mask == count - 1, IGNORE, mask).astype(np.uint8) for mask in shots.labels)
    given = {scores.shape[0] for scores in fit(dataclasses.replace(shots, labels=labels))(images)}
    return [] if given == {count} else [f"without part {count - 1} in the shots there are {given} outputs, not {count}"]


def mirror_law(predict: Predictor, images: Sequence[np.ndarray], parts: PartSet, agreement: float = 0.9) -> list[str]:
    """Mirrored image = mirrored prediction with left and right swapped, for what was trained with mirrored images.

    agreement: the share of pixels that must agree, since training only teaches it.
    """
    plain = [scores.argmax(0) for scores in predict(images)]
    mirrored = [scores.argmax(0) for scores in predict([np.ascontiguousarray(image[:, ::-1]) for image in images])]
    swap = np.array(parts.mirrored_ids())
    share = np.mean([(swap[a][:, ::-1] == b).mean() for a, b in zip(plain, mirrored, strict=True)])
    return [] if share >= agreement else [f"a mirrored image agrees on {share:.3f} of the pixels, not on {agreement}"]


def saved_is_the_same(predict: Predictor, reloaded: Predictor, images: Sequence[np.ndarray]) -> list[str]:
    """Save, load, predict: equal to the last bit."""
    return _differences(predict(images), reloaded(images), "what was saved and loaded predicts other scores")


def lazy_is_materialized(
    project: Callable[[Pyramid, Sequence[torch.Tensor]], torch.Tensor],
    stack: Callable[[Pyramid], torch.Tensor],
    pyramid: Pyramid,
    tolerance: float = 1e-5,
) -> list[str]:
    """Projecting a lazy pyramid equals the same product on the built hypercolumn."""
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(8, c, generator=rng) / c**0.5 for c in pyramid.channels]
    built = torch.einsum("oc,bchw->bohw", torch.cat(weights, 1), stack(pyramid))
    apart = _apart(built, project(pyramid, weights))
    return [] if apart <= tolerance else [f"lazy and materialized lie {apart:.2g} apart (at most {tolerance})"]


def devices_agree(
    call: Callable[[torch.device], Sequence[torch.Tensor]], one: str, other: str, tolerance: float = 1e-3
) -> list[str]:
    """Two devices give the same tensors within a tolerance relative to the largest value. call: device -> tensors."""
    pairs = zip(call(torch.device(one)), call(torch.device(other)), strict=True)
    apart = [_apart(a.cpu(), b.cpu()) for a, b in pairs]
    return [f"output {i}: {one} and {other} lie {d:.2g} apart" for i, d in enumerate(apart) if not d <= tolerance]


def renamed(shots):
    """The same shots whose parts have other names, in the same order and with the same mirror pairs."""
    parts = shots.parts
    names = tuple(f"part {i}" for i in range(len(parts)))
    return dataclasses.replace(shots, parts=PartSet(names=names, colors=parts.colors, mirror=parts.mirror))


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest value where that is above 1."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / max(1.0, float(a.abs().max())))


def _differences(first: Sequence[np.ndarray], second: Sequence[np.ndarray], what: str) -> list[str]:
    pairs = zip(first, second, strict=True)
    return [f"{what} (image {i})" for i, (a, b) in enumerate(pairs) if not np.array_equal(a, b)]
