"""Code, help, messages and docs use the field's standard terms: words of a private vocabulary do not come back."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What must not be written (a regular expression, whole words, also between underscores) -> the standard term.
BANNED = {
    r"pictures?": "image(s)",
    r"games?|plays?|played|turns of": "objective; phase; trains",
    r"contenders?|contests?|stands? in a table": "methods, comparison",
    r"shipped": "exported model, ONNX model",
    r"heard|trusted": "used, not used; min_teacher_miou",
    r"drawn|draws": "generated, synthetic; splits; sampled",
    r"running average|the average|average's": "EMA (exponential moving average)",
    r"lean|opinions?|says?": "logit adjustment; pseudo-labels; predicts",
    r"borrow\w*": "color transfer",
    r"coarse training": "low-resolution phase",
    r"rehears\w+|first student": "self-training round",
    r"mirrored student|in a mirror": "flip test-time augmentation (flip TTA)",
    r"strangers?|spots?|told apart|tells? apart": "negatives; local (dense) features; discriminates",
    r"condens\w+|proportional": "principal components; shared scale",
    r"critics?|verdicts?": "discriminator, logits",
    r"chance|random weights": "random initialization; probability",
    r"plain images?": "unlabeled images",
    r"one scale|one deviation": "standardize",
    r"easel|astray|glow|lit": "the graphics library's words",
    r"swift": "fast-unet",
    r"roads?": "route",
    r"(?:un)?labelled|colours?|neighbours?|learnt|behaviour|favour\w*": "American spelling",
}

# (path prefix, banned expression, why it may stand there).
ALLOWED = [
    ("src/partshot/metrics.py", r"pictures?", "a key in the rows of older benchmark runs"),
    ("src/partshot/nets/student.py", r"swift", "the name under which older artifacts know fast-unet"),
    ("src/partshot/nets/weights.py", r"critics?|verdicts?", "a name in the tensors of older generators"),
    ("src/partshot/train/checkpoint.py", r"critics?|verdicts?", "a name in the checkpoints of older runs"),
    ("src/partshot/represent/resnet.py", r"condens\w+|proportional", "a name in the tensors of older encoders"),
    ("src/partshot/cli.py", r"drawn|draws", "an option of older versions, hidden"),
    ("src/partshot/tasks/distill.py", r"drawn|draws", "a name of an older option"),
    ("src/partshot/tasks/demo_routes.py", r"drawn|draws", "a name in older recipes"),
    ("src/partshot/tasks/demo_routes.py", r"pictures?", "a name in older recipes"),
    ("src/partshot/tasks/toy.py", r"drawn|draws", "toys are drawn, by a graphics library"),
    ("src/partshot/train/checkpoint.py", r"heard|trusted", "a name in the checkpoints of older runs"),
    ("src/partshot/train/distill_recipe.py", r"drawn|draws", "a name in older recipes"),
    ("src/partshot/pretext/moco.py", r"pictures?", "a value in older recipes"),
    ("src/partshot/pretext/moco.py", r"strangers?|spots?|told apart|tells? apart", "names in older recipes"),
    ("src/partshot/train/distill_recipe.py", r"borrow\w*", "a name in older recipes"),
    ("src/partshot/train/distill_recipe.py", r"rehears\w+|first student", "a name in older recipes"),
    ("src/partshot/train/distill_recipe.py", r"(?:un)?labelled|colours?|neighbours?|learnt|behaviour|favour\w*",
     "a name in older recipes"),
    ("src/partshot/toy/", r"drawn|draws", "toys are drawn, by a graphics library"),
]  # fmt: skip


def texts() -> list[str]:
    """Files of which a user or a contributor reads the words."""
    found = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    return sorted(str(path.relative_to(ROOT)) for path in found)


@pytest.mark.parametrize("name", texts())
def test_standard_terms_only(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    free = {word for prefix, word, _ in ALLOWED if name.startswith(prefix)}
    found = [
        f"{name}:{number}: '{match.group()}' (write: {instead})"
        for word, instead in BANNED.items()
        if word not in free
        for number, line in enumerate(lines, 1)
        for match in re.finditer(rf"(?<![a-z])(?:{word})(?![a-z])", line, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_the_allow_list_gives_reasons_and_is_needed():
    for prefix, word, why in ALLOWED:
        assert why and word in BANNED
        matching = [name for name in texts() if name.startswith(prefix)]
        assert any(re.search(rf"(?<![a-z])(?:{word})(?![a-z])", (ROOT / n).read_text(), re.I) for n in matching), prefix


def test_help_uses_standard_terms():
    """Of every command, as a user sees it."""
    import sys

    for verb in ("", "run", "distill", "fit", "pretrain", "predict", "evaluate", "bench", "demo"):
        shown = subprocess.run(
            [sys.executable, "-m", "partshot", *verb.split(), "--help"], capture_output=True, text=True, check=True
        ).stdout
        for word, instead in BANNED.items():
            assert not re.search(rf"(?<![a-z])(?:{word})(?![a-z])", shown, re.IGNORECASE), (verb, word, instead)
