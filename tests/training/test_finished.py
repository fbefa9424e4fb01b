"""A run that is finished is known again, whatever else changed is not taken for it, and nothing is computed."""

import json
from dataclasses import replace

import pytest

import pytorch_quantizer as pq
from pytorch_quantizer.commands import train as command
from pytorch_quantizer.data import load_dataset
from pytorch_quantizer.training import Augmentation, TrainingConfig, finished_report, session, train
from pytorch_quantizer.training.config import best_path, epochs_path, report_path, state_path, weights_path
from pytorch_quantizer.training.saved import changed_settings, identity_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run's config, and what it wrote."""
    output = tmp_path_factory.mktemp("trained") / "mlp.safetensors"
    config = TrainingConfig(arch="mlp", epochs=2, batch_size=256, device="cpu", output=output)
    train(config, progress=False)
    return config, {path.name: path.read_bytes() for path in output.parent.iterdir()}


@pytest.fixture
def finished(trained, tmp_path):
    """A finished run's config, its files in a folder of this test."""
    config, written = trained
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    return replace(config, output=tmp_path / "mlp.safetensors")


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(session, "train_epoch", lambda _: pytest.fail("trained"))
    monkeypatch.setattr(session, "evaluate", lambda *_, **__: pytest.fail("evaluated"))


def test_its_report_is_given_and_the_output_is_where_it_is_now(finished, untrained):
    report = finished_report(finished)
    assert report == json.loads(report_path(finished).read_text()) | {"config": report["config"]}
    assert report["config"]["output"] == str(finished.output)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_same_command_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys, keep):
    output = tmp_path / "mlp.safetensors"
    flags = ["--arch", "mlp", "--epochs", "2", "--batch-size", "256", "--device", "cpu", "--keep", keep]
    flags += ["--output", str(output)]
    command.main(flags)
    first = capsys.readouterr().out.splitlines()
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(command, "train", lambda _: pytest.fail("trained"))
        command.main([*flags, "--report", str(tmp_path / "page.html")])
    second = capsys.readouterr().out.splitlines()
    assert second[:2] == first[:2]
    assert second[2] == first[2].replace(
        "wrote ", "finished before, nothing is trained (--resume false trains anew): ", 1
    )
    assert "Training of mlp" in (tmp_path / "page.html").read_text()
    (tmp_path / "page.html").unlink()
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_resume_false_trains_anew(finished):
    assert finished_report(replace(finished, resume=False)) is None
    content = weights_path(finished).read_bytes()
    weights_path(finished).write_bytes(b"")
    train(replace(finished, resume=False), progress=False)
    assert weights_path(finished).read_bytes() == content


@pytest.mark.parametrize("path", [weights_path, report_path])
def test_where_what_it_wrote_is_gone_there_is_something_to_do(finished, path):
    path(finished).unlink()
    assert finished_report(finished) is None


@pytest.mark.parametrize("path", [best_path, epochs_path])
def test_what_stands_beside_its_results_may_be_gone(finished, path):
    path(finished).unlink()
    assert finished_report(finished) is not None


def test_other_weights_in_its_place_are_not_its_own(finished):
    weights_path(finished).write_bytes(best_path(finished).read_bytes() + b" ")
    assert finished_report(finished) is None


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"config": {}}', "\xff"])
def test_another_report_in_its_place_is_not_its_own(finished, text):
    report_path(finished).write_bytes(text.encode("latin-1"))
    assert finished_report(finished) is None


def test_an_interrupted_run_that_began_anew_goes_on(finished, monkeypatch):
    original = session.train_epoch

    def stopping(given):
        if given.history:
            raise KeyboardInterrupt
        return original(given)

    with monkeypatch.context() as patch:
        patch.setattr(session, "train_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(replace(finished, resume=False), progress=False)
    assert state_path(finished).is_file()
    assert finished_report(finished) is None
    assert [record["epoch"] for record in train(finished, progress=False)["epochs"]] == [1, 2]
    assert finished_report(finished) is not None


class TestOfAnOlderVersion:
    """What its version didn't know yet was at its default: by that alone it is no other run."""

    RECIPE = "{weights: int4, overrides: [{layers: a, weights: int8}, {layers: b, clip: mse}]}"

    @pytest.fixture
    def older(self, finished):
        """A finished run's config; its report lacks a setting and a member of a group."""
        report = json.loads(report_path(finished).read_text())
        del report["identity"]["ema"], report["identity"]["augmentation"]["flip"]
        report_path(finished).write_text(json.dumps(report))
        return finished

    def identity(self, tmp_path, recipe=RECIPE):
        (tmp_path / "r.yaml").write_text(recipe)
        config = TrainingConfig(recipe=str(tmp_path / "r.yaml"), learning_rate=0.1)
        return identity_of(config, load_dataset("digits", split="train"))

    def test_it_is_found_again(self, older):
        assert finished_report(older) is not None

    def test_what_is_set_now_is_another(self, older):
        with pytest.raises(pq.InputError, match=r"with other settings \(ema 0\.0\): give those"):
            finished_report(replace(older, ema=0.5))
        with pytest.raises(pq.InputError, match=r"with other settings \(augmentation "):
            finished_report(replace(older, augmentation=Augmentation(flip=True)))

    def test_nor_by_a_field_of_the_recipe_or_its_overrides(self, tmp_path):
        known, now = self.identity(tmp_path), self.identity(tmp_path)
        del known["recipe.tuning_epochs"], known["recipe.overrides"][0]["clip"], known["recipe.overrides"][1]["weights"]
        assert not changed_settings(known, now)
        assert changed_settings(known, now | {"recipe.tuning_epochs": 3}) == "recipe.tuning_epochs 0"
        del known["recipe.overrides"]
        assert changed_settings(known, now).startswith("recipe.overrides []")

    def test_a_recipe_of_defaults_is_not_none_at_all(self, tmp_path):
        quantized = self.identity(tmp_path, "{}")
        floating = identity_of(TrainingConfig(), load_dataset("digits", split="train"))
        assert changed_settings(floating, quantized) == "recipe None"
        assert changed_settings(quantized, floating) == "recipe.name 'custom'"

    def test_another_recipe_is_told_by_its_name_and_one_of_the_same_name_by_its_fields(self, tmp_path):
        known = self.identity(tmp_path)
        changed = known | {"recipe.clip": "mse", "recipe.weights": "int2"}
        assert changed_settings(known, changed) == "recipe.weights 'int4', recipe.clip 'minmax'"
        assert changed_settings(known, changed | {"recipe.name": "mine", "seed": 5}) == (
            "seed 0, recipe.name 'custom', recipe.weights 'int4', recipe.clip 'minmax'"
        )
        named = known | {"recipe.name": "mine"}
        assert changed_settings(named, changed | {"seed": 5}) == "seed 0, recipe.name 'mine'"

    def test_a_recipe_without_a_name_is_told_by_what_it_sets(self, tmp_path):
        floating = identity_of(TrainingConfig(learning_rate=0.1), load_dataset("digits", split="train"))
        said = changed_settings(self.identity(tmp_path, "{weights: int4, clip: mse}"), floating)
        assert said == "recipe.weights 'int4', recipe.clip 'mse'"


class TestOtherSettings:
    """They are named, as those of an interrupted run are; nothing is written over."""

    def refused(self, config, said):
        with pytest.raises(pq.InputError) as raised:
            finished_report(config)
        message = str(raised.value)
        assert f"{report_path(config)} is of a finished run with other settings (" in message
        assert said in message
        assert message.endswith("another --output to keep it, or --resume false to train anew over it")

    def test_a_device_that_is_none_is_no_setting(self, finished):
        with pytest.raises(pq.InputError, match="device must be cpu, cuda or cuda:N, got 'gpu'"):
            finished_report(replace(finished, device="gpu"))

    def test_a_rate(self, finished):
        self.refused(replace(finished, learning_rate=0.01), "(learning_rate 0.1): ")

    def test_more_epochs(self, finished):
        self.refused(replace(finished, epochs=3), "(epochs 2; the learning rate falls over all epochs, so that more or")

    def test_the_best_epoch_after_all(self, finished):
        said = f"(keep 'last'; the weights of its best epoch are in {best_path(finished)}): "
        self.refused(replace(finished, keep="best"), said)

    def test_images(self, finished):
        report = json.loads(report_path(finished).read_text())
        report["identity"]["images"] = "sha256 other"
        report_path(finished).write_text(json.dumps(report))
        self.refused(finished, "(images 'sha256 other'): ")

    def test_where_things_lie_is_no_setting(self, finished):
        assert finished_report(replace(finished, workers=0, tensorboard=finished.output.parent / "logs")) is not None

    def test_by_the_command_on_one_line(self, finished, capsys):
        flags = ["--arch", "mlp", "--epochs", "3", "--batch-size", "256", "--device", "cpu"]
        with pytest.raises(pq.InputError, match="is of a finished run with other settings"):
            command.main([*flags, "--output", str(finished.output)])
        assert capsys.readouterr().out == ""
