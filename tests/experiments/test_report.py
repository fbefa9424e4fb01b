"""The table of the main job: every measure of its record, with what was timed and how."""

import pytest

from pytorch_quantizer.experiments.report import result_table


def latency(median, label, **other):
    said = {"label": label, "runtime": "Runtime 1.2", "device": "cpu", "threads": 2, "batch_size": 1}
    return said | {"median_ms": median, "p10_ms": median - 0.5, "p90_ms": median + 20} | other


def entry(median, label, **other):
    rates = dict.fromkeys(("top1", "top5", "precision", "recall", "f1"), 0.5) | {"top1_interval": [0.4, 0.6]}
    latencies = [latency(median, label), latency(10 * median, label, batch_size=32)]
    return rates | {"size_bytes": 1000, "latency": latencies} | other


def heading(recipe=None, **record):
    recipe = {"weights": "int4", "activations": "int8", "clip": "minmax"} | (recipe or {})
    made = {"arch": "net", "dataset": "set", "samples": 7, "recipe": recipe, "deployable": True, **record}
    fp32 = entry(2.0, "float32")
    return result_table(made | {"fp32": fp32, "quantized": entry(3.0, "simulated", agreement=0.9)}).split("\n")[0]


class TestHeading:
    def test_the_recipe(self):
        assert heading() == "net on set, 7 images: weights int4, activations int8, clip minmax, deployable"

    def test_of_mixed_precision_the_widths_that_came_out_and_the_budget(self):
        types = {"weights": "int2 … int8, mixed", "activations": "int8"}
        said = heading(types=types, budgets={"mixed_precision_size": 0.9, "mixed_precision_bit_operations": 1234567.5})
        assert said.endswith(
            ": weights int2 … int8, mixed, activations int8, mixed_precision_size 0.9, "
            "mixed_precision_bit_operations 1234567.5, clip minmax, deployable"
        )

    @pytest.mark.parametrize(
        ("layers", "said"),
        [
            ("linear", "linear layers only"),
            ("linear, recurrent", "linear and recurrent layers only"),
            ("linear, recurrent, convolution", "linear, recurrent and convolution layers only"),
        ],
    )
    def test_of_dynamic_ranges_which_layers_have_them(self, layers, said):
        assert f"activations int8, {said}, ranges from each batch, clip minmax" in heading(
            {"statistics": "dynamic", "dynamic_layers": layers}
        )


def lines(fp32, quantized):
    recipe = {"weights": "int8", "activations": "int4", "clip": "laplace"}
    record = {"arch": "net", "dataset": "set", "samples": 7, "recipe": recipe, "deployable": True}
    return [
        " ".join(line.split()) for line in result_table(record | {"fp32": fp32, "quantized": quantized}).split("\n")
    ]


def test_latency_of_each_batch_with_its_spread_and_how_it_ran():
    shown = lines(entry(2.0, "float32"), entry(3.0, "simulated", agreement=0.9, size_bytes=270))
    assert shown[-8:] == [
        "size of the file 1,000 B 270 B 0.27 x",
        "latency, batch of 1 2.00 ms 3.00 ms 1.50 x",
        "10 % – 90 % of runs 1.50 – 22.00 ms 2.50 – 23.00 ms",
        "latency, batch of 32 20.00 ms 30.00 ms 1.50 x",
        "10 % – 90 % of runs 19.50 – 40.00 ms 29.50 – 50.00 ms",
        "runs as float32 simulated",
        "by Runtime 1.2 Runtime 1.2",
        "on cpu, 2 threads cpu, 2 threads",
    ]


def test_on_a_gpu_threads_say_nothing():
    fp32, quantized = (entry(2.0, "float32", agreement=1.0) for _ in range(2))
    for timed in (*fp32["latency"], *quantized["latency"]):
        timed["device"] = "cuda"
    assert lines(fp32, quantized)[-1] == "on cuda cuda"
