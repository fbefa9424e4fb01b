"""TensorBoard's event files, read back by TensorBoard."""

import pytest

pytest.importorskip("tensorboard", reason="TensorBoard isn't installed (extra [tensorboard])")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from pytorch_quantizer import InputError
from pytorch_quantizer.logbook.tensorboard_logbook import TensorBoardLogbook

SETTINGS = {"recipe": "w8a8", "seed": 1, "deployable": True, "rate": 0.5}


@pytest.fixture
def book(tmp_path):
    return TensorBoardLogbook(tmp_path)


def read(folder):
    """The only run's events."""
    [run] = [path for path in folder.iterdir() if path.is_dir()]
    return EventAccumulator(str(run)).Reload()


def scalars(folder):
    events = read(folder)
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_scalars_by_step_are_there_at_once(book, tmp_path):
    run = book.run("a run: w8a8, x=1", "key", SETTINGS)
    run.log({"loss": 0.5, "validation/accuracy": 0.25}, 1)
    assert scalars(tmp_path) == {"loss": [(1, 0.5)], "validation/accuracy": [(1, 0.25)]}
    run.log({"loss": 0.25}, 2)
    assert scalars(tmp_path)["loss"] == [(1, 0.5), (2, 0.25)]


def test_settings_are_hyperparameters_beside_what_they_led_to(book, tmp_path):
    run = book.run("name", "key", SETTINGS)
    run.log({"top1": 0.5}, 0)
    run.finish()
    found = {}
    for name, content in read(tmp_path).summary_metadata.items():
        if name.startswith("_hparams_"):
            found[name] = plugin_data_pb2.HParamsPluginData.FromString(content.plugin_data.content)
    started = found["_hparams_/session_start_info"].session_start_info.hparams
    assert started["recipe"].string_value == "w8a8"
    assert (started["seed"].number_value, started["rate"].number_value) == (1, 0.5)
    assert started["deployable"].number_value == 1  # torch makes numbers of switches
    [metric] = found["_hparams_/experiment"].experiment.metric_infos
    assert metric.name.tag == "top1"


def test_only_finished_runs_count(book):
    run = book.run("name", "key", SETTINGS)
    run.log({"top1": 0.5}, 0)
    assert not book.has("key")
    run.finish()
    assert book.has("key")
    assert not book.has("other")


def test_an_interrupted_run_that_comes_again_has_each_step_once(book, tmp_path):
    run = book.run("name", "key", SETTINGS)
    run.log({"loss": 0.5}, 1)
    run.log({"loss": 0.25}, 2)
    again = TensorBoardLogbook(tmp_path).run("name", "key", SETTINGS)
    for step, loss in ((1, 0.5), (2, 0.25), (3, 0.125)):
        again.log({"loss": loss}, step)
    again.finish()
    assert scalars(tmp_path)["loss"] == [(1, 0.5), (2, 0.25), (3, 0.125)]


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't write"):
        TensorBoardLogbook(tmp_path / "file")
