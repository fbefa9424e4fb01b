"""max_memory: the least limit that errors state is really kept to, by each stage where it takes most of all."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from peak_memory import CASES

SCRIPT = Path(__file__).with_name("peak_memory.py")
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="Linux tells a process's peak")


@pytest.fixture(scope="module")
def printed():
    return subprocess.run([sys.executable, "-W", "ignore", str(SCRIPT)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("case", CASES)
def test_the_peak_keeps_to_the_least_limit(case, printed):
    found = re.search(rf"^{case}: (\d+) (\d+)$", printed.stdout, re.MULTILINE)
    assert found, printed.stderr
    limit, beyond = map(int, found.groups())
    assert 0 < beyond <= limit


def test_large_tensors_that_are_freed_are_given_back(printed):
    found = re.search(r"^freed: (-?\d+) (-?\d+)$", printed.stdout, re.MULTILINE)
    assert found, printed.stderr
    kept, given_back = map(int, found.groups())
    if kept < 32:
        pytest.skip("this system keeps nothing by itself")
    assert given_back < 8
