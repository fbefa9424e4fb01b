"""pq train: flags over config over defaults; a user's mistake is one line on stderr and exit code 2."""

import json
import sys
from pathlib import Path

import pytest

import pytorch_quantizer as pq
from pytorch_quantizer import training
from pytorch_quantizer.command_line import run
from pytorch_quantizer.commands import train as command
from pytorch_quantizer.models import bundled_checkpoint
from pytorch_quantizer.training import Augmentation, Qat, TrainingConfig
from pytorch_quantizer.training.config import weights_path

WEIGHTS = str(bundled_checkpoint("digits_resnet20"))
CONFIGS = Path(__file__).parents[2] / "scripts" / "configs"


def exit_code(arguments):
    with pytest.raises(SystemExit) as stop:
        run("pq train", lambda: command.main(arguments))
    return stop.value.code


class TestSettings:
    def test_nothing_given_is_the_defaults(self):
        assert command.parse([]) == TrainingConfig()

    def test_flags_win_over_the_file_and_the_file_over_the_defaults(self):
        config = command.parse(["--config", str(CONFIGS / "digits_resnet20.yaml"), "--epochs", "3"])
        assert config.epochs == 3
        assert config.threads == 2
        assert config.augmentation == Augmentation(shift=1, rotation=12, scaling=0.1)

    def test_dashes_and_underscores_mean_the_same(self):
        dashed = command.parse(["--batch-size", "8", "--learning-rate=1e-2", "--weight_decay", "-0"])
        assert dashed == TrainingConfig(batch_size=8, learning_rate=0.01, weight_decay=0)

    def test_json_with_comments(self, tmp_path):
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"_comment": "why", "epochs": 7, "augmentation": {"_comment": "x", "flip": True}}))
        config = command.parse(["--config", str(file)])
        assert config == TrainingConfig(epochs=7, augmentation=Augmentation(flip=True))

    def test_json_indented_by_tabs(self, tmp_path):
        file = tmp_path / "config.json"
        file.write_text(
            '{\n\t"_comment": "why",\n\t"epochs": 7,\n\t"augmentation": {\n\t\t"_x": [1],\n\t\t"shift": 2\n\t}\n}\n'
        )
        assert command.parse(["--config", str(file)]) == TrainingConfig(epochs=7, augmentation=Augmentation(shift=2))

    def test_numbers_as_yaml_1_2_writes_them(self, tmp_path):
        (tmp_path / "config.yaml").write_text(
            "recipe: w8a8\nlearning_rate: 1e-2\nweight_decay: 5E-4\nqat: {grid_rate: 1.5e0}\n"
        )
        config = command.parse(["--config", str(tmp_path / "config.yaml")])
        assert config == TrainingConfig(recipe="w8a8", learning_rate=0.01, weight_decay=5e-4, qat=Qat(grid_rate=1.5))

    def test_the_shipped_configs_are_read(self):
        configs = sorted(path for path in CONFIGS.glob("*") if not path.name.startswith("sweep"))
        read = {path.name: command.parse(["--config", str(path)]) for path in configs}
        assert read["cifar10_resnet20.json"].download
        assert read["cifar10_resnet20_w2a2.yaml"].recipe == "w2a2_qat"
        assert read["cifar10_resnet20_w2a2.yaml"].qat.norms

    def test_training_with_a_recipe_has_its_own_rate_and_output(self):
        config = command.parse(["--recipe", "w4a4_statistical", "--qat.norms", "false"])
        assert config.learning_rate == 0.01
        assert str(weights_path(config)) == "runs/digits_resnet20_w4a4_statistical.safetensors"
        assert not config.qat.norms
        assert TrainingConfig().learning_rate == 0.1


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--epochs", "0"], "epochs must be at least 1, got 0"),
            (["--epochs", "many"], "many"),
            (["--epoch", "3"], "--epoch"),
            (["--nonsense", "1"], "nonsense"),
            (["--config", "absent.yaml"], "absent.yaml"),
            (["--dataset", "svhn"], "unknown data set 'svhn'"),
            (["--arch", "resnet21"], "unknown arch 'resnet21': did you mean"),
            (["--dataset", "mnist", "--data", "absent"], "absent is not a folder"),
            (["--augmentation.scaling", "2"], "scaling in [0, 1)"),
            (["--recipe", "w8a8"], "begins with a trained network: give --checkpoint FILE"),
            (["--recipe", "w9", "--checkpoint", "absent.th"], "absent.th is not a file"),
            (["--recipe", "~nosuchuser/r.yaml", "--checkpoint", WEIGHTS], "the recipe ~nosuchuser/r.yaml: No such"),
            (["--checkpoint", "~nosuchuser/a.th"], "~nosuchuser/a.th"),
            (["--keep", "first"], "keep must be one of last, best, got 'first'"),
            (["--ema", "1"], "ema must lie in [0, 1), got 1.0"),
            (["--qat.temperature", "0"], "qat.temperature must be positive"),
            (["--dataset", "imagenet", "--download", "true"], "imagenet can't be downloaded"),
            (["--threads", "-3"], "threads must be at least 1, got -3"),
            (["--warmup-epochs", ".inf"], "warmup_epochs must be a finite number, got inf"),
            (["--qat.grids", "learned"], "qat.grids must be one of lsq_plus, lsq, fixed, got 'learned'"),
            (["--qat.grids", "fixed"], "qat.grids fixed can't keep norms"),
            (["--config", sys.executable], f"must be UTF-8 text, YAML or JSON; given was --config {sys.executable}"),
        ],
    )
    def test_one_line_and_exit_code_2(self, tmp_path, monkeypatch, capsys, arguments, said):
        monkeypatch.chdir(tmp_path)
        assert exit_code(arguments) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.count("\n") == 1
        assert output.err.startswith("pq train: error: ")
        assert said in output.err

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("augmentation: 5", "augmentation must be a mapping that may hold shift, rotation, scaling, flip; got 5"),
            ("augmentation:", "augmentation must be a mapping that may hold shift, rotation, scaling, flip; got None"),
            ("qat: [1]", "qat must be a mapping that may hold grid_rate, "),
            ("epochs: null", "epochs must be a whole number, got None"),
            ("keep: null", "keep must be text, got None"),
            ("bfloat16: null", "bfloat16 must be true or false, got None"),
            ("qat: {grid_rate: null}", "qat.grid_rate must be a finite number, got None"),
            ("seed: 2024-13-01", "month must be in 1..12"),
        ],
    )
    def test_a_file_with_values_of_another_kind(self, tmp_path, monkeypatch, capsys, text, said):
        monkeypatch.setattr(command, "train", lambda config: pytest.fail("trained"))
        (tmp_path / "config.yaml").write_text(text)
        assert exit_code(["--config", str(tmp_path / "config.yaml")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error

    def test_unknown_settings_in_a_file(self, tmp_path, capsys):
        (tmp_path / "config.yaml").write_text("epoches: 3\n")
        assert exit_code(["--config", str(tmp_path / "config.yaml")]) == 2
        assert "epoches" in capsys.readouterr().err

    def test_a_file_that_is_no_yaml(self, tmp_path, capsys):
        (tmp_path / "config.yaml").write_text("a: [1, 2\n")
        assert exit_code(["--config", str(tmp_path / "config.yaml")]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_bug_keeps_its_traceback(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        def bug(config):
            raise ZeroDivisionError

        monkeypatch.setattr(command, "train", bug)
        with pytest.raises(ZeroDivisionError):
            run("pq train", lambda: command.main([]))


class TestQatWithoutARecipe:
    """Settings of training with quantization never train in float without a word."""

    SAID = "qat is of training with quantization, and no recipe says how to quantize: give --recipe NAME or FILE"

    @pytest.mark.parametrize(
        "text", ["qat: {grid_rate: 0.1}", "qat.norms: true", "qat: {}", "recipe: null\nqat.norms: false"]
    )
    def test_in_a_file(self, tmp_path, text):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(pq.InputError) as raised:
            command.parse(["--config", str(tmp_path / "mine.yaml")])
        assert str(raised.value).startswith(f"{tmp_path / 'mine.yaml'}: {self.SAID}")

    @pytest.mark.parametrize("flags", [["--qat.norms", "true"], ["--qat.grid-rate=0.1"], ["--qat", "{norms: false}"]])
    def test_by_a_flag(self, flags):
        with pytest.raises(pq.InputError) as raised:
            command.parse(flags)
        assert str(raised.value).startswith(self.SAID)
        assert command.parse([*flags, "--recipe", "w8a8"]).recipe == "w8a8"

    def test_by_a_program(self):
        with pytest.raises(pq.InputError, match="qat is of training with quantization"):
            TrainingConfig(qat=Qat(norms=False))
        assert TrainingConfig(qat=Qat()).recipe is None

    def test_all_settings_as_they_are_printed_train_in_float(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            command.parse(["--print_config"])
        (tmp_path / "all.yaml").write_text(capsys.readouterr().out)
        assert command.parse(["--config", str(tmp_path / "all.yaml")]) == TrainingConfig()


class TestFilesThatAreRead:
    """None is written over: not the config, the checkpoint or the recipe, whichever file of training it would be."""

    @pytest.fixture(autouse=True)
    def untrained(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("pytorch_quantizer.training.session._run_epochs", lambda *_: pytest.fail("trained"))

    def lost(self, capsys, arguments, *said):
        assert exit_code([*arguments, "--epochs", "1", "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for part in said:
            assert part in error

    @pytest.mark.parametrize(
        "name", ["a.json", "a.epochs.csv", "a.safetensors", "a.best.safetensors", "a.state.safetensors"]
    )
    def test_a_config_that_an_output_would_be(self, tmp_path, capsys, name):
        (tmp_path / name).write_text("batch_size: 8\n")
        self.lost(
            capsys,
            ["--config", name, "--output", "a.safetensors"],
            f"{name}, the config, would be lost",
            "give another",
        )
        assert (tmp_path / name).read_text() == "batch_size: 8\n"

    def test_an_output_that_the_config_names_itself(self, tmp_path, capsys):
        (tmp_path / "mine.json").write_text('{"output": "sub/../mine.safetensors"}')
        (tmp_path / "sub").mkdir()
        self.lost(capsys, ["--config", "mine.json"], "training to sub/../mine.safetensors writes its report to")

    def test_a_config_under_another_name(self, tmp_path, capsys):
        (tmp_path / "real.json").write_text("{}")
        (tmp_path / "mine.json").symlink_to("real.json")
        self.lost(capsys, ["--config", "mine.json", "--output", "real.safetensors"], "writes its report to real.json")
        self.lost(capsys, ["--config", "real.json", "--output", "mine.safetensors"], "writes its report to mine.json")

    def test_settings_of_a_group(self, tmp_path, capsys):
        (tmp_path / "moves.json").write_text('{"shift": 1}')
        self.lost(capsys, ["--augmentation", "moves.json", "--output", "moves.safetensors"], "moves.json, the config, ")
        (tmp_path / "mine.yaml").write_text("augmentation: moves.json\n")
        self.lost(capsys, ["--config", "mine.yaml", "--output", "moves.safetensors"], "moves.json, the config, ")

    def test_checkpoint_and_recipe(self, tmp_path, capsys):
        weights = tmp_path / "net.best.safetensors"
        weights.write_bytes(bundled_checkpoint("digits_resnet20").read_bytes())
        self.lost(
            capsys,
            ["--checkpoint", str(weights), "--output", "net.safetensors"],
            "the checkpoint, would be lost: training to net.safetensors writes its best epoch to net.best.safetensors",
        )
        (tmp_path / "r.json").write_text('{"weights": "int4"}')
        flags = ["--recipe", "r.json", "--checkpoint", str(weights), "--output", "r.safetensors"]
        self.lost(capsys, flags, "r.json, the recipe, would be lost")

    def test_a_page(self, tmp_path, capsys):
        (tmp_path / "mine.json").write_text("{}")
        self.lost(
            capsys, ["--config", "mine.json", "--report", "mine.json"], "the page of --report", "another --report"
        )
        self.lost(
            capsys,
            ["--output", "a.safetensors", "--report", "a.json"],
            "--report a.json is where training writes its re",
        )

    def test_programs_are_told_as_well(self, tmp_path):
        weights = tmp_path / "net.safetensors"
        weights.write_bytes(bundled_checkpoint("digits_resnet20").read_bytes())
        with pytest.raises(pq.InputError, match="the checkpoint, would be lost"):
            training.train(TrainingConfig(checkpoint=weights, output=weights))


def test_a_config_beside_the_output_is_kept(tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: 1\ndevice: cpu\n")
    command.main(["--config", str(tmp_path / "mine.yaml"), "--output", str(tmp_path / "mine.safetensors")])
    assert (tmp_path / "mine.yaml").read_text() == "epochs: 1\ndevice: cpu\n"
    assert (tmp_path / "mine.json").is_file()


def test_trains_and_says_what_came_out(tmp_path, capsys):
    output = tmp_path / "model.safetensors"
    command.main(["--epochs", "1", "--device", "cpu", "--output", str(output)])
    said = capsys.readouterr().out
    assert said.startswith("trained resnet20 on digits in float, without a recipe\n")
    assert "test: top-1 " in said
    assert "(epoch 1 of 1; best on validation images was 1)" in said
    assert output.is_file()


@pytest.mark.parametrize(
    ("accuracies", "best", "said"),
    [
        ((0.5, 0.9, 0.8), 2, "(epoch 3 of 3; best on validation images was 2)"),
        ((0.5, 0.9, 0.9), 2, "(epoch 3 of 3; best on validation images was 2, the earliest of 2 equals)"),
        ((0.7, 0.7, 0.7), 1, "(epoch 3 of 3; best on validation images was 1, the earliest of 3 equals)"),
    ],
)
def test_of_equals_the_earliest_is_said_to_be_it(tmp_path, monkeypatch, capsys, accuracies, best, said):
    monkeypatch.chdir(tmp_path)
    report = {
        "config": {"arch": "mlp", "dataset": "digits", "recipe": "w8a8", "epochs": 3, "output": "a.safetensors"},
        "test": {"top1": 0.5, "samples": 2, **{key: {"macro": 0.5} for key in ("precision", "recall", "f1")}},
        "epochs": [{"epoch": i, "validation": {"accuracy": value}} for i, value in enumerate(accuracies, 1)],
        "best_epoch": best,
        "written_epoch": 3,
        "seconds": 1.0,
    }
    monkeypatch.setattr(command, "train", lambda config: report)
    command.main([])
    printed = capsys.readouterr().out
    assert said in printed
    assert "trained mlp on digits with quantization, recipe w8a8" in printed


def test_trains_with_a_recipe(tmp_path):
    output, checkpoint = tmp_path / "model.safetensors", bundled_checkpoint("digits_resnet20")
    recipe = tmp_path / "w4a4.yaml"
    recipe.write_text("{weights: int4, activations: int4}")
    flags = ["--recipe", str(recipe), "--checkpoint", str(checkpoint), "--epochs", "1", "--device", "cpu"]
    command.main([*flags, "--output", str(output)])
    assert pq.load(output).recipe.weights == "int4"
    assert json.loads(output.with_suffix(".json").read_text())["test"]["top1"] > 0.9
