"""Classes: changes and matrices add up to the answers."""

import numpy as np
import pytest
from report_examples import details

from pytorch_quantizer.reports.confusion import (
    MOST_CLASSES,
    class_changes,
    confusion_matrices,
    confusion_section,
    distinct,
    shown_classes,
)

ANSWERS = details()["answers"]


def test_matrices_count_every_image_by_label_and_answer():
    before, after = confusion_matrices(ANSWERS)
    assert before.tolist() == [[8, 0, 1], [0, 9, 0], [0, 5, 0]]
    assert after.tolist() == [[7, 1, 1], [1, 8, 0], [0, 0, 5]]


def test_a_combination_that_comes_twice_counts_twice():
    answers = {"classes": ["a"], "label": [0, 0], "fp32": [0, 0], "quantized": [0, 0], "count": [2, 3]}
    assert confusion_matrices(answers)[0].tolist() == [[5]]


def test_changes_by_class_the_worst_first():
    table = class_changes(ANSWERS).set_index("class")
    assert list(table.index) == ["cat", "dog", "bird"]
    assert table.loc["cat", ["images", "lost", "won", "changed"]].tolist() == [9, 1, 0, 1]
    assert table.loc["bird", ["lost", "won"]].tolist() == [0, 5]
    assert table.loc["cat", "change"] == pytest.approx(-1 / 9)
    assert table.loc["dog", "taken_for"] == "cat (1)"
    assert table.loc["bird", "taken_for"] == ""


def many(classes=50):
    label = np.arange(classes).repeat(2)
    wrong = (label + 1) % classes
    answers = {"classes": [f"class {i % 40}" for i in range(classes)], "label": label.tolist()}
    answers["fp32"] = np.where(np.arange(2 * classes) % 2, label, wrong).tolist()
    answers["quantized"] = np.where(label < 10, wrong, answers["fp32"]).tolist()
    return answers | {"count": [3] * (2 * classes)}


def test_charts_of_many_classes_show_those_that_change_most():
    bars, chosen = shown_classes(class_changes(many()))
    assert len(bars) == len(chosen) == MOST_CLASSES
    assert set(range(10)) <= set(chosen)
    section = confusion_section(many(), "run", "t")
    assert f"the {MOST_CLASSES} classes that change most, the table all 50" in section.lead


def test_classes_of_one_name_stay_apart():
    assert distinct(["crane", "crane", "cat", "crane"]) == ["crane", "crane 2", "cat", "crane 3"]
    assert class_changes(many())["class"].is_unique
