"""Training with quantization: what is learned fits the labels, or the teacher, and is exactly what is stored."""

import copy

import pytest
import torch
from networks import images, network, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.calibration.qat import Student, divergence
from pytorch_quantizer.errors import InputError

RECIPE = pq.Recipe(weights="int2", activations="int2", weight_narrow=False)
BATCHES = [(images(32, 3, 8, 8, seed=seed), torch.arange(32) % 5) for seed in range(4)]
WEIGHTS = ("conv1.weight", "conv2.weight", "linear.weight")
UNSEEN = images(64, 3, 8, 8, seed=99)


def net():
    """A network whose batch norms have seen the images."""

    def forward(net, x):
        x = net.relu(net.bn1(net.conv1(x)))
        x = net.relu(net.bn2(net.conv2(x)) + x)
        return net.linear(x.mean((2, 3)))

    made = network(
        forward,
        conv1=nn.Conv2d(3, 8, 3, padding=1),
        bn1=nn.BatchNorm2d(8),
        conv2=nn.Conv2d(8, 8, 3, padding=1, bias=False),
        bn2=nn.BatchNorm2d(8),
        relu=nn.ReLU(),
        linear=nn.Linear(8, 5),
    ).train()
    with torch.no_grad():
        for batch, _ in BATCHES * 10:
            made(batch)
    return made.eval()


def learn(student, steps=40, grid_rate=0.005, **settings):
    given = {"distillation": 1.0, "temperature": 2.0} | settings
    optimizer = torch.optim.Adam(student.groups(0.02, grid_rate), eps=1e-12)
    student.train_mode()
    for step in range(steps):
        loss = student.loss(*BATCHES[step % len(BATCHES)], **given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def error(model, teacher):
    with torch.no_grad():
        return float((model(UNSEEN.clone()) - teacher(UNSEEN)).square().mean())


@pytest.mark.parametrize("norms", [True, False], ids=["norms kept", "norms folded"])
class TestStudent:
    def test_it_comes_nearer_to_its_teacher(self, norms):
        model = net()
        student = Student.from_model(model, RECIPE, BATCHES, norms=norms, progress=False)
        before = error(student.start, model)
        learn(student)
        assert error(student.hardened(), model) < 0.6 * before

    def test_labels_alone_can_be_learned(self, norms):
        student = Student.from_model(net(), RECIPE, BATCHES, norms=norms, progress=False)
        images, labels = BATCHES[0]
        settings = {"distillation": 0.0, "temperature": 1.0}
        before = float(student.loss(images, labels, **settings).detach())
        assert learn(student, steps=80, **settings) < 0.8 * before

    def test_what_is_learned_is_what_is_stored(self, norms, tmp_path):
        student = Student.from_model(net(), RECIPE, BATCHES, norms=norms, progress=False)
        learn(student)
        model = student.hardened()
        torch.testing.assert_close(model(UNSEEN.clone()), student.learned(UNSEEN), rtol=1e-2, atol=1e-2)
        pq.save(model, tmp_path / "model.safetensors")
        assert torch.equal(pq.load(tmp_path / "model.safetensors")(UNSEEN), model(UNSEEN.clone()))
        assert "quantization-aware training" in model.notes[-1]

    def test_only_what_was_learned_changes(self, norms):
        model = net()
        float_before = copy.deepcopy(model.state_dict())
        student = Student.from_model(model, RECIPE, BATCHES, norms=norms, progress=False)
        start, teacher = (copy.deepcopy(part.state_dict()) for part in (student.start, student.teacher))
        learn(student, steps=3)
        student.hardened()
        for before, part in ((start, student.start), (teacher, student.teacher), (float_before, model)):
            assert all(torch.equal(before[name], tensor) for name, tensor in part.state_dict().items())


class TestGrids:
    """What of the grids a finished network shares, to the bit, with what calibration gave."""

    ALL_LEARN = RECIPE.replace(weights="int3", activations="int4", activation_symmetric=False, first="int3")

    def learned(self, grids, norms=False, **fields):
        """(buffers before, buffers after, the finished network), all weights having moved."""
        recipe = self.ALL_LEARN.replace(**fields)
        student = Student.from_model(net(), recipe, BATCHES, norms=norms, grids=grids, progress=False)
        learn(student, grid_rate=0.2)
        before, after = student.start, student.hardened()
        moved = [not torch.equal(before.get_parameter(name), after.get_parameter(name)) for name in WEIGHTS]
        assert all(moved)
        return dict(before.named_buffers()), dict(after.named_buffers()), after

    def differing(self, before, after, ending):
        names = [name for name in before if name.endswith(ending)]
        assert len(names) >= 6
        return [name for name in names if not torch.equal(before[name], after[name])]

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"activations": "int6", "first": "int6"},  # where moving scales off ties again would move one
            {"deployable": False},
            {"deployable": False, "weight_symmetric": False},
        ],
    )
    def test_fixed_ones_stay_as_calibrated_while_weights_move(self, fields):
        before, after, model = self.learned("fixed", **fields)
        assert self.differing(before, after, "scale") == []
        assert self.differing(before, after, "zero_point") == []
        assert "grids are as calibrated" in model.notes[-1]

    @pytest.mark.parametrize("norms", [True, False])
    def test_lsq_moves_scales_alone(self, norms):
        before, after, model = self.learned("lsq", norms=norms)
        scales = self.differing(before, after, "scale")
        assert {"conv1", "quantizers"} <= {name.split(".")[0] for name in scales}
        assert self.differing(before, after, "zero_point") == []
        assert "activations' scales" in model.notes[-1]

    def test_lsq_plus_moves_zero_points_too_and_is_what_is_done_unless_asked(self):
        before, after, model = self.learned("lsq_plus")
        assert self.differing(before, after, "scale")
        assert self.differing(before, after, "zero_point")
        student = Student.from_model(net(), self.ALL_LEARN, BATCHES, progress=False)
        learn(student, grid_rate=0.2)
        assert all(torch.equal(tensor, after[name]) for name, tensor in student.hardened().named_buffers())
        assert student.hardened().notes == model.notes

    def test_a_network_without_biases_has_weights_alone_to_learn(self):
        bare = sequence(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5, bias=False))
        student = Student.from_model(bare, self.ALL_LEARN, BATCHES, grids="fixed", progress=False)
        learn(student)
        for name in ("body.0.weight", "body.3.weight"):
            assert not torch.equal(student.start.get_parameter(name), student.hardened().get_parameter(name))

    def test_what_is_none_is_said_before_anything_is_quantized(self):
        with pytest.raises(InputError, match="grids must be one of"):
            Student.from_model(None, RECIPE, [], grids="ste")


def test_an_average_can_be_hardened_instead():
    student = Student.from_model(net(), RECIPE, BATCHES, norms=True, progress=False)
    other = copy.deepcopy(student.learned)
    learn(student)
    hardened, start = student.hardened(other), student.start
    torch.testing.assert_close(hardened(UNSEEN.clone()), start(UNSEEN.clone()), rtol=1e-2, atol=1e-2)


def test_the_start_is_what_quantize_gives():
    model = net()
    student = Student.from_model(model, RECIPE, BATCHES, progress=False)
    quantized = pq.quantize(model, RECIPE, BATCHES, progress=False)
    assert torch.equal(student.start(UNSEEN.clone()), quantized(UNSEEN.clone()))


def test_equalized_networks_teach_what_they_computed_before():
    model = net()
    student = Student.from_model(model, RECIPE.replace(equalize=True), BATCHES, progress=False)
    torch.testing.assert_close(student.teacher(UNSEEN), model(UNSEEN), rtol=1e-3, atol=1e-3)


def test_a_divergence_is_zero_of_equals_and_grows():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert float(divergence(logits, logits + 5, 4.0)) == pytest.approx(0, abs=1e-6)
    expected = (torch.softmax(logits, 1) * (torch.log_softmax(logits, 1) + torch.log(torch.tensor(3.0)))).sum()
    assert float(divergence(torch.zeros(1, 3), logits, 1.0)) == pytest.approx(float(expected), rel=1e-5)


def test_a_recipe_without_weights_to_train():
    with pytest.raises(InputError, match="leaves no weight on a uniform grid to train"):
        Student.from_model(
            net(), pq.Recipe(weights="kmeans4", first="kmeans4", last="kmeans4", deployable=False), BATCHES
        )
