"""One sweep at a time on a folder, whatever becomes of the one that holds it."""

import multiprocessing
import os
import signal

import pytest

from pytorch_quantizer import InputError
from pytorch_quantizer.sweeps.lock import locked


def hold(folder, pipe):
    with locked(folder):
        pipe.send("held")
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, theirs))
    process.start()
    assert ours.recv() == "held"
    yield process
    process.kill()
    process.join()


def test_a_second_one_is_told_who_holds_it(holder, tmp_path):
    with pytest.raises(InputError, match=rf"another sweep \(process {holder.pid} on .*--output"), locked(tmp_path):
        pass


def test_another_folder_is_free(holder, tmp_path):
    with locked(tmp_path / "other"):
        pass


def test_a_killed_process_leaves_it_free(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with locked(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_it_is_free_afterwards(tmp_path):
    for _ in range(2):
        with locked(tmp_path):
            pass


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't write"), locked(tmp_path / "file"):
        pass
