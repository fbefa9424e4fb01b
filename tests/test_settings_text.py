"""Settings are read as their author meant them: JSON as JSON, 5e-3 as a number, and what is written reads back."""

import math
import re

import pytest
import yaml

from pytorch_quantizer.settings_text import dump_settings, load_settings, without_comments

FLOATS = ["5e-3", "1E5", "-2e+3", "+1e0", "1.5e3", ".5e2", "1.e-2", "1_0.5", "0.5"]
TEXTS = ["e5", "5e", "1e-", "1e5x", "v1e5", "0x1e5x", "1e5.0", "1e-3 # not", "- 1e5", "e4m3"]


@pytest.mark.parametrize("text", FLOATS)
def test_numbers(text):
    found = load_settings(f"a: {text}")["a"]
    assert isinstance(found, float)
    assert found == float(text)
    assert load_settings(text) == found


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_text_and_is_written_so(text):
    assert load_settings(dump_settings({"a": text})) == {"a": text}


@pytest.mark.parametrize("text", FLOATS)
def test_text_that_looks_like_a_number_is_quoted(text):
    assert load_settings(dump_settings({text: [text]})) == {text: [text]}


def test_everything_else_is_as_yaml_has_it():
    text = "a: 1\nb: 0x10\nc: yes\nd: null\ne: [1.0, .inf]\nf: 2024-01-02\ng: '5e-3'\nh: \"1e5\"\n"
    assert load_settings(text) == yaml.safe_load(text)
    assert math.isnan(load_settings(".nan"))
    assert load_settings("") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{\n\t"a": 1,\n\t"b": [\n\t\t5e-3\n\t]\n}', {"a": 1, "b": [0.005]}),
        ('\ufeff\n\t{"a": "\\u00e9\\/"}\n', {"a": "é/"}),
        ('\t[1, "a"]', [1, "a"]),
        ("{a: 1, b: [x, 5e-3]}", {"a": 1, "b": ["x", 0.005]}),
        ("[a, b]", ["a", "b"]),
        ('{"a": 1, b: 2}  # flow style of YAML', {"a": 1, "b": 2}),
    ],
)
def test_json_is_read_as_json_and_flow_style_as_yaml(text, value):
    assert load_settings(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key a stands twice (line 3): leave one of them out"),
        ("b:\n  - {c: 1, a: 2, c: 3}\n", "the key c stands twice (line 2)"),
        ('{"b": {"a": 1, "a": 2}}', "the key a stands twice: leave"),
        ('{"a": 1, "a": 2,}', "the key a stands twice (line 1)"),
    ],
)
def test_a_key_stands_once(text, said):
    with pytest.raises(yaml.YAMLError, match=re.escape(said)):
        load_settings(text)


@pytest.mark.parametrize("text", ['{"_c": 1, "a": 5, "_c": 2}', "_c: 1\na: 5\n_c: 2\n"])
def test_but_comments_as_often_as_one_likes(text):
    assert without_comments(load_settings(text)) == {"a": 5}


def test_a_merged_key_may_be_set_anew():
    assert load_settings("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}")["y"] == {"a": 3, "b": 2}
    text = "x: &x {a: 1, b: 2}\nouter:\n  y: &y {<<: *x, a: 3}\nz: {<<: *y, c: 4}"
    assert load_settings(text) == yaml.safe_load(text)


def test_keys_of_two_kinds_are_two():
    assert load_settings("{1: a, '1': b}") == {1: "a", "1": "b"}


def test_keys_that_begin_with_an_underscore_are_comments_at_any_depth():
    found = without_comments({"_comment": "x", "a_b": [{"_": 1, "c": "_d"}, "_e"], 5: {"_comment_x": {"f": 1}}})
    assert found == {"a_b": [{"c": "_d"}, "_e"], 5: {}}
    assert without_comments(None) is None


@pytest.mark.parametrize("text", ["{a: [", '{\n\t"a": }', "a: [1, 2\n", "seed: 2024-13-01", "a: 1\n---\nb: 2\n"])
def test_what_is_neither(text):
    with pytest.raises(yaml.YAMLError):
        load_settings(text)
