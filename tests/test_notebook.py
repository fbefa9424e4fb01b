"""optimal_alpha.ipynb runs top to bottom, says what is published, draws its figures and leaves maths to the package."""

import ast
import json
import os
import re
import resource
import shutil
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "optimal_alpha.ipynb"
CPU_SECONDS = 60
FIGURE_BYTES = 150_000
LAPLACE = ["1.8628", "2.8307", "3.8972", "5.0286", "6.2048", "7.4131", "8.6456", "9.8968"]
GAUSSIAN = ["1.2399", "1.7106", "2.1516", "2.5591", "2.9362", "3.2869", "3.6151", "3.9240"]
MAX = {  # levels, step, distortion at unit variance
    "laplace": ["4 1.0874 0.1963", "8 0.7309 0.07175", "16 0.4610 0.02535", "32 0.2800 0.008713"],
    "gaussian": ["4 0.9957 0.1188", "8 0.5860 0.03744", "16 0.3352 0.01154", "32 0.1881 0.003495"],
}
IMPORTS = {"matplotlib", "pandas", "pathlib", "pytorch_quantizer", "scipy.stats", "torch", "torchvision"}
MATHS = {
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "logaddexp", "logsumexp", "pow", "power", "square"),
    *("erf", "erfc", "erfinv", "ndtr", "lambertw", "special", "round", "floor", "ceil", "clamp", "clip", "trapezoid"),
    *("brentq", "minimize", "minimize_scalar", "root", "newton", "optimize", "quad", "integrate", "argmin", "log_prob"),
}


@pytest.fixture(scope="module")
def cells():
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(the code cells as executed in an empty folder, that folder, CPU seconds it took on one core)."""
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copy(NOTEBOOK, folder)
    notebook = nbformat.read(folder / NOTEBOOK.name, as_version=4)
    before = cpu_seconds()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return code, folder, cpu_seconds() - before


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def texts(cells):
    """What each cell shows, as text."""
    shown = [[o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs] for cell in cells]
    return ["\n".join(parts) for parts in shown]


def table(cells, heading):
    """The rows of the one table with such a heading, each a list of text with the outer labels repeated."""
    (text,) = [text for text in texts(cells) if heading in text]
    lines = text.splitlines()
    rows, width = [], max(len(line.split()) for line in lines[2:])
    for line in lines[2:]:
        entries = line.split()
        rows.append(rows[-1][: width - len(entries)] + entries if len(entries) < width else entries)
    return rows


def numbers(text):
    """Those that aren't percentages."""
    return [float(number) for number in re.findall(r"(?<![\w.+-])[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?(?![\d.%])", text)]


@pytest.mark.slow
class TestExecuted:
    def test_every_cell_ran_and_complained_of_nothing(self, executed):
        code, _, seconds = executed
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert not [o for cell in code for o in cell.outputs if o.get("name") == "stderr" or o.output_type == "error"]
        assert seconds < CPU_SECONDS

    def test_draws_every_figure_it_shows(self, executed):
        _, folder, _ = executed
        shown = set(re.findall(r"\]\(figures/(\w+\.png)\)", NOTEBOOK.read_text()))
        drawn = {path.name: path for path in (folder / "figures").iterdir()}
        assert set(drawn) == shown
        assert shown >= {f"{what}_{name}.png" for what in ("opt_alpha", "mse") for name in ("laplace", "gaussian")}
        for path in drawn.values():
            content = path.read_bytes()
            assert content.startswith(b"\x89PNG")
            assert 20_000 < len(content) < FIGURE_BYTES

    def test_the_published_alphas(self, executed):
        rows = table(executed[0], "laplace, α*/b")
        assert [row[:3] for row in rows] == [
            [str(bits), *alphas] for bits, *alphas in zip(range(1, 9), LAPLACE, GAUSSIAN, strict=True)
        ]

    def test_maxs_table(self, executed):
        rows = table(executed[0], "distortion")
        for name, published in MAX.items():
            assert [" ".join(row[1:4]) for row in rows if row[0] == name] == published

    def test_half_range_is_full_range_with_a_bit_more(self, executed):
        rows = table(executed[0], "predicts too little")
        textbook = {(name, half, int(bits)): alpha for name, half, bits, alpha, *_ in rows}
        assert len(textbook) == 32
        for name, published in (("laplace", LAPLACE), ("gaussian", GAUSSIAN)):
            assert [textbook[name, "full", bits] for bits in range(1, 9)] == published
            assert [textbook[name, "half", bits] for bits in range(1, 8)] == published[1:]

    def test_the_exact_alpha_never_loses_and_the_textbook_always_predicts_too_little(self, executed):
        rows = table(executed[0], "predicts too little")
        for _, _, bits, alpha, exact, at_alpha, at_exact, gain, too_little in rows:
            assert float(exact) < float(alpha)
            assert float(at_exact) <= float(at_alpha)
            assert float(gain.rstrip("%")) >= (0.2 if int(bits) <= 3 else 0)
            assert float(too_little.rstrip("%")) > 0
        seen = [float(row[-1].rstrip("%")) for row in rows if row[:2] == ["laplace", "full"]]
        assert seen[1:4] == pytest.approx([30, 20, 10], abs=3)
        for name, half in {tuple(row[:2]) for row in rows}:
            falling = [float(row[-1].rstrip("%")) for row in rows if row[:2] == [name, half]]
            assert all(more > less for more, less in pairwise(falling))

    def test_of_the_real_tensors_mse_errs_least(self, executed):
        rows = table(executed[0], "SQNR, dB")
        for title in ("weights", "activations"):
            errors = {row[1]: float(row[3]) for row in rows if row[0] == title}
            assert len(errors) == 7
            assert errors["mse"] == min(errors.values())
            assert errors["minmax"] == max(errors.values())
            assert errors["auto"] in (errors["gaussian"], errors["laplace"])

    def test_what_is_committed_is_what_it_says(self, executed, cells):
        """Its tables but for the real tensors', whose last digit is the machine's."""
        for here, there in zip(texts(cells), texts(executed[0]), strict=True):
            if "SQNR" not in there:
                assert numbers(here) == pytest.approx(numbers(there), rel=1e-3)
        assert sum(len(numbers(text)) for text in texts(cells)) > 200


class TestCommitted:
    def test_is_a_valid_notebook(self):
        nbformat.validate(nbformat.from_dict(json.loads(NOTEBOOK.read_text())))

    def test_holds_tables_but_no_pictures(self, cells):
        shown = {kind for cell in cells for output in cell.outputs for kind in output.get("data", {})}
        assert shown == {"text/plain", "text/html"}

    def test_its_figures_are_there_and_small(self):
        shown = set(re.findall(r"\]\(figures/(\w+\.png)\)", NOTEBOOK.read_text()))
        assert shown <= {path.name for path in (ROOT / "figures").glob("*.png")}
        assert all((ROOT / "figures" / name).stat().st_size < FIGURE_BYTES for name in shown)

    def test_no_figure_lies_unused(self):
        text = NOTEBOOK.read_text() + (ROOT / "README.md").read_text()
        shown = set(re.findall(r"\]\(figures/(\w+\.png)\)", text))
        assert shown == {path.name for path in (ROOT / "figures").glob("*.png")}

    def test_defines_no_maths(self, cells):
        assert cells
        for cell in cells:
            assert not list(maths(cell.source)), cell.source

    @pytest.mark.parametrize(
        "source",
        [
            "def mse(alpha): return alpha",
            "mse = lambda alpha: alpha",
            "class Cauchy: pass",
            "import math",
            "from scipy.special import erfc",
            "from scipy import optimize",
            "import numpy as np",
            "torch.exp(-alphas)",
            "(x / s).round()",
            "errors.argmin()",
            "4**bits",
            "from pytorch_quantizer.quantization.distributions import math",
        ],
    )
    def test_would_notice_maths(self, source):
        assert list(maths(source))


def maths(source):
    """Definitions, imports of mathematical libraries, calls of mathematical functions, powers of a number."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Lambda():
                yield ast.unparse(node)
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.partition(".")[0] not in IMPORTS)
            case ast.ImportFrom(module=module, names=names):
                yield from (f"{module}.{name.name}" for name in names if not is_allowed(module, name.name))
            case ast.Attribute(attr=name) | ast.Call(func=ast.Name(id=name)) if name in MATHS:
                yield name
            case ast.BinOp(left=ast.Constant(), op=ast.Pow(), right=right) if not is_levels(node, right):
                yield ast.unparse(node)


def is_allowed(module, name):
    """Whether from module import name brings in no maths."""
    return name != "math" and (module.partition(".")[0] in IMPORTS or f"{module}.{name}" in IMPORTS)


def is_levels(node, right):
    """2**bits, the number of levels, is a setting."""
    return node.left.value == 2 and isinstance(right, ast.Name) and right.id == "bits"
