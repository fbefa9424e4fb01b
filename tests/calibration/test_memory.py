"""max_memory: what every stage takes is held to it, told where it is too little, and changes no number."""

import ctypes
import re
import weakref
from pathlib import Path

import pytest
import torch
from networks import images, network, sequence
from reconstruction_runs import RECIPE, conv, float_network, learned, same
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pytorch_quantizer as pq
from pytorch_quantizer.calibration import corrections, covariance, memory
from pytorch_quantizer.calibration.activation_cache import ActivationCache
from pytorch_quantizer.calibration.covariance import InputMoments, window_count, windows
from pytorch_quantizer.calibration.measured import Measured
from pytorch_quantizer.calibration.memory import release_memory
from pytorch_quantizer.calibration.sampled_windows import sampled_windows
from pytorch_quantizer.calibration.second_order import ROWS, windows_seen
from pytorch_quantizer.errors import InputError


@pytest.fixture(scope="module")
def model():
    return learned()


class TestReconstruction:
    def test_what_lies_in_files_gives_the_same(self, model, monkeypatch):
        made = []
        monkeypatch.setattr(memory, "block_bytes", lambda *_: 2**20)
        monkeypatch.setattr(ActivationCache, "restrict", lambda _, limit: made.append(limit))
        found = learned(max_memory=2**20)
        assert made == [0]
        assert same(found, model)

    def test_nothing_is_kept_in_memory_beyond_the_limit(self, model, monkeypatch):
        monkeypatch.setattr(memory, "block_bytes", lambda *_: 2**20)
        kept = []
        room = ActivationCache.room

        def watched(cache, *given):
            rows = room(cache, *given)
            kept.append((cache.used, cache.limit, rows.in_memory))
            return rows

        monkeypatch.setattr(ActivationCache, "room", watched)
        assert same(learned(max_memory=2**20 + 40_000), model)
        assert all(used <= limit for used, limit, _ in kept)
        assert {in_memory for *_, in_memory in kept} == {True, False}

    def test_a_limit_below_what_a_block_needs_states_the_minimum(self):
        with pytest.raises(InputError, match=r"max_memory must be at least \d+ MiB, which learning the block .* takes"):
            learned(max_memory=2**20)

    def test_the_minimum_it_states_is_enough(self, model):
        with pytest.raises(InputError) as stopped:
            learned(max_memory=2**20)
        minimum = int(str(stopped.value).split("at least ")[1].split(" MiB")[0])
        assert same(learned(max_memory=minimum * 2**20), model)
        with pytest.raises(InputError):
            learned(max_memory=(minimum - 1) * 2**20)


def least(message):
    """The least limit that an error states, in bytes."""
    return int(re.search(r"at least (\d+) MiB", str(message))[1]) * 2**20


LARGE = [images(32, 3, 64, 64, seed=seed) for seed in range(4)]
SHORT = RECIPE.replace(reconstruction_iterations=5, correction_images=64)
GIVEN = {
    "a list": lambda batches: [(batch, 0) for batch in batches],
    "a tensor": lambda batches: torch.cat(batches),
    "a loader": lambda batches: DataLoader(TensorDataset(torch.cat(batches)), 32),
    "a generator": iter,
}


class TestWhatComesBeforeLearning:
    @pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
    def test_images_for_corrections_count_before_they_come(self, given):
        """128 of 48 KiB; 32 of them keep to the limit, so that what corrections take beside them is told."""
        recipe = SHORT.replace(activation_correction="both", correction_images=128)
        with pytest.raises(InputError, match="at least 6 MiB, which keeping up to 128 images for corrections takes"):
            learned(recipe, batches=given(LARGE), max_memory=2 * 2**20)
        with pytest.raises(InputError, match="which correcting on 32 images takes"):
            learned(recipe, batches=given(LARGE[:1]), max_memory=2 * 2**20)

    def test_a_limit_below_a_mebibyte_is_told_in_bytes(self):
        recipe = SHORT.replace(activation_correction="both", correction_images=128)
        with pytest.raises(InputError, match="got 100000 bytes; "):
            learned(recipe, batches=LARGE, max_memory=100_000)

    def test_second_moments_count_them_too(self):
        recipe = SHORT.replace(activation_correction="both", weight_clip="output_mse", correction_images=128)
        with pytest.raises(InputError, match=r"which choosing \w+\.weight by its outputs takes") as stopped:
            learned(recipe, batches=LARGE, max_memory=2 * 2**20)
        with pytest.raises(InputError, match="which correcting on 128 images takes"):
            learned(recipe, batches=LARGE, max_memory=least(stopped.value))

    def test_images_are_kept_without_the_rest_of_their_batch(self):
        measured = Measured(
            pq.capture(float_network(), LARGE[0]).graph, (), SHORT.replace(weight_rounding="gptq", correction_images=33)
        )
        assert len(list(measured.keep_some(LARGE))) == len(LARGE)
        assert [len(batch) for batch in measured.images] == [32, 1]
        assert all(batch.untyped_storage().nbytes() == batch.nbytes for batch in measured.images)

    @pytest.mark.parametrize("corrected", [{"activation_correction": "both"}, {"weight_rounding": "second_order"}])
    def test_corrections_keep_to_the_limit(self, corrected):
        recipe = SHORT.replace(**corrected)
        with pytest.raises(InputError, match="MiB, which correcting on 64 images takes, got 60 MiB") as stopped:
            learned(recipe, batches=LARGE, max_memory=60 * 2**20)
        minimum = least(stopped.value)
        found = learned(recipe, batches=LARGE, max_memory=minimum)
        assert same(found, learned(recipe, batches=LARGE))

    @pytest.mark.parametrize("corrected", [{"activation_correction": "both"}, {"weight_rounding": "second_order"}])
    @pytest.mark.parametrize("share", [0.99, 0.8])
    def test_as_many_images_as_it_says_are_few_enough(self, corrected, share):
        recipe = SHORT.replace(**corrected, reconstruction_batch=4)
        with pytest.raises(InputError, match="which correcting on 64 images takes") as stopped:
            learned(recipe, batches=LARGE, max_memory=60 * 2**20)
        limit = int(least(stopped.value) * share)
        with pytest.raises(InputError, match=r"set correction_images to \d+$") as stopped:
            learned(recipe, batches=LARGE, max_memory=limit)
        most = int(str(stopped.value).rsplit(" ", 1)[1])
        learned(recipe.replace(correction_images=most), batches=LARGE, max_memory=limit)
        with pytest.raises(InputError):
            learned(recipe.replace(correction_images=most + 1), batches=LARGE, max_memory=limit)

    def test_each_correction_counts_its_own_walk(self):
        """Activations are corrected behind a sum of eight branches, weights at each by itself, and no norm at all."""

        def added_up(net, x):
            x, total = net.stem(x).relu(), 0
            for name in "abcdefgh":
                total = total + net.get_submodule(name)(x).relu()
            return net.fc(total.mean((2, 3)))

        net = network(added_up, stem=conv(3), fc=nn.Linear(6, 5), **{name: conv() for name in "abcdefgh"})
        asked = {"activation_correction": "both", "weight_correction": "mean", "batch_norm_reestimation": True}
        counted = {}
        for fields in (asked, *({name: asked[name]} for name in asked)):
            recipe = RECIPE.replace(**fields, correction_images=64, reconstruction_batch=2)
            with pytest.raises(InputError) as stopped:
                learned(recipe, net, [images(64, 3, 64, 64)], max_memory=60 * 2**20)
            counted[" ".join(fields)] = least(stopped.value) // 2**20
        together, activations, weights, norms = counted.values()
        assert together == activations > weights > norms

    def test_outputs_of_corrected_layers_go_as_they_are_computed_again(self, monkeypatch):
        """Of all layers behind a sum at once they would be more than is counted."""
        apply, left = corrections._Trial.apply, []

        def watched(trial, affine):
            before = [weakref.ref(output) for outputs in trial.outputs.values() for output in outputs]
            apply(trial, affine)
            left.append(sum(output() is not None for output in before))

        monkeypatch.setattr(corrections._Trial, "apply", watched)
        learned(SHORT.replace(activation_correction="mean", reconstruction="none"))
        assert left == [0] * len(left) != []

    @pytest.mark.parametrize(("pixels", "fewer"), [(4, False), (24, True)])
    def test_rounding_that_no_image_makes_small_enough_is_to_be_left_out(self, pixels, fewer):
        """Of 1,024 inputs an output, in float64, eleven times: more than all that images take, or not so."""
        net = sequence(nn.Conv2d(3, 1024, 1), nn.MaxPool2d(4), nn.ReLU(), nn.Conv2d(1024, 4, 1))
        asked = {"weight_rounding": "second_order", "activation_correction": "mean"}
        recipe = SHORT.replace(**asked, correction_images=16, reconstruction_batch=1)
        batches = [images(16, 3, pixels, pixels)]
        advice = "leave out weight_rounding" + (r" and set correction_images to (\d+)" if fewer else "")
        with pytest.raises(InputError, match=f"which correcting on 16 images takes, got 150 MiB; {advice}$") as stopped:
            learned(recipe, net, batches, max_memory=150 * 2**20)
        assert least(stopped.value) > 11 * 8 * 1024**2
        most = int(str(stopped.value).rsplit(" ", 1)[1]) if fewer else 16
        learned(recipe.replace(weight_rounding="nearest", correction_images=most), net, batches, max_memory=150 * 2**20)

    def test_every_stage_beyond_the_limit_tells_what_takes_less(self):
        recipe = SHORT.replace(activation_correction="both")
        with pytest.raises(
            InputError,
            match="got 60 MiB; leave out activation_correction; a recipe with a smaller reconstruction_batch",
        ):
            learned(recipe, batches=LARGE, max_memory=60 * 2**20)

    def test_nothing_is_fewer_than_one_image_for_widths(self):
        mixed = {"mixed_precision": "weights", "mixed_precision_criterion": "measured", "correction_images": 1}
        with pytest.raises(InputError, match=r"measuring what widths cost takes, got 1 MiB(;|$)") as stopped:
            learned(SHORT.replace(**mixed), max_memory=2**20)
        assert "correction_images" not in str(stopped.value)

    @pytest.mark.parametrize("stage", ["reconstruction", "tuning"])
    def test_nothing_is_smaller_than_a_batch_of_one(self, stage):
        off = {"reconstruction": "none", "tuning_epochs": 1} if stage == "tuning" else {}
        recipe = SHORT.replace(**{f"{stage}_batch": 1}, **off)
        with pytest.raises(InputError, match=r"max_memory must be at least \d+ MiB, which .* takes, got 1 MiB$"):
            learned(recipe, max_memory=2**20)

    def test_layers_that_are_not_rounded_so_count_nothing(self):
        net = sequence(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))  # 12,288 inputs: 13 GB
        recipe = SHORT.replace(weight_rounding="second_order", correction_images=4)
        with pytest.warns(UserWarning, match="weight_rounding was asked for and changed nothing"):
            learned(recipe, net, [images(16, 3, 64, 64)], max_memory=2**30)

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            (
                {"weight_clip": "output_mse"},
                r"choosing \w+\.weight by its outputs takes, got 1 MiB; weight_clip mse takes",
            ),
            (
                {"mixed_precision": "weights", "mixed_precision_criterion": "measured", "correction_images": 2},
                "measuring what widths cost takes, got 1 MiB; smaller batches or fewer correction_images",
            ),
        ],
        ids=["second moments", "widths"],
    )
    def test_the_others_do_too(self, fields, named, monkeypatch):
        recipe = SHORT.replace(**fields)
        with pytest.raises(InputError, match=named) as stopped:
            learned(recipe, max_memory=2**20)
        limit = least(stopped.value)
        monkeypatch.setattr(memory, "block_bytes", lambda *_: 2**20)
        assert same(learned(recipe, max_memory=limit), learned(recipe))
        with pytest.raises(InputError, match=named.replace("1 MiB", r"\d+ MiB")):
            learned(recipe, max_memory=limit - 2**20)

    @pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.Linear(5, 4)], ids=["grouped", "linear"])
    @pytest.mark.parametrize("centred", [False, True])
    def test_second_moments_in_files_are_the_same(self, layer, centred, monkeypatch):
        monkeypatch.setattr(covariance, "AT_ONCE", 40)  # some rows at a time
        inputs = [images(size, *((4, 6, 7) if isinstance(layer, nn.Conv2d) else (5,)), seed=size) for size in (3, 1, 7)]
        free, kept = InputMoments(layer), InputMoments(layer, ActivationCache(0))
        for batch in inputs:
            free(batch)
            kept(batch)
        for _ in range(2):  # asking changes nothing
            assert torch.equal(kept.second_moments(centred=centred), free.second_moments(centred=centred))


class TestCounts:
    """What needs are computed from, beside what is really looked at."""

    @pytest.mark.parametrize("count", [1, 5, 40])
    @pytest.mark.parametrize(("stride", "size"), [(1, 32), (2, 32), (2, 7)])
    def test_windows_of_a_convolution(self, count, stride, size):
        layer, x = nn.Conv2d(3, 4, 3, stride=stride, padding=1), images(count, 3, size, size)
        assert window_count(layer, x.shape, layer(x).shape, count) == windows(layer, x).shape[1]

    @pytest.mark.parametrize("shape", [(7, 5), (40, 1000, 5), (3, 2, 5)])
    def test_windows_of_a_linear_layer(self, shape):
        layer = nn.Linear(5, 4)
        x = images(*shape)
        assert window_count(layer, x.shape, layer(x).shape, len(x)) == windows(layer, x).shape[1]

    @pytest.mark.parametrize("of_all", [40, 400, 40_000])
    def test_sampled_windows(self, of_all):
        layer, batch = nn.Conv2d(3, 4, 3, padding=1), 40
        net = sequence(layer)
        example = images(2, 3, 32, 32)
        [node] = [node for node in pq.capture(net, example).graph.graph.nodes if node.op == "call_module"]
        seen = sampled_windows(layer, images(batch, 3, 32, 32), max(1, ROWS * batch // of_all))
        assert seen.shape[1] <= windows_seen(node, layer, batch, of_all) <= 2 * seen.shape[1]


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="of glibc alone")
def test_what_is_freed_is_given_back():
    """Tensors of some kilobytes lie one behind another; freed, glibc keeps their pages while something is behind."""
    kept = [torch.ones(2**12) for _ in range(2**12)]  # 64 MiB
    last = torch.ones(2**12)
    del kept
    before = resident()
    release_memory(cycles=True)
    assert before - resident() > 2**25
    assert last.sum() == 2**12


class _Glibc:
    """Stands in for glibc: tells which settings it was given."""

    def __init__(self):
        self.settings = []

    def mallopt(self, setting, value):
        self.settings.append((setting, value))


@pytest.mark.parametrize(
    ("name", "value", "is_touched"),
    [
        ("MALLOC_MMAP_THRESHOLD_", "65536", False),
        ("MALLOC_TRIM_THRESHOLD_", "65536", False),
        ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=65536", False),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=65536", False),
        ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1", True),
    ],
)
def test_thresholds_of_the_environment_stay(name, value, is_touched, monkeypatch):
    for other in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    glibc = _Glibc()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: glibc)
    with memory.large_tensors_given_back(2**27):
        assert {setting for setting, _ in glibc.settings} == ({-1, -3} if is_touched else set())
    if is_touched:  # what stays behind, as the docstring has it
        assert glibc.settings[-2:] == [(-3, 2**25), (-1, 2**25)]


class TestTheLimitItself:
    @pytest.mark.parametrize("given", [0, -1, 1.5, True, "1GiB"])
    def test_a_limit_that_is_none(self, given):
        with pytest.raises(InputError, match="max_memory must be a number of bytes"):
            learned(max_memory=given)

    def test_a_limit_for_nothing(self):
        with pytest.raises(InputError, match="max_memory is for reconstruction and tuning"):
            learned(RECIPE.replace(reconstruction="none"), max_memory=2**30)
