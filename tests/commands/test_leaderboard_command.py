"""pq leaderboard: the files it promises, resumed after an interruption, and cells that fail beside others."""

import re
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from command_runs import failing_line
from PIL import Image
from safetensors.torch import load_file

from pytorch_quantizer import InputError
from pytorch_quantizer.calibration.finished_blocks import FinishedBlocks
from pytorch_quantizer.commands import leaderboard as command
from pytorch_quantizer.experiments import cells, trained_cell
from pytorch_quantizer.experiments.leaderboard import METHODS
from pytorch_quantizer.experiments.leaderboard_table import COLUMNS
from pytorch_quantizer.models import create, create_model

FEW = ("--limit", "20", "--calibration-samples", "32", "--batch-size", "32", "--device", "cpu")
PART = ("--settings", "W3A3", "--methods", "minmax,second order", "--seeds", "0,1")


def start(folder, *arguments):
    code = command.main([*FEW, *PART, "--output", str(folder), *arguments])
    return code, pd.read_csv(folder / "leaderboard.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaderboard")
    return folder, start(folder)


@pytest.fixture
def computed(monkeypatch):
    """The names of the recipes that were computed, not kept."""
    done, real = [], cells.quantize

    def counted(model, recipe, *args, **kwargs):
        done.append(recipe.name)
        return real(model, recipe, *args, **kwargs)

    monkeypatch.setattr(cells, "quantize", counted)
    return done


def test_a_row_a_cell(unbroken):
    code, table = unbroken[1]
    assert code == 0
    assert list(table) == list(COLUMNS)
    assert list(zip(table["method"], table["seed"], strict=True)) == [
        *(("minmax", 0), ("second order", 0)),
        *(("minmax", 1), ("second order", 1)),
    ]
    assert set(table["weights"]) == set(table["activations"]) == {"int3"}
    assert set(table["samples"]) == {20}
    assert (table["error"] == "").all()
    assert (table["seconds"] >= 0).all()


def test_a_table_and_a_picture_beside_it(unbroken):
    text = (unbroken[0] / "leaderboard.md").read_text()
    assert "| second order | yes | " in text
    assert "Ranges and all that is learned come from 32 images" in text
    assert "on which qat trains for 20 epochs. Machine: " in text
    assert "Up to W3 all weights have zero points" in text
    assert re.search(r"Machine: .*, \d+ cores?, \d+ threads?, ", text)
    assert "<html" in (unbroken[0] / "leaderboard.html").read_text()


class TestWhatIsTold:
    def test_a_line_a_cell_with_its_place_among_all(self, unbroken, capsys):
        start(unbroken[0])
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
        assert [line.split()[0] for line in lines] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
        assert re.match(r"\[4/4\] resnet20 W3A3 narrow seed 1 second order +\d+\.\d\d%  \(kept\)$", lines[-1])

    @pytest.mark.parametrize("is_terminal", [True, False])
    def test_how_far_a_cell_is_where_that_is_seen(self, tmp_path, monkeypatch, is_terminal):
        shown, real = [], cells.quantize
        monkeypatch.setattr(cells, "quantize", lambda *a, **how: shown.append(how["progress"]) or real(*a, **how))
        monkeypatch.setattr(command.sys.stderr, "isatty", lambda: is_terminal, raising=False)
        start(tmp_path, "--methods", "minmax", "--seeds", "0")
        assert shown == [is_terminal]


class TestKeptOnly:
    def test_the_table_of_what_is_there(self, unbroken, computed):
        folder, (_, table) = unbroken
        code, found = start(folder, "--kept-only", "--methods", "mse,second order,qat", "--seeds", "1,2")
        assert (code, computed) == (0, [])
        wanted = table[(table["method"] == "second order") & (table["seed"] == 1)]
        assert found.to_dict("records") == wanted.to_dict("records")
        start(folder)  # the others are still there
        assert computed == []

    def test_nothing_is_computed_for_it_not_even_in_float(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(cells, "evaluate", None)
        with pytest.raises(InputError, match="holds none of these cells"):
            start(tmp_path, "--kept-only")
        assert [*tmp_path.rglob("*.json")] == []
        assert (
            "resnet20 float32 isn't kept, and so no cell of it is taken: leave --kept-only" in capsys.readouterr().out
        )

    def test_nothing_there_is_said(self, unbroken):
        with pytest.raises(InputError, match=r"--kept-only: .*cells holds none of these cells"):
            start(unbroken[0], "--kept-only", "--methods", "mse")


class TestJoined:
    """Tables of several runs become one."""

    @pytest.fixture
    def other(self, unbroken, tmp_path):
        """A table of another run: minmax with another result, and a method and width that this one hasn't."""
        table = unbroken[1][1]
        more = table.assign(top1=0.5, method=["minmax", "mse"] * 2, weights="int2")
        same = table[table["method"] == "minmax"].assign(top1=0.25)
        pd.concat([more, same]).to_csv(tmp_path / "other.csv", index=False)
        return tmp_path / "other.csv"

    def test_what_this_run_measures_wins(self, unbroken, other, tmp_path, computed):
        folder, (_, table) = unbroken
        code, found = start(folder, "--join", str(other))
        assert (code, computed) == (0, [])
        own = found[found["weights"] == "int3"].sort_values(["seed", "method"])
        assert own.to_dict("records") == table.to_dict("records")
        assert list(found[found["weights"] == "int2"]["method"]) == ["minmax", "minmax", "mse", "mse"]
        text = (folder / "leaderboard.md").read_text()
        assert "| mse | yes | – | 50.00 ± 0.00 " in text
        assert "Cells of 1 other table are as those runs found them, by their own grids, " in text

    def test_tables_alone(self, other, tmp_path, computed):
        code, found = start(tmp_path / "out", "--kept-only", "--join", str(other))
        assert (code, computed, len(found)) == (0, [], 6)
        assert set(found["top1"].astype(float)) == {0.25, 0.5}

    def test_of_another_network_is_said_before_a_cell_is_computed(self, other, tmp_path, computed):
        text = pd.read_csv(other).assign(samples=540)
        text.to_csv(other, index=False)
        said = (
            r"--join: .* resnet20 on digits has another number of test images: 20 in this run and 540 in .*other\.csv"
        )
        with pytest.raises(InputError, match=said):
            start(tmp_path, "--join", str(other))
        assert computed == []

    def test_seeds_of_another_policy_may_all_be_measured_anew(self, unbroken, tmp_path):
        folder, (_, table) = unbroken
        table.assign(weight_grid="symmetric").to_csv(tmp_path / "old.csv", index=False)
        code, found = start(folder, "--join", str(tmp_path / "old.csv"))
        assert code == 0
        assert set(found["weight_grid"]) == {"affine"}
        assert len(found) == len(table)
        code, found = start(folder, "--kept-only", "--join", str(tmp_path / "old.csv"))
        assert (code, len(found)) == (0, len(table))

    def test_but_not_some_of_them_which_is_told_before(self, unbroken, tmp_path, computed):
        table = unbroken[1][1]
        table.assign(weight_grid="symmetric").to_csv(tmp_path / "old.csv", index=False)
        said = r"minmax of .* has weight_grid affine \(seed 0, this run\) and symmetric \(seed 1, .*old\.csv\)"
        with pytest.raises(InputError, match=said):
            start(tmp_path / "out", "--seeds", "0", "--join", str(tmp_path / "old.csv"))
        assert computed == []

    def test_nor_do_two_others_that_differ(self, unbroken, tmp_path):
        """All their seeds are measured anew."""
        folder, (_, table) = unbroken
        table[table["seed"] == 0].assign(weight_grid="symmetric").to_csv(tmp_path / "first.csv", index=False)
        table[table["seed"] == 1].to_csv(tmp_path / "second.csv", index=False)
        assert start(folder, "--join", f"{tmp_path / 'first.csv'},{tmp_path / 'second.csv'}")[0] == 0

    def test_what_others_hold_stays_until_it_is_measured(self, unbroken, tmp_path, monkeypatch):
        table = unbroken[1][1].assign(top1=0.5)
        table.to_csv(tmp_path / "leaderboard.csv", index=False)

        def stopped(*_, **__):
            raise KeyboardInterrupt

        def first_alone(model, recipe, *args, real=cells.quantize, **kwargs):
            monkeypatch.setattr(cells, "quantize", stopped)
            return real(model, recipe, *args, **kwargs)

        monkeypatch.setattr(cells, "quantize", first_alone)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, "--join", str(tmp_path / "leaderboard.csv"))
        found = pd.read_csv(tmp_path / "leaderboard.csv")
        assert len(found) == 4
        assert list(found["top1"] == 0.5).count(True) == 3

    def test_a_cell_that_fails_here_is_not_hidden_by_another_s(self, unbroken, tmp_path, monkeypatch):
        unbroken[1][1].to_csv(tmp_path / "old.csv", index=False)

        def failing(*_, **__):
            raise RuntimeError("a bug")

        monkeypatch.setattr(cells, "quantize", failing)
        only = ("--methods", "minmax", "--seeds", "0")
        code, found = start(tmp_path / "out", *only, "--join", str(tmp_path / "old.csv"))
        assert (code, len(found)) == (1, 4)
        failed = found[found["error"] != ""]
        assert list(zip(failed["method"], failed["seed"], failed["error"], strict=True)) == [
            ("minmax", 0, "RuntimeError: a bug")
        ]


class TestResumed:
    def test_nothing_is_computed_again(self, unbroken, computed):
        folder, (_, table) = unbroken
        assert start(folder)[1].equals(table)
        assert computed == []

    def test_a_killed_run_goes_on_where_it_stopped(self, unbroken, computed, tmp_path, monkeypatch):
        def stopped(store, key, values, real=cells.CellStore.write, seen=[]):  # noqa: B006
            seen.append(key)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return real(store, key, values)

        with monkeypatch.context() as patch:
            patch.setattr(cells.CellStore, "write", stopped)
            with pytest.raises(KeyboardInterrupt):
                start(tmp_path)
        assert len(pd.read_csv(tmp_path / "leaderboard.csv")) == 1
        computed.clear()
        found = start(tmp_path)[1]
        assert computed == ["second order W3A3", "minmax W3A3", "second order W3A3"]
        assert found.drop(columns="seconds").equals(unbroken[1][1].drop(columns="seconds"))


class TestReconstruction:
    """A cell that learns block by block goes on behind its last finished block, to the same number."""

    PART = ("--methods", "brecq", "--seeds", "0", "--settings", "W2A2")

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch):
        short = {"reconstruction_iterations": 2, "reconstruction_images": 16, "reconstruction_batch": 8}
        monkeypatch.setitem(METHODS, "brecq", METHODS["brecq"] | short)

    @pytest.fixture
    def learned(self, monkeypatch):
        """The numbers of the blocks that were learned; ``stop`` of them are, then the run is killed."""
        written = SimpleNamespace(blocks=[], stop=None)

        def counted(finished, index, state, real=FinishedBlocks.write):
            if len(written.blocks) == written.stop:
                raise KeyboardInterrupt
            written.blocks.append(index)
            real(finished, index, state)

        monkeypatch.setattr(FinishedBlocks, "write", counted)
        return written

    def test_a_killed_cell_goes_on_behind_its_last_block(self, tmp_path, learned):
        unbroken = start(tmp_path / "unbroken", *self.PART)[1]
        every = [*learned.blocks]
        assert len(every) > 4
        learned.blocks, learned.stop = [], 4
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "killed", *self.PART)
        assert len([*(tmp_path / "killed" / "cells" / "unfinished").rglob("block-*")]) == 4
        learned.blocks, learned.stop = [], None
        code, found = start(tmp_path / "killed", *self.PART)
        assert (code, learned.blocks) == (0, every[4:])
        assert found.drop(columns="seconds").equals(unbroken.drop(columns="seconds"))

    def test_nothing_is_left_of_a_cell_that_is_finished(self, tmp_path, learned):
        start(tmp_path, *self.PART)
        assert learned.blocks
        assert [*(tmp_path / "cells" / "unfinished").rglob("*")] == []

    @pytest.mark.parametrize("what", ["threads", "code"])
    def test_blocks_of_other_threads_or_code_are_learned_again(self, tmp_path, learned, monkeypatch, threads, what):
        learned.stop = 4
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, *self.PART)
        learned.blocks, learned.stop = [], None
        if what == "threads":
            threads(torch.get_num_threads() + 1)
        else:
            monkeypatch.setattr(cells, "code_digest", lambda: "changed")
        code, table = start(tmp_path, *self.PART)
        assert (code, list(table["error"])) == (0, [""])
        assert learned.blocks[0] == 0
        assert [*(tmp_path / "cells" / "unfinished").rglob("block-*")] == []

    def test_memory_is_limited_where_something_is_learned(self, tmp_path, monkeypatch):
        given, real = {}, cells.quantize

        def kept(model, recipe, *args, **kwargs):
            given[recipe.name.split()[0]] = kwargs.get("max_memory")
            return real(model, recipe, *args, **kwargs)

        monkeypatch.setattr(cells, "quantize", kept)
        part = ("--methods", "minmax,brecq", "--seeds", "0", "--settings", "W2A2")
        assert start(tmp_path, *part, "--max-memory", "1GiB")[0] == 0
        assert given == {"minmax": None, "brecq": 2**30}


@pytest.mark.parametrize(
    "error", [InputError("it can't be"), RuntimeError("a bug")], ids=lambda error: type(error).__name__
)
def test_a_cell_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, error):
    real = cells.quantize

    def failing(model, recipe, *args, **kwargs):
        if recipe.name.startswith("minmax"):
            raise error
        return real(model, recipe, *args, **kwargs)

    monkeypatch.setattr(cells, "quantize", failing)
    code, table = start(tmp_path, "--seeds", "0")
    assert code == 1
    assert list(table["error"]) == [f"{type(error).__name__}: {error}", ""]
    assert table["top1"].iloc[0] == ""
    assert "failed" in (tmp_path / "leaderboard.md").read_text()
    monkeypatch.setattr(cells, "quantize", real)
    assert start(tmp_path, "--seeds", "0")[0] == 0  # tried again


class TestTrained:
    PART = ("--methods", "qat", "--seeds", "0", "--epochs", "1", "--settings", "W4A4")

    def test_a_network_is_trained_once_from_its_float_weights(self, tmp_path, monkeypatch):
        real, configs = trained_cell.train, []

        def counted(config, **kwargs):
            configs.append(config)
            return real(config, **kwargs)

        monkeypatch.setattr(trained_cell, "train", counted)
        code, table = start(tmp_path, *self.PART)
        assert code == 0
        assert list(table["method"]) == ["qat"]
        assert 0.5 < table["top1"].astype(float).iloc[0] <= 1
        [config] = configs
        assert (config.epochs, config.dataset, config.validation_fraction) == (1, "digits", 0.0)
        assert config.checkpoint is not None
        assert start(tmp_path, *self.PART)[1].equals(table)
        assert len(configs) == 1

    def test_torchvisions_weights_are_trained_from_too(self, tmp_path, monkeypatch):
        """Stand-ins for the weights and for ImageNet; nothing is loaded but by the leaderboard itself."""
        published, real, configs = [], trained_cell.train, []

        def load(model, arch):
            published.append(arch)
            torch.manual_seed(7)
            for module in model.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()

        monkeypatch.setattr(create, "_load_published", load)
        monkeypatch.setitem(trained_cell.SETTINGS, "batch_size", 8)
        monkeypatch.setattr(trained_cell, "train", lambda config, **how: configs.append(config) or real(config, **how))
        for split, wnid in product(("train", "val"), ("n01440764", "n01443537")):
            (tmp_path / "data" / split / wnid).mkdir(parents=True)
            for index in range(8):
                pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / wnid / f"{index}.png")
        images = ("--data", str(tmp_path / "data"), "--arch", "resnet18", "--image-size", "32")
        code, table = start(tmp_path / "out", *self.PART, *images)
        assert list(table["error"]) == [""]
        assert code == 0
        assert published == ["resnet18"]
        [config] = configs
        network = create_model("resnet18")
        load(network, "resnet18")
        weights = load_file(config.checkpoint)
        assert weights.keys() == network.state_dict().keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())

    def test_what_cannot_be_trained_is_a_row(self, tmp_path, monkeypatch):
        def diverging(config, **_):
            raise InputError("the loss is nan")

        monkeypatch.setattr(trained_cell, "train", diverging)
        code, table = start(tmp_path, *self.PART)
        assert code == 1
        assert table["error"].iloc[0] == "InputError: the loss is nan"


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--methods", "gtpq"), "did you mean 'gptq'?"),
            (("--settings", "4W4A"), "--settings must be like W4A8"),
            (("--seeds", "a"), "--seeds must be whole numbers"),
            (("--arch", "resnet21"), "resnet21"),
            (("--arch", "resnet20,resnet32", "--checkpoint", "a.th"), "as there are networks, 2, got 1"),
            (("--data", "/nowhere"), "/nowhere"),
            (("--methods", "minmax", "--epochs", "0"), "--epochs must be at least 1, got 0"),
            (("--join", "."), "is a folder: give the leaderboard.csv in it"),
            (("--join", "none.csv"), "can't read none.csv (No such file or directory): give the leaderboard.csv"),
            (("--join", __file__), "can't read"),
            (("--max-memory", "two"), "max_memory must be a number of bytes, as 512MiB or 2GB, got 'two'"),
            (("--arch", "resnet20,resnet32", "--methods", "minmax"), "no weights for resnet32 on digits: give --check"),
        ],
    )
    def test_one_line(self, capsys, tmp_path, arguments, said):
        assert said in failing_line(command, capsys, "--output", tmp_path, *arguments)
        assert [*tmp_path.rglob("*.json")] == []  # before any work

    def test_help_names_the_methods(self, capsys):
        with pytest.raises(SystemExit):
            command.main(["--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert all(method in text for method in METHODS)
