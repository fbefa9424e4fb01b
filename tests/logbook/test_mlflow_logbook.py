"""Runs in MLflow's own store, read back by MLflow."""

import pytest

pytest.importorskip("mlflow", reason="MLflow isn't installed (extra [mlflow])")

from mlflow.tracking import MlflowClient

from pytorch_quantizer import InputError
from pytorch_quantizer.logbook.mlflow_logbook import KEY, MlflowLogbook

SETTINGS = {"recipe": "w8a8", "seed": 1, "long": "x" * 9000}


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One store for all tests: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


@pytest.fixture
def experiment(request):
    return request.node.name


@pytest.fixture
def book(uri, experiment):
    return MlflowLogbook(uri, experiment)


def runs(uri, experiment):
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    return client, list(client.search_runs([found.experiment_id]))


def steps(client, run, name):
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))


def test_settings_and_figures(book, uri, experiment):
    run = book.run("a run", "key", SETTINGS)
    run.log({"loss": 0.5, "validation/accuracy": 0.25}, 1)
    run.log({"loss": 0.25}, 2)
    run.finish()
    client, [found] = runs(uri, experiment)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "a run"
    assert found.data.params == {"recipe": "w8a8", "seed": "1", "long": "x" * 500}
    assert found.data.tags[KEY] == "key"
    assert steps(client, found, "loss") == [(1, 0.5), (2, 0.25)]
    assert steps(client, found, "validation/accuracy") == [(1, 0.25)]


def test_only_finished_runs_count(book, uri, experiment):
    run = book.run("a run", "key", SETTINGS)
    assert not book.has("key")
    run.finish()
    assert MlflowLogbook(uri, experiment).has("key")
    assert not book.has("other")


def test_an_interrupted_run_that_comes_again_has_each_step_once(book, uri, experiment):
    book.run("a run", "key", SETTINGS).log({"loss": 0.5}, 1)
    again = MlflowLogbook(uri, experiment).run("a run", "key", SETTINGS)
    for step, loss in ((1, 0.5), (2, 0.25)):
        again.log({"loss": loss}, step)
    again.finish()
    client, [found] = runs(uri, experiment)
    assert steps(client, found, "loss") == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "nonsense://x"])
def test_a_store_that_is_none(uri):
    with pytest.raises(InputError, match=rf"--mlflow {uri}: can't be used"):
        MlflowLogbook(uri, "experiment")
