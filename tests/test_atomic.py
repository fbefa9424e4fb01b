"""A file is written whole or not at all, and nothing is left lying about."""

import os
import stat

import pytest

from pytorch_quantizer import atomic
from pytorch_quantizer.atomic import atomic_path, require_writable, write_atomically
from pytorch_quantizer.errors import InputError


def test_writes_and_makes_the_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def half_a_file():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        half_a_file()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_nobody_sees_half_a_file(tmp_path):
    path = tmp_path / "file.bin"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"ne")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename across file systems would not be atomic


def test_data_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    synced = []
    monkeypatch.setattr(atomic, "_sync", lambda what: synced.append((what.is_dir(), path.exists())))
    write_atomically(path, b"x")
    assert synced == [(False, False), (True, True)]


def test_is_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("plain", "ours")]
    assert modes[0] == modes[1]


def test_a_place_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path, said in ((tmp_path / "file" / "below", "can't write .*below"), (tmp_path, "is a folder")):
        for attempt in (require_writable, lambda path: write_atomically(path, b"")):
            with pytest.raises(InputError, match=said):
                attempt(path)


def test_require_writable_leaves_no_trace(tmp_path):
    require_writable(tmp_path / "file.bin")
    assert not list(tmp_path.iterdir())
