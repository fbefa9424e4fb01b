"""scripts/browser.sh: installs Chromium where it can, and never stops what called it."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "browser.sh"
NEEDED = ("bash", "mktemp", "tail", "rm", "timeout", "env")


@pytest.fixture
def run(tmp_path):
    """Runs the script with nothing on the path but a few tools and the stand-ins given."""

    def started(**stand_ins):
        for name in NEEDED:
            (tmp_path / name).symlink_to(shutil.which(name))
        for name, body in stand_ins.items():
            path = tmp_path / name.replace("_", "-")
            path.write_text(f'#!/bin/sh\necho "{path.name} $*" >>{tmp_path}/calls\n{body}\n')
            path.chmod(0o755)
        done = subprocess.run(
            [str(tmp_path / "bash"), str(SCRIPT)],
            env={"PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return started


def test_it_does_nothing_where_there_is_one(run):
    done, calls = run(chromium="", id="echo 0", apt_get="")
    assert (done.returncode, done.stdout, calls) == (0, "", [])


def test_it_installs_as_root(run):
    done, calls = run(id="echo 0", apt_get="")
    assert done.returncode == 0
    assert calls[1:] == ["apt-get update", "apt-get install --yes --no-install-recommends chromium"]


@pytest.mark.parametrize("stand_ins", [{"id": "echo 1000", "apt_get": ""}, {"id": "echo 0"}])
def test_without_root_or_apt_it_says_so(run, stand_ins):
    done, calls = run(**stand_ins)
    assert done.returncode == 0
    assert "takes root and apt-get: the tests of reports in a browser will be skipped" in done.stdout
    assert not any("install" in call for call in calls)


def test_a_failure_is_one_line_with_its_reason(run):
    done, _ = run(id="echo 0", apt_get="echo 'E: nobody answers' >&2; exit 100")
    assert done.returncode == 0
    assert "E: nobody answers" in done.stdout.splitlines()[-1]
    assert "will be skipped" in done.stdout
