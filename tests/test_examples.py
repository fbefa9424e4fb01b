"""Every example of the READMEs and docs/ runs, on few images, or a table here says why it doesn't; its flags exist."""

import contextlib
import importlib
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from examples import ROOT, blocks, docstring_commands, shell_lines, spans, words
from real_data import ROOT as DATA

import pq_command
import pytorch_quantizer as pq
from pytorch_quantizer.data import calibration_loader, load_dataset, make_loader
from pytorch_quantizer.models import bundled_checkpoint, create_model

BLOCKS = blocks()
LANGUAGES = ("python", "bash", "yaml", "text", "")
# Commands that no test runs, by how they begin, with the reason. Their flags are checked all the same.
NOT_RUN = {
    "./scripts/quickstart.sh": "sets up an environment; CI does by scripts/setup.sh",
    "./scripts/test.sh": "runs the tests themselves",
    "pip install": "installs",
    "python benchmarks/": "takes minutes to hours; tests/test_benchmarks.py runs the benchmarks' parts",
    "python scripts/reproduce/": "takes minutes to hours; tests/scripts/test_reproduce_scripts.py",
    "torchrun": "starts processes; tests/commands/test_torchrun.py does",
}
NOT_RUN_WITH = {
    "--dataset imagenet": "needs torchvision's weights, which no test fetches",
    "--arch resnet50": "needs torchvision's weights, which no test fetches",
    "_w2a2.yaml": "trains for hours",
    "cifar10_resnet20.json": "fetches CIFAR-10 and trains for hours",
    "--ray": "needs a cluster; tests/sweeps/ starts one",
    "sweep_cifar10.yaml": "is 24 points; tests/commands/test_sweep_command.py measures fewer",
    "--live": "serves until it is stopped; tests/reports/ does",
}
FEW = {  # flags that make a run short, where the command has them and the example doesn't give them
    "--limit": "8",
    "--calibration-samples": "32",
    "--device": "cpu",
    "--epochs": "1",
    "--bits": "w3a3",
    "--seeds": "0",
    "--repeats": "1",
    "--reconstruction-iterations": "2",
    "--tuning-epochs": "0",
}
STANDING_FOR = {"R": "w8a8", "RECIPE": "w8a8", "OUT": "out", "FOLDER": "folder"}


def reason(command):
    """Why a command isn't run, None where it is."""
    begins = (why for start, why in NOT_RUN.items() if command.startswith(start))
    return next(begins, next((why for part, why in NOT_RUN_WITH.items() if part in command), None))


def shell_examples():
    return [
        pytest.param(command, id=f"{block}: {command}")
        for block in BLOCKS
        if block.language == "bash"
        for command in shell_lines(block.text)
    ]


def command_of(name):
    return importlib.import_module(f"pytorch_quantizer.commands.{pq_command.module_name(name)}")


def flags_of(name):
    parser = command_of(name).parser()
    return {flag for action in parser._actions for flag in action.option_strings}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in which the repository's own lie, as where examples are typed; nothing is written into those."""
    for name in ("scripts", "benchmarks", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestBlocks:
    @pytest.mark.parametrize("block", BLOCKS, ids=str)
    def test_is_of_a_language_that_is_tested(self, block):
        assert block.language in LANGUAGES

    @pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=str)
    def test_yaml_is_a_recipe_or_a_sweep(self, block, tmp_path):
        if {"recipes", "points"} & yaml.safe_load(block.text).keys():
            plan = importlib.import_module("pytorch_quantizer.sweeps.plan")
            (tmp_path / "sweep.yaml").write_text(block.text)
            assert plan.read_plan(tmp_path / "sweep.yaml", {})[1]
        else:
            assert pq.Recipe.from_yaml(block.text) != pq.Recipe()

    @pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "python"}))
    def test_python_runs(self, page, folder):
        """A page's blocks one after the other; README's have a network and images, as its reader does."""
        pytest.importorskip("onnxruntime")
        names = at_hand() if page == "README.md" else {}
        for block in BLOCKS:
            if (block.page, block.language) == (page, "python"):
                exec(compile("\n" * block.line + block.text, ROOT / page, "exec"), names)


def at_hand():
    """What README's Python takes for granted: a trained network, its images, and the package."""
    checkpoint = bundled_checkpoint("digits_resnet20")
    loader = calibration_loader(load_dataset("digits", split="train"), 32, batch_size=32, seed=0)
    return {
        "model": create_model("resnet20", num_classes=10, in_channels=1, checkpoint=checkpoint).eval(),
        "loader": loader,
        "test_loader": make_loader(load_dataset("digits"), 32, limit=32),
        "images": next(iter(loader))[0],
    }


@pytest.mark.parametrize("command", shell_examples())
def test_shell_runs(command, folder, capsys):
    why = reason(command)
    if why is not None:
        check_flags(command, folder)
        return
    if "--export-onnx" in command:
        pytest.importorskip("onnxruntime")
    name, arguments = words(command)
    assert name is not None, f"add {command!r} to NOT_RUN with a reason, or teach words() to run it"
    lay_files(arguments, folder)
    with contextlib.suppress(SystemExit) if "--help" in (name, *arguments) else contextlib.nullcontext():
        pq_command.main([name, *shortened(name, filled(arguments))])
    assert capsys.readouterr().out


def filled(arguments):
    """Placeholders filled: DIR by real data, or everything about the data set dropped for the embedded one."""
    if "DIR" in arguments:
        data = DATA / dataset_of(arguments)
        if not data.exists():
            return without(arguments, "--dataset", "--data", "--arch", "--checkpoint")
        weights = {"resnet20.th": str(data / "resnet20.th"), "DIR": str(data)}
        arguments = [weights.get(argument, argument) for argument in arguments]
    standing = STANDING_FOR | {"FILE": str(bundled_checkpoint("digits_resnet20"))}
    return [standing.get(argument, argument) for argument in arguments]


def dataset_of(arguments):
    return arguments[arguments.index("--dataset") + 1] if "--dataset" in arguments else "cifar10"


def without(arguments, *flags):
    """The arguments without these flags and their values."""
    behind = {i + 1 for i, argument in enumerate(arguments) if argument in flags}
    return [argument for i, argument in enumerate(arguments) if argument not in flags and i not in behind]


def shortened(name, arguments):
    if name not in pq_command.COMMANDS or "--help" in arguments:
        return arguments
    given, known = {argument.partition("=")[0] for argument in arguments}, flags_of(name)
    few = [(flag, value) for flag, value in FEW.items() if flag in known and flag not in given]
    return [*arguments, *(part for pair in few for part in pair)]


def lay_files(arguments, folder):
    """Files that an example takes from one before it: statistics, a packed checkpoint, a folder of results."""
    for argument in arguments:
        if argument.startswith("results/") and argument.endswith(".yaml"):
            pq.Recipe.load(Path(argument).stem).save(folder / argument)
        elif argument.startswith("results/"):
            run(folder, "--output", argument)
        if re.fullmatch(r"(first|second)\.json", argument):
            run(folder, "--statistics-file", argument)
        if argument.endswith(".safetensors") and arguments[arguments.index(argument) - 1] != "--save":
            run(folder, "--recipe", "w8a8", "--save", argument)


def run(folder, *arguments):
    few = ("--limit", "8", "--calibration-samples", "32", "--device", "cpu", "--output", "before")
    pq_command.main(["run", *few, *arguments])
    shutil.rmtree(folder / "before", ignore_errors=True)


def check_flags(command, folder):
    """What isn't run is at least there: the script, its flags, the extra."""
    name, arguments = words(command)
    if name is not None:
        parse(name, arguments, folder)
    elif command.startswith("pip install"):
        extras = re.findall(r"\[([\w,]+)\]", command)
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {extra for group in extras for extra in group.split(",")} <= set(known)
    elif arguments[0].endswith(".py"):
        text = source_of(ROOT / arguments[0])
        assert [flag for flag in flags_in(arguments) if flag.strip("-").replace("-", "_") not in text] == []
    else:
        assert (ROOT / arguments[0]).exists()


def source_of(path):
    """A script's source, dashes as underscores; that of a table of scripts/reproduce with its flags'."""
    text = path.read_text()
    shared = ROOT / "pytorch_quantizer" / "experiments" / "reproduce_command.py"
    return (text + shared.read_text() if "reproduce_command" in text else text).replace("-", "_")


def flags_in(arguments):
    return [argument.partition("=")[0] for argument in arguments if re.match(r"--\w", argument)]


def parse(name, arguments, folder):
    """Read the flags as the command would. Placeholders become files that are there."""
    if "--help" in (name, *arguments):
        return
    assert name in pq_command.available(), f"there is no command {name}"
    unknown = set(flags_in(arguments)) - flags_of(name)
    if name == "train":
        unknown = {flag for flag in unknown if flag.replace("-", "_").replace("__", "--", 1) not in flags_of(name)}
    assert unknown == set()
    if name != "train":
        command_of(name).parser().parse_args(filled(arguments))


@pytest.mark.parametrize(("page", "span"), [pytest.param(page, span, id=f"{page}: {span}") for page, span in spans()])
def test_what_sentences_name_is_there(page, span, folder):
    if span.startswith("--"):
        flag = span.split()[0].partition("=")[0]
        assert any(flag in flags_of(name) for name in pq_command.available())
    elif span.startswith("pq ") and len(span.split()) == 2:
        assert span.split()[1] in ("--help", *pq_command.available())
    elif not re.search(r"[…{]", span):
        check_flags(span, folder)


@pytest.mark.parametrize("name", pq_command.available())
def test_a_commands_own_examples_can_be_typed(name, folder):
    examples = docstring_commands(command_of(name).__doc__)
    assert examples
    for example in examples:
        other, arguments = words(example)
        parse(other, arguments, folder)


def test_no_reason_is_left_over():
    commands = [command for block in BLOCKS if block.language == "bash" for command in shell_lines(block.text)]
    commands += [span for _, span in spans()]
    commands += [line for name in pq_command.available() for line in docstring_commands(command_of(name).__doc__)]
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in commands)] == []
    assert [part for part in NOT_RUN_WITH if not any(part in command for command in commands)] == []
