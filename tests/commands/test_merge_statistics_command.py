"""pq merge-statistics: one file from several; a user's mistake is one line."""

import pytest
from command_runs import failing_line
from networks import images, sequence
from torch import nn

from pytorch_quantizer import Recipe, load_statistics, merge_statistics, quantize
from pytorch_quantizer.commands import merge_statistics as command


@pytest.fixture
def files(tmp_path):
    """Of two runs of one network, on 4 and on 3 images."""
    net = sequence(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
    for name, seen in (("first", images()), ("second", images(3, 3, 8, 8, seed=2))):
        quantize(net, "w8a8_aciq", [seen], statistics_file=tmp_path / name, progress=False)
    wide = Recipe(activation_granularity="per_channel", deployable=False)
    quantize(net, wide, [images()], statistics_file=tmp_path / "channels", progress=False)
    return tmp_path


def test_two_runs_become_one(files, capsys):
    command.main(["--output", str(files / "both"), str(files / "first"), str(files / "second")])
    assert capsys.readouterr().out == f"wrote {files / 'both'}: 7 images\n"
    expected = merge_statistics(files / "first", files / "second")
    merged = load_statistics(files / "both")
    assert {key: record.to_dict() for key, record in merged.items()} == {
        key: record.to_dict() for key, record in expected.items()
    }


def test_mistakes(files, capsys):
    line = failing_line(command, capsys, "--output", files / "out", files / "first", files / "nowhere")
    assert line.startswith(f"pq merge-statistics: error: can't read {files / 'nowhere'}")
    line = failing_line(command, capsys, "--output", files / "out", files / "first", files / "channels")
    assert "runs must hold the same tensors" in line
    assert "files" in failing_line(command, capsys, "--output", files / "out")
    assert "output" in failing_line(command, capsys, files / "first")
    assert not (files / "out").exists()
