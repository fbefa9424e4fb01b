"""Calibration: what batches may be, statistics that repeat to the bit, and values that allow no range named."""

import pytest
import torch
from networks import images, sequence
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytorch_quantizer import InputError, Recipe, TensorStatistics, capture, fold
from pytorch_quantizer.calibration.calibrate import calibrate, device_of, images_of, statistics_key
from pytorch_quantizer.calibration.fit import fit
from pytorch_quantizer.graph.place import place

CPU = torch.device("cpu")


@pytest.fixture
def placed():
    """(graph, sites) of a small network."""
    net = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    graph, kept = fold(capture(net, images()))
    return graph, place(graph, Recipe(), kept)


class TestImages:
    @pytest.mark.parametrize("form", [lambda x: x, lambda x: (x, 1), lambda x: [x, torch.ones(4)], lambda x: (x,)])
    def test_are_the_batch_or_come_first_in_it(self, form):
        [got] = images_of([form(images())], CPU)
        assert torch.equal(got, images())

    @pytest.mark.parametrize("batch", [{"x": 1}, "text", (), [[1, 2]], 3, torch.ones(2, 3).int(), (1, torch.ones(2))])
    def test_of_another_form_are_refused(self, batch):
        with pytest.raises(
            InputError, match="a calibration batch must be a float tensor of images, or a tuple or list"
        ):
            list(images_of([batch], CPU))

    def test_come_from_a_loader(self, placed):
        loader = DataLoader(TensorDataset(images(10, 3, 8, 8), torch.arange(10)), batch_size=4)
        assert calibrate(*placed, loader)["x"].count == 10 * 3 * 64


class TestCalibrate:
    def test_sees_each_tensor_over_all_batches(self, placed):
        graph, sites = placed
        batches = [images(seed=seed) * seed for seed in (1, 2, 3)]
        statistics = calibrate(graph, sites, batches)
        assert set(statistics) == {statistics_key(site) for site in sites if site.is_activation and site.quantizer}
        expected = TensorStatistics.merged(TensorStatistics.from_tensor(batch).with_extremes() for batch in batches)
        assert statistics["x"].to_dict() == expected.to_dict()
        assert torch.equal(statistics["x"].extremes, expected.extremes)

    def test_before_the_relu(self, placed):
        graph, sites = placed
        statistics = calibrate(graph, sites, [images()])
        relu = next(site for site in sites if site.name == "body.2")
        before = graph.get_submodule("body.0")(images())
        assert statistics[statistics_key(relu)].min == before.min() < 0

    def test_a_tensor_read_by_a_relu_and_by_others_has_two_records(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

            def forward(self, x):
                y = self.first(x)
                return self.second(nn.functional.relu6(y)) + self.second(y)

        graph = fold(capture(Net(), images()))[0]
        statistics = calibrate(graph, place(graph, Recipe(across_batches="mean"), {}), [images(), images(seed=1) * 90])
        assert {"first", "first:relu6"} < set(statistics)
        assert statistics["first"].max == statistics["first:relu6"].max > 6
        assert statistics["first:relu6"].min_mean == 0 > statistics["first"].min_mean
        assert 0 < statistics["first:relu6"].max_mean < 6 < statistics["first"].max_mean

    def test_repeats_to_the_bit(self, placed):
        batches = [images(size, 3, 8, 8, seed=size) for size in (5, 1, 8)]
        first, again = (calibrate(*placed, batches) for _ in range(2))
        assert all(first[name].to_dict() == again[name].to_dict() for name in first)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_a_statistic_does_not_depend_on_threads(self, threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            got = TensorStatistics.from_tensor(images(7, 33, 50, 50))
        finally:
            torch.set_num_threads(before)
        assert vars(got) == vars(TensorStatistics.from_tensor(images(7, 33, 50, 50)))

    @pytest.mark.parametrize("batches", [[], iter(())])
    def test_nothing_to_see_is_an_error(self, placed, batches):
        with pytest.raises(InputError, match="the calibration set is empty; give at least one batch of images"):
            calibrate(*placed, batches)

    def test_keeps_no_gradient_and_changes_no_weight(self, placed):
        graph, sites = placed
        before = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
        statistics = calibrate(graph, sites, [images().requires_grad_()])
        assert not any(
            tensor.requires_grad
            for record in statistics.values()
            for tensor in vars(record).values()
            if tensor is not None
        )
        assert all(torch.equal(tensor, before[name]) for name, tensor in graph.state_dict().items())


class TestFit:
    def test_gives_every_site_its_grid(self, placed):
        graph, sites = placed
        assert fit(graph, sites, calibrate(graph, sites, [images()])) == sites
        assert all(site.quantizer.scale is not None for site in sites if site.quantizer is not None)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_names_the_tensor_that_allows_no_range(self, placed, value):
        graph, sites = placed
        poisoned = images()
        poisoned[1, 1, 1, 1] = value
        with pytest.raises(InputError, match=r"^x: it holds NaN or infinite values$"):
            fit(graph, sites, calibrate(graph, sites, [images(), poisoned]))


def test_device_of_a_model_without_parameters():
    assert device_of(nn.ReLU()) == CPU
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
