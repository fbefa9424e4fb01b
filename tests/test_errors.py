"""What a foreign error says fits into an InputError's one line."""

import pytest

from pytorch_quantizer.errors import first_line


@pytest.mark.parametrize(("said", "line"), [("one\ntwo", "one"), ("one", "one"), ("", "OSError")])
def test_first_line(said, line):
    assert first_line(OSError(said)) == line
