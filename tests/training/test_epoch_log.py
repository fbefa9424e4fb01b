"""Each epoch as a row of a table beside the weights, and in TensorBoard; once, whatever was interrupted."""

from dataclasses import replace

import pandas as pd
import pytest

from pytorch_quantizer.training import session as module
from pytorch_quantizer.training import train
from pytorch_quantizer.training.config import TrainingConfig, epochs_path
from pytorch_quantizer.training.epoch_log import flat

COLUMNS = ["epoch", "loss", *(f"validation/{name}" for name in ("accuracy", "precision", "recall", "f1"))]


@pytest.fixture
def config(tmp_path):
    return TrainingConfig(
        arch="mlp", dataset="digits", epochs=3, batch_size=256, device="cpu", output=tmp_path / "mlp.safetensors"
    )


def interrupt(config, monkeypatch, epochs):
    """Train, and stop in the epoch behind so many."""
    real = module.train_epoch

    def stopping(session):
        if len(session.history) == epochs:
            raise KeyboardInterrupt
        return real(session)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)


def test_a_row_an_epoch(config):
    report = train(config, progress=False)
    table = pd.read_csv(epochs_path(config))
    assert list(table) == COLUMNS
    assert list(table["epoch"]) == [1, 2, 3]
    assert list(table["loss"]) == pytest.approx([epoch["loss"] for epoch in report["epochs"]])
    scores = [epoch["validation"]["f1"] for epoch in report["epochs"]]
    assert list(table["validation/f1"]) == pytest.approx(scores)


def test_an_interrupted_run_has_the_epochs_so_far_and_then_all(config, monkeypatch, tmp_path):
    unbroken = replace(config, output=tmp_path / "unbroken.safetensors")
    train(unbroken, progress=False)
    interrupt(config, monkeypatch, 2)
    assert list(pd.read_csv(epochs_path(config))["epoch"]) == [1, 2]
    train(config, progress=False)
    assert epochs_path(config).read_bytes() == epochs_path(unbroken).read_bytes()


def test_in_tensorboard_each_epoch_once(config, monkeypatch, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard isn't installed (extra [tensorboard])")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(config, tensorboard=tmp_path / "logs")
    interrupt(config, monkeypatch, 2)
    report = train(config, progress=False)
    [run] = [path for path in (tmp_path / "logs").iterdir() if path.is_dir()]
    events = EventAccumulator(str(run)).Reload().Scalars("validation/accuracy")
    accuracies = [epoch["validation"]["accuracy"] for epoch in report["epochs"]]
    assert [event.step for event in events] == [1, 2, 3]
    assert [event.value for event in events] == pytest.approx(accuracies)


def test_flat_numbers():
    assert flat({"epoch": 1, "loss": 2, "validation": {"f1": 0.5}}) == {"loss": 2.0, "validation/f1": 0.5}
