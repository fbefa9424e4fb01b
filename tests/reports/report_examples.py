"""What other commands write, made up: small, quick, and with names that a page must not run."""

import json

import pandas as pd

EVIL = "<script>window.ran = 1</script>\"'&$$x$$"


def sweep_rows(recipes=4, seeds=2, evil=True):
    """Rows of results.csv: 3 widths of weights, 2 of activations, some recipes and seeds; the last one failed."""
    rows = []
    for number in range(recipes):
        for weights, size in (("int8", 290_000), ("int4", 150_000), ("ternary", 100_000)):
            for activations in ("int8", "int4"):
                for seed in range(seeds):
                    loss = {"int8": 0.0, "int4": 0.02, "ternary": 0.2}[weights] + (activations == "int4") * 0.01
                    rows.append(
                        {
                            **{
                                "dataset": "cifar10",
                                "arch": "resnet20",
                                "weights": weights,
                                "activations": activations,
                            },
                            **{"recipe": f"{EVIL if evil and not number else 'plain'} {number}", "seed": seed},
                            **{"top1": 0.91 - loss - number / 100 + seed / 1000, "fp32_top1": 0.915},
                            **{"agreement": 0.95 - loss, "f1": 0.9 - loss, "size_bytes": size + number},
                            **{"fp32_size_bytes": 1_090_000, "seconds": 1.5, "samples": 500, "deployable": True},
                            **{"settings": json.dumps({"name": EVIL, "clip": "mse"}), "code": "one", "error": ""},
                        }
                    )
    rows[-1] |= dict.fromkeys(("top1", "fp32_top1", "agreement", "f1", "size_bytes", "fp32_size_bytes"))
    rows[-1]["error"] = f"InputError: {EVIL}"
    return pd.DataFrame(rows)


def origins():
    """origins.json of a sweep whose rows two versions of the code measured, one of them on two machines."""
    first, second = {"processor": "a CPU", "cores": 2}, {"processor": "another CPU", "gpu": EVIL}
    return {
        "one": {"versions": {"python": "3.11", "torch": "2.12"}, "machines": [first, second]},
        "two": {"versions": {"python": "3.11", "torch": "2.13"}, "machines": [first]},
    }


def tensors():
    """Rows of layers.csv: two weights, an input, two activations, a residual; one tensor in float."""
    names = ("name", "kind", "type", "low", "high", "sqnr_db", "accumulated_sqnr_db", "read_by", "reason")
    rows = [
        ("conv1.weight", "weight", "int4", -0.5, 0.5, 20.0, 20.0, "conv1", ""),
        ("fc.weight", "weight", "int8", -0.5, 0.5, float("inf"), 40.0, "fc", ""),
        ("x", "input", "uint8", -1.0, 1.0, 45.0, 45.0, "conv1", ""),
        ("relu1", "activation", "uint4", 0.0, 6.0, 18.0, 15.0, "fc, add", ""),
        ("relu2", "activation", "uint4", 0.0, 3.0, 12.0, 9.0, "add", ""),
        ("add", "residual", "uint8", -2.0, 4.0, 38.0, -3.0, "fc", ""),
        ("fc", "activation", "float32", None, None, None, None, "", "network output"),
    ]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(clipped_fraction=0.001, entropy_bits=3.0, granularity="per-tensor")


def histogram(counts, exponent=-2, bins=64, first=32, zeros=10):
    return {"bins": bins, "exponent": exponent, "zeros": zeros, "first": first, "counts": counts}


def details(classes=("cat", "dog", "bird")):
    """details.json of the same tensors, and answers of networks that differ for three images."""
    entries = [
        {"name": "conv1.weight", "kind": "weight", "type": "int4", "unit": "code", "low": -7.0, "high": 7.0}
        | {"step": 1.0, "levels": list(range(-7, 8)), "histogram": histogram([1, 5, 9, 5, 1], 1, first=28, zeros=0)},
        {"name": "relu1", "kind": "activation", "type": "uint4", "unit": "value", "low": 0.0, "high": 6.0}
        | {"step": 0.4, "levels": [0.4 * i for i in range(16)], "histogram": histogram([9, 7, 5, 3, 0, 1])},
        {"name": "relu2", "kind": "activation", "type": "uint8", "unit": "value", "low": 0.0, "high": 3.0}
        | {"step": 3 / 255, "levels": None, "histogram": histogram([20, 10, 5])},
    ]
    answers = {"classes": list(classes), "label": [0, 0, 0, 1, 1, 2], "fp32": [0, 0, 2, 1, 1, 1]}
    answers |= {"quantized": [0, 1, 2, 1, 0, 2], "count": [7, 1, 1, 8, 1, 5]}
    batches = {"relu1": [[0.0, 5.0], [0.0, 7.5], [0.0, 6.0]], "relu2": [[0.0, 3.0], [0.0, 2.0], [0.0, 2.5]]}
    return {"tensors": entries, "batches": batches, "answers": answers}


def measures(top1, label, size):
    passes = [
        {"median_ms": 2.0 * size, "p10_ms": 1.5 * size, "p90_ms": 3.0 * size, "minimum_ms": 1.0, "batch_size": size}
        | {"threads": 2, "label": label, "runtime": "PyTorch 1.2", "device": "cpu", "repeats": 10}
        for size in (1, 32)
    ]
    rates = dict.fromkeys(("precision", "recall", "f1", "top5"), top1) | {"top1": top1}
    return rates | {"top1_interval": [top1 - 0.1, top1 + 0.05], "latency": passes, "execution": label} | {
        "size_bytes": size, "size_label": f"file on disk: {EVIL}",
    }  # fmt: skip


def record(name=EVIL, checkpoint=None):
    """result.json."""
    recipe = {"name": name, "weights": "int4", "activations": "int4", "clip": "laplace", "overrides": []}
    found = {
        "dataset": "cifar10",
        "arch": "resnet20",
        "checkpoint": checkpoint,
        "samples": 23,
        "seed": 0,
        "deployable": True,
        "recipe": recipe,
    }
    found |= {"fp32": measures(0.85, "float32", 1000), "layers": {"samples": 16, "split": "train"}}
    found |= {"quantized": measures(0.8, "simulated", 270) | {"agreement": 0.9}, "quantizing_seconds": 0.5}
    found |= {"versions": {"python": "3.11", "torch": "2.12"}, "machine": {"processor": "a CPU", "cores": 2}}
    return found | {"calibration": {"samples": 64, "split": "train"}, "skipped_images": ["broken.png"]}


def diagnosis():
    """Rows of sensitivity.csv and its record."""
    table = pd.DataFrame(
        {
            **{
                "layer": ["fc", "add", "conv1"],
                "weights": ["int8", "", "int4"],
                "activations": ["uint4", "uint8", "uint8"],
            },
            **{
                "tensors": ["relu1, add", "relu1, relu2", "x"],
                "alone_top1": [0.7, 0.8, 0.85],
                "alone_p": [0.01, 0.5, 1.0],
            },
            **{"alone_drop": [0.15, 0.05, 0.0], "alone_sqnr_db": [10.0, 20.0, float("inf")]},
            **{
                "all_but_top1": [0.83, 0.81, 0.8],
                "all_but_gain": [0.03, 0.01, 0.0],
                "all_but_sqnr_db": [15.0, 9.0, 8.0],
            },
        }
    )
    said = {"answer": "fc hurts most", "samples": 23, "float_top1": 0.85, "quantized_top1": 0.8}
    return table, said | {key: record()[key] for key in ("recipe", "versions", "machine", "arch", "dataset")}


def write_run(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(record(**changes)))
    (folder / "details.json").write_text(json.dumps(details()))
    tensors().to_csv(folder / "layers.csv", index=False)
    return folder


def write_diagnosis(folder):
    folder.mkdir(parents=True, exist_ok=True)
    table, said = diagnosis()
    table.to_csv(folder / "sensitivity.csv", index=False)
    (folder / "sensitivity.json").write_text(json.dumps(said))
    return folder


def write_sweep(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    sweep_rows(**changes).to_csv(folder / "results.csv", index=False)
    (folder / "origins.json").write_text(json.dumps(origins()))
    return folder


def board_rows():
    """Rows of leaderboard.csv."""
    rows = [
        {
            **{"dataset": "cifar10", "arch": "resnet20", "method": method, "weights": weights, "activations": "int4"},
            **{"seed": seed, "top1": 0.9 - place / 20 + seed / 500, "fp32_top1": 0.915, "first_last": "int8"},
            **{"residual": "narrow", "granularity": "w, a", "deployable": method != "aciq paper", "seconds": 3.0},
            **{"samples": 300, "error": ""},
        }
        for place, method in enumerate(("mse", "minmax", "aciq paper", EVIL))
        for weights in ("int4", "int2")
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


def write_board(folder):
    folder.mkdir(parents=True, exist_ok=True)
    board_rows().to_csv(folder / "leaderboard.csv", index=False)
    return folder


def comparison():
    """compare.json."""
    same = {"differing": 0, "most": 0, "from_tie": 0.0, "share": 0.0}
    apart = {"differing": 5, "most": 1, "from_tie": 1e-6, "share": 1e-4}
    found = [
        {"name": "x", "type": "uint8", "alone": same, "integer": same, "onnxruntime": same, "why": "the same"},
        {"name": "relu1", "type": "uint4", "alone": same, "integer": apart, "onnxruntime": None, "why": "ties"},
    ]
    said = {key: record()[key] for key in ("recipe", "versions", "machine", "arch", "dataset")}
    models = {"top1": {"simulated": 0.9, "integer": 0.91}, "predictions_agree": {"integer": 0.99}, "images": 100}
    return said | models | {"tensors": found}


def ablation():
    """ablation.json: two settings, two widths, three rows, of which one is missing at one width."""
    cells = [
        {"setting": setting, "column": column, "row": row, "deployable": setting == "deployable", "top1": top1}
        | {"top1_interval": [top1 - 0.05, top1 + 0.05], "samples": 100}
        for setting in ("paper", "deployable")
        for column in ("8W4A", "4W4A")
        for row, top1 in (("baseline", 0.5), (f"+ {EVIL}", 0.6), ("all", 0.7))
        if (column, row) != ("8W4A", f"+ {EVIL}")
    ]
    said = {key: record()[key] for key in ("versions", "machine", "dataset", "calibration", "seed")}
    return said | {"networks": [{"arch": "resnet20", "fp32": {"top1": 0.85}, "cells": cells}]}


def bench():
    """bench.json: three forms at two batches."""
    forms = (("float32", "float32", 1000), ("quantized", "simulated", 270), ("quantized, ONNX", "integer", 300))
    spread = {"p10_ms": 0.9, "p90_ms": 1.3, "minimum_ms": 0.8, "repeats": 5}
    rows = [
        {"model": model, "label": label, "runtime": EVIL, "device": "cpu", "threads": 1}
        | {"batch_size": batch, "median_ms": 1.0 + batch, "bytes": size, "file": "file on disk"}
        | spread
        for model, label, size in forms
        for batch in (1, 32)
    ]
    said = {key: record()[key] for key in ("versions", "machine", "dataset", "arch", "recipe")}
    return said | {"image": [3, 32, 48], "rows": rows, "left_out": {"float32, ONNX": f"it is {EVIL}"}}


def training():
    """The report beside trained weights."""
    epochs = [
        {"epoch": i, "loss": 2 / i, "validation": dict.fromkeys(("accuracy", "precision", "recall", "f1"), 1 - 1 / i)}
        for i in range(1, 6)
    ]
    said = {key: record()[key] for key in ("versions", "machine")}
    return said | {"config": {"arch": "resnet20", "epochs": 5}, "test": {"top1": 0.8, "samples": 50}, "epochs": epochs}


def write_all(folder):
    """One folder each; the paths, in the order of a page."""
    (folder / "compare").mkdir(parents=True)
    (folder / "compare" / "compare.json").write_text(json.dumps(comparison()))
    (folder / "ablation").mkdir()
    (folder / "ablation" / "ablation.json").write_text(json.dumps(ablation()))
    (folder / "bench").mkdir()
    (folder / "bench" / "bench.json").write_text(json.dumps(bench()))
    (folder / "net.json").write_text(json.dumps(training()))
    made = [write_sweep(folder / "sweep"), write_board(folder / "board"), write_run(folder / "run")]
    records = [folder / name for name in ("compare", "ablation", "bench", "net.json")]
    return [*made, write_diagnosis(folder / "diagnosis"), *records]
