"""Latency says what was timed and how; the time itself is no test's business."""

import json
from itertools import cycle

import pytest
import torch
from torch import nn

from pytorch_quantizer import Recipe, quantize
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.evaluation import compare_latency, latency, latency_by_batch, measure_latency
from pytorch_quantizer.export.onnx import export_onnx
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel


class Counting(nn.Module):
    """Counts its calls, notes itself in a log, and sees what it is run with."""

    def __init__(self, name="", log=None, **said):
        super().__init__()
        self.name, self.log, self.batches, self.threads_seen = name, log, [], None
        vars(self).update(said)

    def forward(self, x):
        assert torch.is_inference_mode_enabled()
        assert not self.training
        self.batches.append(len(x))
        self.threads_seen = torch.get_num_threads()
        if self.log is not None:
            self.log.append(self.name)
        return x


@pytest.fixture
def clock(monkeypatch):
    """A function that sets the seconds that the following passes take, over and over."""

    def set_seconds(*seconds):
        def ticks():
            now = 0.0
            for taken in cycle(seconds):
                yield now
                now += taken
                yield now

        running = ticks()
        monkeypatch.setattr(latency.time, "perf_counter", lambda: next(running))

    return set_seconds


def image(n=1):
    return torch.zeros(n, 3, 4, 4)


class TestWhatIsSaid:
    def test_of_a_float_model(self):
        model = Counting()
        measured = measure_latency(model, image(8), repeats=5, warmup=2)
        assert len(model.batches) == 7
        assert (measured.batch_size, measured.threads, measured.repeats) == (8, torch.get_num_threads(), 5)
        assert (measured.label, measured.device) == ("float32", "cpu")
        assert measured.runtime == f"PyTorch {torch.__version__.split('+')[0]}"
        assert 0 < measured.minimum_ms <= measured.p10_ms <= measured.median_ms <= measured.p90_ms

    def test_a_float_model_is_labelled_by_its_parameters(self):
        assert measure_latency(nn.Linear(4, 4).bfloat16(), image().bfloat16(), repeats=1).label == "bfloat16"

    def test_a_quantized_model_is_labelled_simulated(self):
        assert measure_latency(Counting(sites=()), image(), repeats=1).label == "simulated"

    def test_a_model_may_tell_by_itself(self):
        model = Counting(sites=(), execution="integer", runtime="Runtime 1.2", threads=3)
        measured = measure_latency(model, image(), repeats=1)
        assert (measured.label, measured.runtime, measured.threads) == ("integer", "Runtime 1.2", 3)

    def test_a_label_that_is_given_wins(self):
        model = Counting(execution="integer", runtime="Runtime 1.2")
        measured = measure_latency(model, image(), repeats=1, label="dequantized-weights", runtime="Other 3")
        assert (measured.label, measured.runtime) == ("dequantized-weights", "Other 3")

    def test_other_labels_are_refused(self):
        with pytest.raises(InputError, match=r"label of latency must be one of .*integer, got 'int8'"):
            measure_latency(Counting(), image(), label="int8")
        with pytest.raises(InputError, match=r"label of model must be one of .*integer, got 'int8'"):
            measure_latency(Counting(execution="int8"), image())

    def test_as_text(self, clock):
        clock(0.001, 0.002, 0.003)
        measured = measure_latency(Counting(runtime="Runtime 1.2"), image(2), repeats=3, warmup=0, threads=1)
        said = "2.00 ms for 2 images (10 to 90 %: 1.20 to 2.80; float32, Runtime 1.2, cpu, 1 thread)"
        assert str(measured) == said

    def test_as_a_dictionary(self):
        measured = measure_latency(Counting(), image(), repeats=1)
        assert latency.Latency(**json.loads(json.dumps(measured.as_dict()))) == measured


class TestTimes:
    def test_median_percentiles_and_minimum_in_milliseconds(self, clock):
        clock(9.0, 0.001, 0.002, 0.5, 0.003, 0.004)  # the first goes untimed
        measured = measure_latency(Counting(), image(), repeats=5, warmup=1)
        assert measured.median_ms == pytest.approx(3.0)
        assert measured.minimum_ms == pytest.approx(1.0)
        assert measured.p10_ms == pytest.approx(1.4)  # 0.4 of the way from the first of five to the second
        assert measured.p90_ms == pytest.approx(4 + 0.6 * 496)

    @pytest.mark.parametrize(
        ("seconds", "warmup", "repeats"),
        [(0.001, 3, 100), (0.011, 3, 91), (0.4, 3, 10), (0.6, 2, 9), (2.0, 1, 3), (60.0, 1, 3)],
    )
    def test_slow_passes_are_fewer(self, clock, seconds, warmup, repeats):
        clock(seconds)
        model = Counting()
        assert measure_latency(model, image()).repeats == repeats
        assert len(model.batches) == warmup + repeats

    def test_as_many_as_asked_for(self, clock):
        clock(60.0)
        model = Counting()
        assert measure_latency(model, image(), repeats=7, warmup=5).repeats == 7
        assert len(model.batches) == 12

    @pytest.mark.parametrize(
        ("images", "arguments", "said"),
        [
            (0, {}, "latency needs a model and images"),
            (1, {"repeats": 0}, "repeats must be 1 or more, got 0"),
            (1, {"warmup": -1}, "warmup must be 0 or more, got -1"),
            (1, {"threads": 0}, "threads must be 1 or more, got 0"),
        ],
    )
    def test_impossible_numbers(self, images, arguments, said):
        with pytest.raises(InputError, match=said):
            measure_latency(Counting(), image(images), **arguments)


class TestThreads:
    def test_are_set_while_it_runs_and_restored(self):
        before = torch.get_num_threads()
        model = Counting()
        assert measure_latency(model, image(), threads=before + 1, repeats=1).threads == before + 1
        assert model.threads_seen == before + 1
        assert torch.get_num_threads() == before

    def test_are_restored_after_an_error(self):
        before = torch.get_num_threads()
        with pytest.raises(RuntimeError):
            measure_latency(nn.Linear(5, 1), image(), threads=before + 1)
        assert torch.get_num_threads() == before

    def test_a_runtime_with_others_is_refused(self):
        with pytest.raises(InputError, match="measured on 2 threads, but model on 3: make each for as many"):
            measure_latency(Counting(threads=3), image(), threads=2)

    def test_a_runtime_that_does_not_tell_is_refused(self):
        with pytest.raises(InputError, match=r"model doesn't say how many threads .*: make it with threads=N"):
            measure_latency(Counting(threads=None), image())

    def test_a_runtime_on_the_cpu_is_not_timed_as_another_device(self):
        with pytest.raises(InputError, match=r"model runs on the CPU, the images are on meta: give images.cpu\(\)"):
            measure_latency(Counting(threads=1), image().to("meta"), repeats=1, threads=1)
        assert measure_latency(Counting(), image().to("meta"), repeats=1).device == "meta"

    def test_none_is_no_number_of_threads(self):
        with pytest.raises(InputError, match="threads must be 1 or more, got 0"):
            measure_latency(Counting(), image(), threads=0)

    def test_on_different_ones_nothing_is_compared(self):
        models = {"a": Counting(threads=1), "b": Counting(threads=2)}
        with pytest.raises(InputError, match="measured on 1 threads, but a on 1, b on 2"):
            compare_latency(models, image())


class TestComparing:
    def test_models_take_turns(self):
        log = []
        models = {name: Counting(name, log) for name in "abc"}
        measured = compare_latency(models, image(), warmup=1, repeats=20)
        rounds = ["".join(log[i : i + 3]) for i in range(0, 63, 3)]
        assert all(sorted(turn) == [*"abc"] for turn in rounds)
        assert len(set(rounds[1:])) == 6, "every order comes up"
        assert list(measured) == [*"abc"]
        assert all(entry.repeats == 20 for entry in measured.values())

    def test_each_has_its_own_times(self, monkeypatch):
        now = [0.0]

        class Taking(nn.Module):
            def forward(self, x):
                now[0] += self.seconds.pop(0)

        models = {"a": Taking(), "b": Taking()}
        models["a"].seconds, models["b"].seconds, models["b"].sites = [0.001, 0.003, 0.002], [0.01, 0.03, 0.02], ()
        monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
        measured = compare_latency(models, image(), warmup=0, repeats=3)
        assert [entry.median_ms for entry in measured.values()] == pytest.approx([2.0, 20.0])
        assert [entry.label for entry in measured.values()] == ["float32", "simulated"]

    def test_rounds_are_counted_by_the_average_time(self, clock):
        clock(1.0, 2.0)
        model = Counting()
        assert compare_latency({"a": model, "b": Counting()}, image())["a"].repeats == 4
        assert len(model.batches) == 1 + 4

    def test_models_are_timed_in_eval_mode_and_left_in_theirs(self):
        models = {"a": Counting().train(), "b": Counting().eval()}
        compare_latency(models, image(), repeats=1)
        assert [model.training for model in models.values()] == [True, False]

    def test_nothing_to_compare(self):
        with pytest.raises(InputError, match="latency needs a model"):
            compare_latency({}, image())


class TestBatches:
    def test_each_size_in_order(self):
        models = {"a": Counting(), "b": Counting()}
        measured = latency_by_batch(models, image(6), (1, 4), warmup=0, repeats=2, threads=1)
        assert [[entry.batch_size for entry in entries] for entries in measured.values()] == [[1, 4]] * 2
        assert [model.batches for model in models.values()] == [[1, 1, 4, 4]] * 2
        assert {entry.threads for entries in measured.values() for entry in entries} == {1}

    @pytest.mark.parametrize("size", [0, 7])
    def test_sizes_that_are_not_there(self, size):
        with pytest.raises(InputError, match=f"a batch of {size} can't be taken from 6 images"):
            latency_by_batch({"a": Counting()}, image(6), (1, size))


class TestExported:
    """What an ONNX file is, and what is reported with its times, is decided when it is written."""

    FLOAT = dict.fromkeys(("weights", "activations", "first", "last", "bias"), "float32") | {"deployable": False}

    @pytest.mark.parametrize(
        ("fields", "options", "label"),
        [
            ({"weights": "int8"}, {}, "integer"),
            ({"weights": "int4", "last": "int4"}, {"storage": True}, "dequantized-weights"),
            (FLOAT, {}, "float32"),
            (FLOAT | {"overrides": [{"layers": "*", "weights": "int8"}]}, {}, "dequantized-weights"),
            (FLOAT | {"overrides": [{"layers": "*", "activations": "int8"}]}, {}, "simulated"),
            ({"activations": "int16"}, {}, "simulated"),
        ],
    )
    def test_says_how_it_runs(self, fields, options, label, tmp_path):
        onnxruntime = pytest.importorskip("onnxruntime")
        net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2)).eval(), torch.randn(2, 3, 4, 4)
        export_onnx(quantize(net, Recipe(**fields), [x], progress=False), tmp_path / "m.onnx", x, **options)
        model = OnnxRuntimeModel(tmp_path / "m.onnx", threads=1)
        measured = measure_latency(model, x, repeats=1, threads=1)
        assert (measured.label, measured.runtime) == (label, f"ONNX Runtime {onnxruntime.__version__}")
        assert measured.threads == 1
        with pytest.raises(InputError, match="measured on 2 threads, but model on 1"):
            measure_latency(model, x, threads=2)
