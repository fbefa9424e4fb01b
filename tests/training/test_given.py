"""What a command line's files of settings hold is known before it is used; a mistake names file, setting and remedy."""

import json
import os
import threading

import pytest

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.training import Augmentation, Qat, TrainingConfig
from pytorch_quantizer.training.flags import parse_training
from pytorch_quantizer.training.given import KNOWN, read_given


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(arguments, said):
    with pytest.raises(InputError) as raised:
        parse_training(arguments)
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "mine.yaml: unknown setting 'epoch' (did you mean 'epochs'?)"),
        ("qat: {grid_rat: 1}", "mine.yaml: unknown setting 'qat.grid_rat' (did you mean 'grid_rate'?)"),
        ("qat.grid_rat: 1", "mine.yaml: unknown setting 'qat.grid_rat' (did you mean 'qat.grid_rate'?)"),
        ("grid_rate: 1", "mine.yaml: unknown setting 'grid_rate' (did you mean 'qat.grid_rate'?)"),
        ("batch-size: 1", "mine.yaml: unknown setting 'batch-size' (did you mean 'batch_size'?)"),
        ("augmentation: {xyz: 1}", "mine.yaml: unknown setting 'augmentation.xyz'; known: shift, rotation, "),
        ("2: 1", f"mine.yaml: unknown setting 2; known: {', '.join(KNOWN)}"),
        ("config: other.yaml", "mine.yaml: unknown setting 'config'; known: arch, "),
        ("[1, 2]", "mine.yaml must hold a mapping of settings, such as epochs: 3; got list"),
        ("", "mine.yaml must hold a mapping of settings, such as epochs: 3; got NoneType"),
        ("a: [1, 2", "mine.yaml is neither YAML nor JSON: "),
        ("epochs: many", "mine.yaml: epochs must be a whole number, got 'many'"),
        ("batch_size: x", "mine.yaml: batch_size must be a whole number, got 'x'"),
        ("keep: first", "mine.yaml: keep must be one of last, best, got 'first'"),
        ("augmentation: {scaling: 2}", "mine.yaml: augmentation needs shift, rotation >= 0 and scaling in [0, 1)"),
        ("qat: {temperature: 0}", "mine.yaml: qat.temperature must be positive, got 0"),
    ],
)
def test_a_mistake_in_a_file(here, text, said):
    (here / "mine.yaml").write_text(text)
    refused(["--config", "mine.yaml"], said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "absent.yaml"], "--config absent.yaml isn't there: give a file of settings, YAML or JSON"),
        (["--config", "~nosuchuser/c.yaml"], "--config ~nosuchuser/c.yaml isn't there: give a file of settings"),
        (["--qat", "~nosuchuser/q.yaml"], "--qat ~nosuchuser/q.yaml isn't there: give a file of settings"),
        (["--config", ""], "--config '' isn't there: give a file of settings, YAML or JSON"),
        (["--config=."], "--config . is a folder: give a file of settings, YAML or JSON"),
        (["--config"], "argument --config: expected one argument"),
        (["--config", "epoch: 3"], "epoch: 3: unknown setting 'epoch' (did you mean 'epochs'?)"),
        (["--qat", "{grid_rat: 1}"], "{grid_rat: 1}: unknown setting 'qat.grid_rat' (did you mean 'grid_rate'?)"),
        (["--qat", "{norms: 3}"], "--qat.norms must be true or false, got '3'"),
        (["--augmentation", "2"], "--augmentation 2 isn't there: give a file of settings"),
    ],
)
def test_a_mistake_in_what_names_it(arguments, said):
    refused(arguments, said)


@pytest.mark.parametrize(
    ("value", "text", "said"),
    [
        ("q.json", '{"grid_rat": 1}', "sub/q.json: unknown setting 'qat.grid_rat' (did you mean 'grid_rate'?)"),
        ("./q.json", '{"temperature": 0}', "sub/./q.json: qat.temperature must be positive, got 0"),
        ("q.json", '{"norms": 3}', "sub/q.json: qat.norms must be true or false, got"),
        ("q.json", "[1]", "sub/q.json must hold a mapping of settings"),
        ("q.json", "a: [1, 2", "sub/q.json is neither YAML nor JSON: "),
        ("absent.json", "", "sub/mine.yaml: qat sub/absent.json isn't there: give a file of settings, YAML or JSON"),
        (".", "", "sub/mine.yaml: qat sub/. is a folder: give a file of settings"),
        ("'{grid_rat: 1}'", "", "sub/mine.yaml: unknown setting 'qat.grid_rat' (did you mean 'grid_rate'?)"),
    ],
)
def test_a_mistake_in_a_groups_file_that_a_config_names(here, value, text, said):
    (here / "sub").mkdir()
    (here / "sub" / "mine.yaml").write_text(f"recipe: w8a8\nqat: {value}\n")
    (here / "sub" / "q.json").write_text(text)
    refused(["--config", "sub/mine.yaml"], said)


def test_a_flags_mistake_is_no_files(here):
    (here / "mine.yaml").write_text("epochs: 3\nbatch_size: 8\n")
    refused(["--config", "mine.yaml", "--epochs", "0"], "epochs must be at least 1, got 0")
    refused(["--config", "mine.yaml", "--batch-size=x"], "--batch-size must be a whole number, got 'x'")


def test_a_report_is_no_config(here):
    report = {"config": {"arch": "resnet20"}, "test": {}, "epochs": [{"epoch": 1}], "seconds": 1.0}
    (here / "mine.json").write_text(json.dumps(report))
    refused(["--config", "mine.json"], "mine.json is a report of pq train, not a config: give the file that it was")


def test_files_and_places(here):
    (here / "mine.yaml").write_text("_comment: x\nepochs: 3\nqat: {_why: y, norms: false}\nkeep: best\n")
    (here / "moves.yaml").write_text("shift: 2\n")
    given = read_given(["--config", "mine.yaml", "--augmentation=moves.yaml", "--epochs", "4", "--seed=1"])
    assert [path.name for path in given.files] == ["mine.yaml", "moves.yaml"]
    assert given.places == {
        "epochs": "",
        "qat": "mine.yaml",
        "qat.norms": "mine.yaml",
        "keep": "mine.yaml",
        "augmentation": "moves.yaml",
        "augmentation.shift": "moves.yaml",
        "seed": "",
    }


def test_a_groups_file_lies_beside_the_config_that_names_it(here, monkeypatch):
    (here / "sub").mkdir()
    (here / "sub" / "mine.yaml").write_text("epochs: 3\naugmentation: a.json\n")
    (here / "sub" / "a.json").write_text('{"shift": 2}')
    (here / "a.json").write_text('{"shift": 1}')
    (here / "home.yaml").write_text("augmentation: ~/a.json")
    monkeypatch.setenv("HOME", str(here / "sub"))
    for config, shift in [
        ("sub/mine.yaml", 2),
        ("sub/../sub/mine.yaml", 2),
        ("home.yaml", 2),
        ("augmentation: a.json", 1),
    ]:
        given = read_given(["--config", config])
        assert parse_training(["--config", config]).augmentation == Augmentation(shift=shift)
        assert given.files[-1].samefile(here / "sub" / "a.json" if shift == 2 else here / "a.json")
    assert read_given(["--config", "sub/mine.yaml"]).places == {
        "epochs": "sub/mine.yaml",
        "augmentation": "sub/a.json",
        "augmentation.shift": "sub/a.json",
    }


def test_what_is_right_stays_right(here):
    (here / "moves.yaml").write_text("{_why: y, shift: 2}")
    found = parse_training(["--config", "{epochs: 3}", "--augmentation", "moves.yaml", "--recipe", "w4a4_statistical"])
    assert found == TrainingConfig(epochs=3, augmentation=Augmentation(shift=2), recipe="w4a4_statistical")
    assert parse_training(["--qat", "{norms: false}", "--recipe", "w8a8"]).qat == Qat(norms=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "4", "--weight-decay", "-0", "--qat.norms=false", "--config", "mine.yaml", "--qat", "q.json"],
        ["--epochs=4", "--qat", "q.json", "--weight_decay=-0", "--config=mine.yaml", "--qat.norms", "false"],
        ["--config", "mine.yaml", "--qat", "q.json", "--epochs", "4", "--weight_decay", "-0", "--qat.norms", "false"],
    ],
)
def test_flags_win_in_whatever_order(here, arguments):
    (here / "mine.yaml").write_text("epochs: 3\nweight_decay: 1.0\nrecipe: w8a8\nqat: {norms: true, temperature: 2}\n")
    (here / "q.json").write_text('{"norms": true, "temperature": 3, "grid_rate": 1}')
    assert parse_training(arguments) == TrainingConfig(
        recipe="w8a8", epochs=4, weight_decay=0.0, qat=Qat(norms=False, temperature=3, grid_rate=1)
    )


def test_a_pipe_is_read_once(here):
    os.mkfifo(here / "pipe")
    writer = threading.Thread(target=(here / "pipe").write_text, args=("epochs: 7\n",))
    writer.start()
    assert parse_training(["--config", "pipe"]).epochs == 7
    writer.join()


def test_a_pipe_that_holds_no_text(here):
    os.mkfifo(here / "pipe")
    writer = threading.Thread(target=(here / "pipe").write_bytes, args=(b"\xff\xfe",))
    writer.start()
    refused(["--config", "pipe"], "a config file must be UTF-8 text, YAML or JSON; given was --config=pipe")
    writer.join()
