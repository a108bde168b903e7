"""Contract checks ("laws") for representations, heads and fitted segmenters.

Each check takes the object to test, or a plain function, and returns the violations it found, one line each. An empty
list means that no violation was found for the given inputs. Nothing here depends on partshot's own representations
and heads, so third-party ones can be tested in the same way.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from partshot.parts import IGNORE, PartSet
from partshot.pyramid import Pyramid

# Tolerance for float32 results whose sums are accumulated in another order, relative to the largest value.
TOLERANCE = 1e-4

Predictor = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""Images uint8 [h, w, 3] -> one array [classes, h, w] of scores or probabilities per image."""


def representation_laws(representation, images: torch.Tensor, tolerance: float = TOLERANCE) -> list[str]:
    """All checks of a representation.

    images: two or more images [b, 3, h, w] in [-1, 1]; height and width are multiples of 32.
    """
    return [
        *is_deterministic(representation, images),
        *is_batch_independent(lambda x: representation.features(x).maps, images, tolerance),
        *matches_spec(representation, images),
        *is_frozen(representation, images),
        *has_no_side_effects(representation, images),
    ]


def is_deterministic(representation, images: torch.Tensor) -> list[str]:
    """The same input gives bit-identical output, also after a call to train(), which must not unfreeze anything."""
    first = representation.features(images).maps
    representation.train()
    second = representation.features(images).maps
    return [
        f"map {i} differs between two calls"
        for i, (a, b) in enumerate(zip(first, second, strict=True))
        if not torch.equal(a, b)
    ]


def is_batch_independent(
    call: Callable[[torch.Tensor], Sequence[torch.Tensor]], batch: torch.Tensor, tolerance: float = TOLERANCE
) -> list[str]:
    """A batch of n gives the same result as n batches of one, up to rounding. call: [b, ...] -> tensors [b, ...]."""
    with torch.no_grad():
        together, single = call(batch), [call(one) for one in batch.split(1)]
    found = []
    for i, whole in enumerate(together):
        error = _relative_error(whole, torch.cat([parts[i] for parts in single]))
        if not error <= tolerance:
            found.append(f"output {i} of a batch differs by {error:.2g} from single images (tolerance {tolerance})")
    return found


def matches_spec(representation, images: torch.Tensor) -> list[str]:
    """Channels and strides match the spec, finest map first, and the image size is that of the images."""
    spec, pyramid = representation.spec, representation.features(images)
    height, width = images.shape[2:]
    expected = [(images.shape[0], c, height // s, width // s) for c, s in zip(spec.channels, spec.strides, strict=True)]
    given = [tuple(m.shape) for m in pyramid.maps]
    found = [] if given == expected else [f"maps have shapes {given}, the spec gives {expected}"]
    if pyramid.image_size != (height, width):
        found.append(f"image size is {pyramid.image_size}, the images have {(height, width)}")
    if list(spec.strides) != sorted(spec.strides):
        found.append(f"strides {spec.strides} are not ordered from finest to coarsest")
    return found


def is_frozen(representation, images: torch.Tensor) -> list[str]:
    """Neither the maps nor the weights require gradients."""
    with torch.enable_grad():
        # Non-leaf images, as a generator returns them.
        maps = representation.features(images.clone().requires_grad_() * 1).maps
    found = [f"map {i} requires a gradient" for i, m in enumerate(maps) if m.requires_grad]
    return found + [
        f"weight '{name}' is not frozen" for name, p in representation.named_parameters() if p.requires_grad
    ]


def has_no_side_effects(representation, images: torch.Tensor) -> list[str]:
    """Calling `features` leaves weights, running statistics, fingerprint and input images unchanged."""
    before = {name: tensor.clone() for name, tensor in representation.state_dict().items()}
    fingerprint, given = representation.spec.fingerprint, images.clone()
    representation.features(images)
    after = representation.state_dict()
    found = [f"features() changed '{name}'" for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    if representation.spec.fingerprint != fingerprint:
        found.append("features() changed the fingerprint")
    return found if torch.equal(given, images) else [*found, "features() changed the images"]


def head_laws(
    make_head: Callable[[Sequence[int], int], nn.Module], pyramid: Pyramid, classes: int, tolerance: float = TOLERANCE
) -> list[str]:
    """All checks of a head. make_head: (channels, classes) -> head. pyramid: of two or more images."""
    head = make_head(pyramid.channels, classes).eval()
    found = []
    with torch.no_grad():
        logits = head(pyramid)
        expected = (pyramid.batch, classes, *pyramid.image_size)
        if tuple(logits.shape) != expected:
            found.append(f"logits have shape {tuple(logits.shape)}, expected {expected}")
        if not torch.equal(logits, head(pyramid)):
            found.append("logits differ between two calls")
    index = torch.arange(pyramid.batch)
    found += is_batch_independent(lambda chosen: [head(pyramid[chosen])], index, tolerance)
    return found + stays_within_reach(head, pyramid, tolerance)


def stays_within_reach(head: nn.Module, pyramid: Pyramid, tolerance: float = TOLERANCE) -> list[str]:
    """Features more than `reach` pixels away do not affect a logit; a reach of None is unlimited and not checked.

    pyramid: its finest map has the size of the image.
    """
    if not hasattr(head, "reach"):
        return ["the head has no attribute 'reach': 0, a number of pixels, or None"]
    if head.reach is None or head.reach + 1 >= pyramid.image_size[1]:
        return []
    changed = pyramid.maps[0].clone()
    changed[..., -1] += 1
    with torch.no_grad():
        before, after = head(pyramid), head(Pyramid((changed, *pyramid.maps[1:]), pyramid.image_size))
    # The last column was changed; columns further from it than the reach must stay the same.
    error = _relative_error(before[..., : -1 - head.reach], after[..., : -1 - head.reach])
    return [] if error <= tolerance else [f"logits more than {head.reach} px away changed by {error:.2g}"]


def ignored_pixels_have_no_effect(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], classes: int
) -> list[str]:
    """Neither the loss nor its gradient depends on predictions at pixels with the label 255.

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
        found.append(f"the loss is {float(values[0])} or {float(values[1])}, depending on ignored pixels")
    everything = loss(torch.zeros(1, classes, 4, 4), torch.full((1, 4, 4), IGNORE))
    return found if float(everything) == 0 else [*found, f"an all-ignored image has the loss {float(everything)}"]


def fit_laws(fit: Callable[..., Predictor], shots, images: Sequence[np.ndarray]) -> list[str]:
    """All checks of fitting; each costs one fit.

    fit: shots -> Predictor, the same object or a new one each time. shots: a `partshot.data.shots.Shots`, or any
    dataclass with labels and parts. images: uint8 [h, w, 3] to predict.
    """
    first = fit(shots)(images)
    return [
        *_differences(first, fit(shots)(images), "fitting again changes the scores"),
        *_differences(first, fit(with_renamed_parts(shots))(images), "renaming the parts changes the scores"),
        *missing_part_keeps_its_channel(fit, shots, images),
    ]


def missing_part_keeps_its_channel(fit: Callable[..., Predictor], shots, images: Sequence[np.ndarray]) -> list[str]:
    """A part that occurs in no shot still has an output channel, also if it is the last one."""
    count = len(shots.parts)
    labels = tuple(np.where(mask == count - 1, IGNORE, mask).astype(np.uint8) for mask in shots.labels)
    given = {scores.shape[0] for scores in fit(dataclasses.replace(shots, labels=labels))(images)}
    return [] if given == {count} else [f"without part {count - 1} in the shots there are {given} outputs, not {count}"]


def flip_equivariance(
    predict: Predictor, images: Sequence[np.ndarray], parts: PartSet, agreement: float = 0.9
) -> list[str]:
    """A flipped image gives the flipped prediction with left and right parts swapped.

    For models trained with horizontal flips. agreement: share of pixels that must agree; flip augmentation makes a
    model only approximately equivariant.
    """
    plain = [scores.argmax(0) for scores in predict(images)]
    flipped = [scores.argmax(0) for scores in predict([np.ascontiguousarray(image[:, ::-1]) for image in images])]
    swap = np.array(parts.mirrored_ids())
    share = np.mean([(swap[a][:, ::-1] == b).mean() for a, b in zip(plain, flipped, strict=True)])
    return [] if share >= agreement else [f"a flipped image agrees on {share:.3f} of the pixels, not on {agreement}"]


def reload_is_identical(predict: Predictor, reloaded: Predictor, images: Sequence[np.ndarray]) -> list[str]:
    """A saved and reloaded model predicts bit-identical scores."""
    return _differences(predict(images), reloaded(images), "saving and loading changes the scores")


def lazy_equals_materialized(
    project: Callable[[Pyramid, Sequence[torch.Tensor]], torch.Tensor],
    stack: Callable[[Pyramid], torch.Tensor],
    pyramid: Pyramid,
    tolerance: float = 1e-5,
) -> list[str]:
    """A 1x1 convolution applied lazily to a pyramid equals the same product on the materialized hypercolumn."""
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(8, c, generator=rng) / c**0.5 for c in pyramid.channels]
    built = torch.einsum("oc,bchw->bohw", torch.cat(weights, 1), stack(pyramid))
    error = _relative_error(built, project(pyramid, weights))
    return [] if error <= tolerance else [f"lazy and materialized differ by {error:.2g} (tolerance {tolerance})"]


def devices_agree(
    call: Callable[[torch.device], Sequence[torch.Tensor]], one: str, other: str, tolerance: float = 1e-3
) -> list[str]:
    """Two devices give the same tensors, within a tolerance relative to the largest value. call: device -> tensors."""
    pairs = zip(call(torch.device(one)), call(torch.device(other)), strict=True)
    errors = [_relative_error(a.cpu(), b.cpu()) for a, b in pairs]
    return [f"output {i}: {one} and {other} differ by {e:.2g}" for i, e in enumerate(errors) if not e <= tolerance]


def with_renamed_parts(shots):
    """The same shots with other part names; order and mirror pairs stay."""
    parts = shots.parts
    names = tuple(f"part {i}" for i in range(len(parts)))
    return dataclasses.replace(shots, parts=PartSet(names=names, colors=parts.colors, mirror=parts.mirror))


def _relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference, divided by the largest absolute value where that is above 1."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / max(1.0, float(a.abs().max())))


def _differences(first: Sequence[np.ndarray], second: Sequence[np.ndarray], what: str) -> list[str]:
    pairs = zip(first, second, strict=True)
    return [f"{what} (image {i})" for i, (a, b) in enumerate(pairs) if not np.array_equal(a, b)]
