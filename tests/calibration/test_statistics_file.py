"""The statistics file: nothing is lost in it, runs merge to what one run gives, and a bad file is one clear error."""

import copy
import json
import math

import pytest
import torch
from networks import images, sequence
from torch import nn

from pytorch_quantizer import InputError, Recipe, TensorStatistics, capture, fold
from pytorch_quantizer.calibration.calibrate import calibrate
from pytorch_quantizer.calibration.fit import fit
from pytorch_quantizer.calibration.statistics_file import (
    fingerprint,
    load_statistics,
    merge_statistics,
    merge_statistics_files,
    save_statistics,
)
from pytorch_quantizer.graph.place import place


def network(**changes):
    modules = [nn.Conv2d(3, 4, 3, stride=changes.get("stride", 1), padding=1), nn.BatchNorm2d(4)]
    modules += [changes.get("relu", nn.ReLU()), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)]
    return sequence(*modules)


def folded(net):
    return fold(capture(net, images()))[0]


def sites_of(graph, clip="laplace"):
    return place(graph, Recipe(clip=clip), {})


def batches():
    return [images(seed=seed) * seed for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def graph():
    return folded(network())


@pytest.fixture(scope="module")
def statistics(graph):
    return calibrate(graph, sites_of(graph), batches(), progress=False)


@pytest.fixture
def path(tmp_path, graph, statistics):
    """A sound file."""
    path = tmp_path / "statistics.json"
    save_statistics(path, statistics, graph, images=12)
    return path


def assert_equal(first, second):
    assert list(first) == list(second)
    for key, record in first.items():
        assert record.to_dict() == second[key].to_dict()


class TestRoundTrip:
    def test_is_exact(self, path, graph, statistics):
        assert_equal(load_statistics(path, graph), statistics)
        assert_equal(load_statistics(path), statistics)

    @pytest.mark.parametrize("clip", ["laplace", "mse", "percentile:99"])
    @pytest.mark.parametrize("axis", [None, 1])
    def test_gives_the_very_same_quantizers(self, tmp_path, graph, clip, axis):
        grids = []
        recipe = Recipe(
            clip=clip, activation_granularity="per_tensor" if axis is None else "per_channel", deployable=axis is None
        )
        direct = calibrate(graph, place(graph, recipe, {}), batches(), progress=False)
        save_statistics(tmp_path / "s", direct, graph)
        for statistics in (direct, load_statistics(tmp_path / "s", graph)):
            sites = [s for s in fit(graph, place(graph, recipe, {}), statistics) if s.quantizer and s.is_activation]
            grids.append([site.quantizer.qparams for site in sites])
        assert len(grids[0]) == len(grids[1]) > 1
        for first, second in zip(*grids, strict=True):
            assert torch.equal(first.scale, second.scale)
            assert torch.equal(first.zero_point, second.zero_point)

    def test_hard_values(self, tmp_path, graph):
        hard = {
            "empty": TensorStatistics.from_tensor(torch.empty(0)),
            "channels": TensorStatistics.from_tensor(torch.randn(3, 50) / 3, axis=0, histogram=True),
            "tiny": TensorStatistics.from_tensor(torch.full((3,), 1e-45)),
            'named "oddly"\n': TensorStatistics.from_tensor(torch.tensor([0.1])),
        }
        save_statistics(tmp_path / "s", hard, graph)
        assert_equal(load_statistics(tmp_path / "s"), hard)

    @pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
    def test_what_no_range_can_be_chosen_of_is_not_written(self, tmp_path, graph, value):
        with pytest.raises(InputError, match=r"relu holds NaN or infinite values; .* is not written"):
            save_statistics(tmp_path / "s", {"relu": TensorStatistics.from_tensor(torch.tensor([1.0, value]))}, graph)
        assert not (tmp_path / "s").exists()

    def test_anyone_can_read_it(self, path, graph, statistics):
        content = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert content["format"] == "pytorch_quantizer statistics"
        assert (content["version"], content["images"], content["model"]) == (2, 12, fingerprint(graph))
        assert content["tensors"]["x"]["max"] == statistics["x"].max.item()
        assert len(path.read_text().splitlines()) == len(statistics) + 10  # a line a tensor, and the header's

    def test_the_layout_has_no_part_in_it(self, path, graph, statistics):
        content = json.loads(path.read_text())
        content["tensors"] = {key: dict(reversed(entry.items())) for key, entry in content["tensors"].items()}
        path.write_text(json.dumps(dict(reversed(content.items())), indent=4))
        assert_equal(load_statistics(path, graph), statistics)

    def test_is_written_whole_or_not_at_all(self, path, graph, statistics, monkeypatch):
        before = path.read_bytes()
        monkeypatch.setattr("pytorch_quantizer.atomic._sync", lambda what: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save_statistics(path, statistics, graph)
        assert path.read_bytes() == before


CHANGES = {
    "a weight": lambda: folded(changed(lambda net: net.body[0].weight.data[0, 0, 0, 0].add_(1e-6))),
    "a buffer": lambda: folded(changed(lambda net: net.body[1].running_mean[0].add_(1e-4))),
    "a stride": lambda: folded(network(stride=2)),
    "an operation": lambda: folded(network(relu=nn.ReLU6())),
}


def changed(change):
    net = network()
    change(net)
    return net


class TestModel:
    def test_the_same_again_is_the_same(self, graph):
        assert fingerprint(folded(network())) == fingerprint(graph) == fingerprint(copy.deepcopy(graph))
        assert len(fingerprint(graph)) == 32

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_another_is_refused(self, path, graph, change):
        other = change()
        expected = f"it is of {fingerprint(graph)[:8]}, this model is {fingerprint(other)[:8]}; collect"
        with pytest.raises(InputError, match=expected) as caught:
            load_statistics(path, other)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_buffer_is_part_of_it(self):
        """Of a norm that could not be folded."""
        nets = [sequence(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)) for _ in range(2)]
        assert fingerprint(folded(nets[0])) == fingerprint(folded(nets[1]))
        nets[0].body[0].running_mean[2] += 1e-3
        assert fingerprint(folded(nets[0])) != fingerprint(folded(nets[1]))

    def test_a_network_that_is_no_graph_is_refused(self, path, statistics):
        expected = r"a folded float network, pq.fold\(pq.capture\(model, images\)\)\[0\]; got Network"
        for use in (lambda: load_statistics(path, network()), lambda: save_statistics(path, statistics, network())):
            with pytest.raises(InputError, match=expected):
                use()

    def test_a_function_is_part_of_it(self):
        class Net(nn.Module):
            def __init__(self, function):
                super().__init__()
                self.function = function

            def forward(self, x):
                return self.function(x)

        prints = {fingerprint(folded(Net(f))) for f in (torch.relu, torch.tanh, lambda x: x + 1, lambda x: x + 2)}
        assert len(prints) == 4


class TestMerge:
    def test_is_one_run(self, tmp_path, graph):
        sites, all_batches = sites_of(graph, "mse"), [*batches(), images(seed=9)]
        parts = [calibrate(graph, sites, part, progress=False) for part in (all_batches[:1], all_batches[1:])]
        whole = calibrate(graph, sites, all_batches[:2], progress=False)
        for index, part in enumerate(parts):
            save_statistics(tmp_path / f"{index}", part, graph)
        merged = merge_statistics(tmp_path / "0", str(tmp_path / "1"))
        assert_equal(merged, merge_statistics(*parts))
        assert_equal(merged, merge_statistics(parts[0], tmp_path / "1"))
        expected = {key: parts[0][key].merge(parts[1][key]) for key in parts[0]}
        assert_equal(merged, expected)
        one = calibrate(graph, sites, all_batches[1:2], progress=False)
        assert_equal(merge_statistics(parts[0], one), whole)
        assert_equal(merge_statistics(parts[0]), parts[0])

    def test_the_order_counts(self, graph):
        first, second = ({"x": TensorStatistics.from_tensor(images(seed=seed))} for seed in (1, 2))
        third = {"x": TensorStatistics.from_tensor(images(7, 3, 1, 1, seed=5))}
        expected = first["x"].merge(second["x"]).merge(third["x"])
        assert merge_statistics(first, second, third)["x"].to_dict() == expected.to_dict()

    def test_different_models_are_refused(self, path, graph, statistics):
        other, second = CHANGES["a weight"](), path.with_name("second.json")
        save_statistics(second, statistics, other)
        expected = f"second.json holds .* {fingerprint(other)[:8]}, .*statistics.json is {fingerprint(graph)[:8]}"
        with pytest.raises(InputError, match=expected):
            merge_statistics(path, second)

    def test_different_tensors_are_refused(self, statistics):
        fewer = dict(statistics)
        del fewer["x"]
        with pytest.raises(InputError, match="the same tensors to be merged; 'x' is only in the first run"):
            merge_statistics(statistics, fewer)
        with pytest.raises(InputError, match="the same tensors to be merged; 'x' is only in run 3"):
            merge_statistics(fewer, fewer, statistics)
        channels = {"x": TensorStatistics.from_tensor(images(), axis=1)}
        with pytest.raises(InputError, match=r"'x' has \[3\] in the first run and \[\] in run 2"):
            merge_statistics(channels, {"x": TensorStatistics.from_tensor(images())})

    def test_nothing_is_refused(self, tmp_path):
        for merge in (merge_statistics, lambda: merge_statistics_files(tmp_path / "m")):
            with pytest.raises(InputError, match="no statistics to merge"):
                merge()

    @pytest.mark.parametrize("run", [3, None, ["s.json"], {"x": 3}])
    def test_what_is_no_run_is_refused(self, statistics, run):
        with pytest.raises(InputError, match=r"a run must be a table of TensorStatistics, or a file's path, got"):
            merge_statistics(statistics, run)

    def test_files_become_one_of_all_their_images(self, tmp_path, graph):
        parts = [calibrate(graph, sites_of(graph, "mse"), [batch], progress=False) for batch in batches()]
        for name, part, count in zip("abc", parts, (4, 5, None), strict=True):
            save_statistics(tmp_path / name, part, graph, count)
        merge_statistics_files(tmp_path / "ab", tmp_path / "a", str(tmp_path / "b"))
        save_statistics(tmp_path / "expected", merge_statistics(*parts[:2]), graph, 9)
        assert (tmp_path / "ab").read_bytes() == (tmp_path / "expected").read_bytes()
        merge_statistics_files(tmp_path / "abc", tmp_path / "ab", tmp_path / "c")
        assert json.loads((tmp_path / "abc").read_text())["images"] is None  # one of them doesn't say
        assert_equal(load_statistics(tmp_path / "abc", graph), merge_statistics(*parts))

    def test_files_of_different_models_become_none(self, tmp_path, path, statistics):
        save_statistics(tmp_path / "other", statistics, CHANGES["a weight"]())
        with pytest.raises(InputError, match="other holds statistics of another model"):
            merge_statistics_files(tmp_path / "merged", path, tmp_path / "other")
        assert not (tmp_path / "merged").exists()


def swap(entry, first, second):
    entry[first], entry[second] = entry[second], entry[first]


def nudge(entry, name):
    entry[name] = math.nextafter(entry[name], math.inf)


CORRUPTED = {
    "format": (lambda c: c.update(format="other"), "it has no format: 'pytorch_quantizer statistics'"),
    "no format": (lambda c: c.pop("format"), "it has no format"),
    "version": (lambda c: c.update(version=3), "version must be 2, got 3; .*update pytorch_quantizer"),
    "version's type": (lambda c: c.update(version=True), "version must be 2, got True"),
    "missing field": (lambda c: c.pop("model"), "missing or unknown: model"),
    "unknown field": (lambda c: c.update(more=1), "missing or unknown: more"),
    "digest's type": (lambda c: c.update(digest=None), "digest must be text, got None"),
    "digest": (lambda c: c.update(digest=c["digest"][::-1]), r"those that were written \(digest\)"),
    "the last digit": (lambda c: nudge(c["tensors"]["x"], "max"), r"damaged or edited; collect"),
    "a tensor less": (lambda c: c["tensors"].pop("x"), r"damaged or edited; collect"),
    "a tensor's name": (lambda c: c["tensors"].update(y=c["tensors"].pop("x")), r"damaged or edited; collect"),
    "how many images": (lambda c: c.update(images=13), r"damaged or edited; collect"),
    "model's type": (lambda c: c.update(model=3), "model must be text, got 3"),
    "images' type": (lambda c: c.update(images="many"), "images must be a positive number or null, got 'many'"),
    "images": (lambda c: c.update(images=-1), "images must be a positive number or null, got -1"),
    "tensors' type": (lambda c: c.update(tensors=[]), "tensors must be a table of tensors by name, got list"),
    "a tensor's type": (lambda c: c["tensors"].update(x=3), "x: tensor statistics must hold .*got int"),
    "a tensor's field": (lambda c: c["tensors"]["x"].pop("mean"), "x: .*missing: mean"),
    "text for a number": (lambda c: c["tensors"]["x"].update(mean="low"), "x: mean must be a number.*'low'"),
    "NaN in a count": (lambda c: c["tensors"]["x"].update(count="nan"), "x: count must be a whole number, got 'nan'"),
    "NaN as JSON knows none": (lambda c: c["tensors"]["x"].update(min=float("nan")), "not JSON.*NaN is no number"),
    "infinitely many": (lambda c: c["tensors"]["x"].update(positive_count="inf"), "x: positive_count must be a whole"),
    "half a batch": (lambda c: c["tensors"]["x"].update(batches=1.5), "x: batches must be a whole number, got 1.5"),
    "negative count": (lambda c: c["tensors"]["x"].update(count=-1), "x: count must not be negative"),
    "channels": (lambda c: c["tensors"]["x"].update(mean=[1.0, 2.0]), "x: mean must have the shape of count"),
    "ends the wrong way round": (
        lambda c: swap(c["tensors"]["x"], "min", "max"),
        "x: mean must lie between min and max",
    ),
    "mean": (lambda c: c["tensors"]["x"].update(mean=1e6), "x: mean must lie between min and max"),
    "infinite deviation": (lambda c: c["tensors"]["x"].update(abs_dev="inf"), "x: its moments must be finite"),
    "NaN": (lambda c: c["tensors"]["x"].update(variance="nan"), "x: its moments must be finite"),
    "deviation": (
        lambda c: c["tensors"]["x"].update(abs_dev=1e6),
        "x: abs_dev must be at most the root of the variance",
    ),
    "more positive than there are": (
        lambda c: c["tensors"]["x"].update(positive_count=10 * c["tensors"]["x"]["count"]),
        "x: positive_count must be at most count",
    ),
    "histogram": (lambda c: c["tensors"]["x"].update(histogram={"bins": 3}), "x: histogram must hold"),
}


class TestCorrupt:
    def test_more_values_than_its_histogram_counts(self, tmp_path, graph):
        save_statistics(tmp_path / "s", {"x": TensorStatistics.from_tensor(torch.randn(9), histogram=True)}, graph)
        content = json.loads((tmp_path / "s").read_text())
        content["tensors"]["x"]["count"] = 63
        (tmp_path / "s").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"s is no sound .* x: count must be that of its histogram"):
            load_statistics(tmp_path / "s")

    @pytest.mark.parametrize(("corrupt", "said"), CORRUPTED.values(), ids=CORRUPTED)
    def test_names_the_path_and_the_field(self, path, graph, corrupt, said):
        content = json.loads(path.read_text())
        corrupt(content)
        path.write_text(json.dumps(content))
        for read in (lambda: load_statistics(path), lambda: merge_statistics(path, path)):
            with pytest.raises(InputError, match=said) as caught:
                read()
            assert str(path) in str(caught.value)
            assert "again" in str(caught.value)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
    def test_cut_off(self, path, share):
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size) - 2 if share else 0])
        with pytest.raises(InputError, match="is no sound statistics file: it is not JSON, or cut off"):
            load_statistics(path)

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000, b'{"a": NaN}', b"text"])
    def test_not_json(self, path, content):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is no sound statistics file"):
            load_statistics(path)

    @pytest.mark.parametrize("content", ["null", "[]", "3", '"text"'])
    def test_no_table(self, path, content):
        path.write_text(content)
        with pytest.raises(InputError, match="it has no format"):
            load_statistics(path)

    def test_missing(self, tmp_path):
        with pytest.raises(InputError, match=r"can't read .*nowhere.json: No such file"):
            load_statistics(tmp_path / "nowhere.json")
        with pytest.raises(InputError, match="can't read"):
            load_statistics(tmp_path)
