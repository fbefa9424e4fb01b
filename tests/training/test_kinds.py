"""Every setting is of the kind that its annotation names, and every number finite, whichever setting it is."""

from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.training import Augmentation, Qat, TrainingConfig

GROUPS = {TrainingConfig: "", Augmentation: "augmentation.", Qat: "qat."}
SETTINGS = [(group, entry.name, get_type_hints(group)[entry.name]) for group in GROUPS for entry in fields(group)]


def of_kind(*kinds):
    return [(group, name) for group, name, hint in SETTINGS if hint in kinds]


def refused(group, name, value, said):
    with pytest.raises(InputError) as raised:
        group(**{name: value})
    assert str(raised.value).startswith(f"{GROUPS[group]}{name} must be {said}")


@pytest.mark.parametrize(("group", "name"), of_kind(float, float | None))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400, "0.5", True, [1.0]], ids=repr)
def test_numbers_are_finite(group, name, value):
    refused(group, name, value, "a finite number")


@pytest.mark.parametrize(("group", "name"), of_kind(int, int | None))
@pytest.mark.parametrize("value", [2.5, 2.0, float("nan"), "2", True], ids=repr)
def test_whole_numbers(group, name, value):
    refused(group, name, value, "a whole number")


@pytest.mark.parametrize(("group", "name"), of_kind(bool))
@pytest.mark.parametrize("value", [0, 1, "false"], ids=repr)
def test_switches(group, name, value):
    refused(group, name, value, "true or false, got")


@pytest.mark.parametrize(("group", "name"), of_kind(int, float, bool, str, Augmentation, Qat))
def test_only_what_may_be_left_open_is_none(group, name):
    refused(group, name, None, "")


@pytest.mark.parametrize(("name", "said"), [("augmentation", "Augmentation, got 5"), ("qat", "Qat, got 5")])
def test_groups(name, said):
    refused(TrainingConfig, name, 5, said)


def test_there_are_settings_of_each_kind():
    assert {hint for _, _, hint in SETTINGS} == {
        *(int, float, bool, str, Augmentation, Qat),
        *(int | None, float | None, str | None, Path | None),
    }


def test_whole_numbers_are_numbers_and_numpys_are_too():
    assert TrainingConfig(weight_decay=0, warmup_epochs=np.float32(0.5), epochs=np.int64(3), data="folder").epochs == 3
