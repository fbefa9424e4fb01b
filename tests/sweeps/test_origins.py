"""origins.json: versions and machines of each version of the code, each once, over several runs of a sweep."""

import json

import pytest

from pytorch_quantizer import InputError
from pytorch_quantizer.sweeps.origins import FILE, Origins, read_origins

HERE = {"versions": {"torch": "1"}, "machine": {"processor": "here"}}
THERE = HERE | {"machine": {"processor": "there"}}


def test_every_machine_once_under_its_code(tmp_path):
    for origin in (HERE, THERE, HERE, {}):
        Origins(tmp_path).add("a", origin)
    Origins(tmp_path).add("b", THERE)
    found = read_origins(tmp_path / FILE)
    assert found["a"] == {"versions": {"torch": "1"}, "machines": [HERE["machine"], THERE["machine"]]}
    assert found["b"]["machines"] == [THERE["machine"]]


def test_nothing_is_written_where_nothing_is_known(tmp_path):
    Origins(tmp_path).add("a", {})
    assert not (tmp_path / FILE).exists()
    assert read_origins(tmp_path / FILE) == {}


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1}', '{"a": {"versions": {}}}', "\xff"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"origins\.json .*: remove it"):
        Origins(tmp_path)


def test_it_is_json_that_anyone_can_read(tmp_path):
    Origins(tmp_path).add("a", HERE)
    assert json.loads((tmp_path / FILE).read_text()) == {
        "a": {"versions": {"torch": "1"}, "machines": [HERE["machine"]]}
    }
