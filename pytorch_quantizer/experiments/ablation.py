"""The ablation of Banner et al. (2019), "Post training 4-bit quantization of convolutional networks for
rapid-deployment", arXiv 1810.05723: its rows as recipes, its published figures, and the table. Measuring is cells.py's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.network_list import parse_names
from pytorch_quantizer.quantization.recipe import Recipe

PAPER, DEPLOYABLE = "paper", "deployable"
SETTINGS = (PAPER, DEPLOYABLE)
BASELINE, ALLOCATION, CORRECTION, ALL = "baseline (min-max)", "+ bit allocation", "+ bias correction", "all"
CLIPPING = {clip: f"+ clipping ({clip})" for clip in ("laplace", "mse")}
ROWS = (BASELINE, *CLIPPING.values(), ALLOCATION, CORRECTION, ALL)
DEFAULT_BITS = "w8a4,w4a8,w4a4"
WIDEST = 8  # a tensor of as many bits is left to min-max, as in the paper

TITLES = {PAPER: "the paper's setting (not deployable)", DEPLOYABLE: "deployable"}
QUOTAS = {"bits": "the same sum (quota bits)", "bins": "the same sum of levels (quota bins, equation 11)"}
EXPLAINED = {
    PAPER: (
        "Every channel of weights and activations has its own affine range. "
        "Clipping: activations, Laplace prior. Bit allocation: each channel its bits, {quota}, of "
        "whatever has fewer than 8. Bias correction: mean and variance of each weight channel."
    ),
    DEPLOYABLE: (
        "One range an activation tensor, symmetric weights a channel, int32 biases. Clipping: activations. "
        "Bit allocation: each layer its bits, the same sum (mixed precision), of whatever has fewer than 8. "
        "Bias correction: the weights' mean into the bias and variance into the scale, then mean and gain of each "
        "activation. All: with mse clipping."
    ),
}


@dataclass(frozen=True)
class Bits:
    """A column. weights, activations: 2 to 8 bits."""

    weights: int
    activations: int

    def __str__(self) -> str:
        return f"{self.weights}W{self.activations}A"


@dataclass(frozen=True)
class Published:
    """A figure that others report. top1: a fraction of 1. source: where it can be read."""

    top1: float
    source: str


PAPER_NETWORKS = ("vgg16", "vgg16_bn", "inception_v3", "resnet18", "resnet50", "resnet101")
_README = "the authors' code, github.com/submission2019/cnn-quantization, README"
_ISSUE = "the paper as quoted in github.com/submission2019/cnn-quantization/issues/10"
# By network, column, row. Figures whose source was read, and no others; the paper's own table was out of reach.
PUBLISHED: dict[tuple[str, str, str], Published] = {
    ("resnet50", "4W4A", BASELINE): Published(0.62154, _README),
    ("resnet50", "4W4A", ALL): Published(0.73330, _README),
    ("resnet18", "4W4A", ALL): Published(0.670, _ISSUE),
}
# What the same README gives beside them and no cell of the table stands for.
ALSO_PUBLISHED = {
    "resnet50": "resnet50 with statistics collected beforehand, as here, where the figures above are of online ones: "
    "4W4A, all 74.20 %; 8W4A, + clipping (laplace), one range a tensor 71.40 %",
    "vgg16": "vgg16, 4W4A, all, with mid-tread bins (quota 5.3 bits) 70.80 %, activations at an entropy of 2.22 bits",
}


def parse_bits(text: str) -> tuple[Bits, ...]:
    """Read "w8a4,w4a4" or, as the paper writes it, "8W4A,4W4A". Raises InputError for anything else."""
    return tuple(dict.fromkeys(_parse_one(part) for part in parse_names("--bits", text)))


def parse_settings(text: str) -> tuple[str, ...]:
    """Read "paper,deployable". Raises InputError for another setting."""
    parts = parse_names("--settings", text)
    for part in parts:
        if part not in SETTINGS:
            close = difflib.get_close_matches(part, SETTINGS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise InputError(f"--settings must be among {', '.join(SETTINGS)}, got {part!r}{hint}")
    return tuple(dict.fromkeys(parts))


def ablation_recipes(setting: str, bits: Bits, quota: str = "bits") -> dict[str, Recipe]:
    """By row, in the order of ROWS, the recipes of a column; rows that would equal the baseline are left out.

    quota: of the paper's setting's bit allocation, a key of QUOTAS.
    """
    ingredients = _paper(bits, quota) if setting == PAPER else _deployable(bits)
    base = ingredients.pop(BASELINE)
    together = {name: value for part in ingredients.values() for name, value in part.items()}
    changes: dict[str, dict[str, Any]] = {BASELINE: {}, **ingredients, ALL: together}  # of two clips the last, mse
    weights, activations = f"int{bits.weights}", f"int{bits.activations}"
    plain = Recipe(name=f"{setting} {bits}", weights=weights, activations=activations, **base)
    return {
        row: plain.replace(name=f"{plain.name} {row}", **part)
        for row, part in changes.items()
        if part or row == BASELINE
    }


def _paper(bits: Bits, quota: str) -> dict[str, dict[str, Any]]:
    few_weights, few_activations = bits.weights < WIDEST, bits.activations < WIDEST
    allocation = {"weight_allocation": quota} if few_weights else {}
    allocation |= {"activation_allocation": quota} if few_activations else {}
    return {
        BASELINE: {"deployable": False, "activation_granularity": "per_channel", "weight_symmetric": False},
        CLIPPING["laplace"]: {"clip": "laplace"} if few_activations else {},
        ALLOCATION: allocation,
        CORRECTION: {"weight_correction": "both"} if few_weights else {},
    }


def _deployable(bits: Bits) -> dict[str, dict[str, Any]]:
    few_weights, few_activations = bits.weights < WIDEST, bits.activations < WIDEST
    mixed = {(True, True): "both", (True, False): "weights", (False, True): "activations"}
    chosen = mixed.get((few_weights, few_activations))
    correction = {"weight_correction": "both"} if few_weights else {}
    correction |= {"activation_correction": "both"} if chosen else {}
    return {
        BASELINE: {},
        **{row: {"clip": clip} if few_activations else {} for clip, row in CLIPPING.items()},
        ALLOCATION: {"mixed_precision": chosen} if chosen else {},
        CORRECTION: correction,
    }


def ablation_markdown(record: dict[str, Any]) -> str:
    """The record of scripts/ablation.py as tables: of each network one a setting, every row says deployable or not."""
    parts = [f"# Ablation after Banner et al. (2019), {record['dataset']}"]
    for network in record["networks"]:
        parts.append(_network_heading(network))
        for setting in record["settings"]:
            cells = [cell for cell in network["cells"] if cell["setting"] == setting]
            explained = EXPLAINED[setting].format(quota=QUOTAS[record["quota"]])
            parts += [f"### {network['arch']}, {TITLES[setting]}", explained]
            parts.append(_table(network["arch"], setting, cells))
    parts += _notes(record)
    return "\n\n".join(parts) + "\n"


def _network_heading(network: dict[str, Any]) -> str:
    fp32 = network["fp32"]
    return f"## {network['arch']}: float32 {_percent(fp32['top1'])} of {fp32['samples']} images"


def _table(arch: str, setting: str, cells: Sequence[dict[str, Any]]) -> str:
    """Top-1; for a network of the paper in its setting the published figure beside each."""
    columns = list(dict.fromkeys(cell["column"] for cell in cells))
    rows = [row for row in ROWS if any(cell["row"] == row for cell in cells)]
    measured = {(cell["row"], cell["column"]): _percent(cell["top1"]) for cell in cells}
    beside = setting == PAPER and arch in PAPER_NETWORKS
    headings = [name for column in columns for name in ((column, f"{column} published") if beside else (column,))]
    lines = [["", "deployable", *headings], ["---"] * (len(headings) + 2)]
    deployable = {cell["row"]: "yes" if cell["deployable"] else "no" for cell in cells}
    for row in rows:
        line = [row, deployable[row]]
        for column in columns:
            line.append(measured.get((row, column), "–"))
            line += [_published(arch, column, row)] if beside else []
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _published(arch: str, column: str, row: str) -> str:
    figure = PUBLISHED.get((arch, column, row))
    return "?" if figure is None else _percent(figure.top1)


def _notes(record: dict[str, Any]) -> list[str]:
    calibration = record["calibration"]
    notes = [
        "Each row but the last adds one thing to the baseline. A dash: nothing to add, the tensors in question have 8 "
        f"bits. First and last layer: 8 bits. Ranges from {calibration['samples']} images of the "
        f"{calibration['split']} split, seed {record['seed']}."
    ]
    archs = [network["arch"] for network in record["networks"] if network["arch"] in PAPER_NETWORKS]
    if archs and PAPER in record["settings"]:
        sources = _unique(figure.source for (arch, *_), figure in PUBLISHED.items() if arch in archs)
        known = f"Published figures on all 50,000 validation images: {'; '.join(sources)}. " if sources else ""
        notes.append(f"{known}?: published in the paper's table, not verified here.")
        also = [ALSO_PUBLISHED[arch] for arch in archs if arch in ALSO_PUBLISHED]
        notes += [f"Also published, in {_README}: {'; '.join(also)}."] if also else []
    return notes


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def _parse_one(text: str) -> Bits:
    match = re.fullmatch(r"w([2-8])a([2-8])", text.lower())
    if match:
        return Bits(int(match[1]), int(match[2]))
    match = re.fullmatch(r"([2-8])w([2-8])a", text.lower())
    if not match:
        raise InputError(f"--bits must be like w4a8, weights and activations of 2 to 8 bits, got {text!r}")
    return Bits(int(match[1]), int(match[2]))
