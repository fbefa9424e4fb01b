"""The table of the main job: every measure of its record, with what was timed and how."""

from pytorch_quantizer.experiments.report import result_table


def latency(median, label, **other):
    said = {"label": label, "runtime": "Runtime 1.2", "device": "cpu", "threads": 2, "batch_size": 1}
    return said | {"median_ms": median, "p10_ms": median - 0.5, "p90_ms": median + 20} | other


def entry(median, label, **other):
    rates = dict.fromkeys(("top1", "top5", "precision", "recall", "f1"), 0.5) | {"top1_interval": [0.4, 0.6]}
    latencies = [latency(median, label), latency(10 * median, label, batch_size=32)]
    return rates | {"size_bytes": 1000, "latency": latencies} | other


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
