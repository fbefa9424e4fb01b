"""Reconstruction: what is learned is nearer the float network and is what is stored; resuming, repeating."""

import warnings

import pytest
import torch
from networks import images, network, sequence
from reconstruction_runs import BATCHES, RECIPE, conv, float_network, learned, same
from safetensors.torch import load_file, save_file
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.calibration import reconstruct as module
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.blocks import list_blocks
from pytorch_quantizer.graph.rescale import apply_affine
from pytorch_quantizer.quantization.bias_correction import Affine


def error(model, net):
    x = torch.cat(BATCHES)
    with torch.no_grad():
        return float((model(x) - net(x)).square().mean())


def codes(model, path):
    layer = model.get_submodule(path.removesuffix(".weight"))
    return layer.weight_quantizer.quantize(layer.weight)


@pytest.fixture(scope="module")
def model():
    return learned()


class TestWhatIsLearned:
    @pytest.mark.parametrize("fields", [{}, {"reconstruction_drop": 0.0}, {"reconstruction": "layer"}])
    def test_comes_nearer_the_float_network(self, fields):
        net = float_network()
        before = error(learned(RECIPE.replace(reconstruction="none"), net), net)
        assert error(learned(RECIPE.replace(**fields), net), net) < 0.6 * before

    def test_is_what_is_stored(self, model, tmp_path):
        pq.save(model, tmp_path / "model.safetensors")
        x = images(5, 3, 8, 8, seed=9)
        assert torch.equal(pq.load(tmp_path / "model.safetensors")(x), model(x))

    def test_runs_in_integers(self, model):
        x = images(5, 3, 8, 8, seed=9)
        assert torch.allclose(pq.IntegerModel(model)(x), model(x), atol=1e-5)

    def test_every_weight_and_bias_lies_on_its_grid(self, model):
        for site in model.sites:
            if site.kind in ("weight", "bias"):
                tensor = model.get_parameter(site.node)
                assert torch.equal(site.quantizer(tensor), tensor), site.name

    def test_weights_settle_on_one_of_their_two_neighbours(self, model):
        float_weight, layer = float_network().c.weight, model.get_submodule("c")
        quantizer = layer.weight_quantizer
        start = learned(RECIPE.replace(reconstruction="none")).get_submodule("c").weight_quantizer.scale
        places = (float_weight / start.reshape(-1, 1, 1, 1)).clamp(quantizer.qmin, quantizer.qmax)
        found = quantizer.quantize(layer.weight)
        assert float((found - places).detach().abs().max()) < 1
        assert bool((found != torch.round(places)).any()), "nothing but the nearest was learned"

    def test_weights_alone(self, model):
        unlearned, found = (
            learned(RECIPE.replace(reconstruction="none")),
            learned(RECIPE.replace(reconstruction_learns="weights")),
        )
        steps = [site.name for site in found.sites if site.is_activation and site.quantizer is not None]
        for name in steps:
            assert torch.equal(_scale(found, name), _scale(unlearned, name)), name
        assert any(not torch.equal(_scale(model, name), _scale(unlearned, name)) for name in steps)
        assert not torch.equal(found.get_submodule("a").weight, unlearned.get_submodule("a").weight)

    def test_activations_alone(self):
        unlearned = learned(RECIPE.replace(reconstruction="none"))
        found = learned(RECIPE.replace(reconstruction_learns="activations"))
        for site in unlearned.sites:
            if site.kind == "weight":  # the scales themselves are moved off the ties of the new steps
                assert torch.equal(codes(unlearned, site.node), codes(found, site.node)), site.name
        names = [s.name for s in found.sites if s.is_activation and s.quantizer is not None and s.quantizer.bits < 8]
        assert names
        assert any(not torch.equal(_scale(found, name), _scale(unlearned, name)) for name in names)

    def test_a_block_that_gains_nothing_stays_as_it_was(self, monkeypatch):
        def spoil(block, *_, **__):
            with torch.no_grad():
                for parameter in block.parameters():
                    parameter.add_(3.0)

        monkeypatch.setattr(module, "train_block", spoil)
        said = "of the 4 blocks that were learned none came nearer to the float network than before"
        with pytest.warns(UserWarning, match=f"changed nothing in this network: {said}; more reconstruction_iter"):
            found = learned()
        assert found.notes[0] == f"reconstruction: 0 of 4 blocks learned on 64 images: {said}"
        unlearned = learned(RECIPE.replace(reconstruction="none"))
        assert torch.allclose(found(BATCHES[0]), unlearned(BATCHES[0]), atol=1e-5)

    def test_a_gain_that_a_correction_gave_stays(self):
        recipe, net = RECIPE.replace(reconstruction="none"), float_network()
        unlearned, graph = learned(recipe, net), pq.capture(net, BATCHES[0]).graph
        scales = module.starting_scales(unlearned)
        gain = torch.linspace(0.5, 2, 6)
        apply_affine(unlearned.get_submodule("a"), Affine(gain.double(), torch.zeros(6, dtype=torch.float64)))
        [block] = [block for block in list_blocks(unlearned) if block.name == "a … b"]
        found = module._originals(unlearned, graph, block, scales)
        assert torch.allclose(found["a"], net.a.weight * gain.reshape(-1, 1, 1, 1), rtol=1e-5)
        assert torch.equal(found["b"], net.b.weight)

    def test_the_notes_tell(self, model):
        [note] = [note for note in model.notes if note.startswith("reconstruction")]
        assert note == "reconstruction: 4 of 4 blocks learned on 64 images (stem, a … b, c, fc)"


def _scale(model, name):
    return next(site.quantizer.scale for site in model.sites if site.name == name)


class TestNetworks:
    @pytest.mark.parametrize(
        "layer",
        [
            conv(groups=3),
            conv(bias=False),
            nn.ConvTranspose2d(6, 6, 3, padding=1),
            nn.ConvTranspose2d(6, 6, 3, padding=1, groups=2),
            nn.Conv2d(6, 6, 1, stride=2),
        ],
        ids=["grouped", "without a bias", "transposed", "transposed in groups", "strided"],
    )
    def test_layers_of_any_kind(self, layer):
        net = sequence(conv(3), nn.ReLU(), layer, nn.ReLU(), conv())
        before = error(learned(RECIPE.replace(reconstruction="none"), net), net)
        found = learned(net=net)
        assert error(found, net) < before
        assert torch.allclose(pq.IntegerModel(found)(BATCHES[0]), found(BATCHES[0]), atol=1e-4)

    def test_networks_of_linear_layers(self):
        net, x = sequence(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), images(64, 12)
        before = pq.quantize(net, RECIPE.replace(reconstruction="none"), x, progress=False)
        after = pq.quantize(net, RECIPE, x, progress=False)
        with torch.no_grad():
            assert (after(x) - net(x)).square().mean() < (before(x) - net(x)).square().mean()

    @pytest.mark.parametrize(
        "fields",
        [
            {"weight_granularity": "per_tensor"},
            {"weight_symmetric": False},
            {"weight_narrow": False},
            {"wide_residual": True},
            {"activations": "float32", "deployable": False},
            {"activation_granularity": "per_channel", "deployable": False},
            {"activation_symmetric": True},
            {"bias": "float32", "deployable": False},
            {"equalize": True, "activation_correction": "both"},
            {"overrides": ({"layers": "a", "weights": "int8"},)},
        ],
        ids=str,
    )
    def test_on_top_of_any_recipe(self, fields):
        net = float_network()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = error(learned(RECIPE.replace(reconstruction="none", **fields), net), net)
            assert error(learned(RECIPE.replace(**fields), net), net) < before

    @pytest.mark.parametrize("weights", ["kmeans3", "pot3"])
    def test_other_number_types_stay_and_are_named(self, weights):
        fields = {
            "weights": weights,
            "weight_clip": "minmax",
            "clip": "minmax",
            "first": "int8",
            "last": "int8",
            "deployable": False,
        }
        found, unlearned = learned(RECIPE.replace(**fields)), learned(RECIPE.replace(reconstruction="none", **fields))
        assert torch.equal(found.get_submodule("a").weight, unlearned.get_submodule("a").weight)
        assert any("weights left as they were (a: its weight is" in note for note in found.notes)

    def test_a_layer_that_is_called_twice_stays_and_is_named(self):
        def forward(net, x):
            return net.a(net.relu(net.a(net.relu(net.stem(x)))))

        found = learned(net=network(forward, stem=conv(3), a=conv(), relu=nn.ReLU()))
        assert any("a: it is called 2 times" in note for note in found.notes)
        assert "a.weight" in {site.node for site in found.sites}

    def test_a_network_without_layers_has_nothing_to_learn(self):
        said = "it has no block that can be learned"
        with pytest.warns(UserWarning, match=f"changed nothing in this network: {said}; set reconstruction none"):
            found = learned(net=sequence(nn.AvgPool2d(2), nn.ReLU()))
        assert found.notes == (f"reconstruction: 0 of 0 blocks learned on 64 images: {said}",)
        assert found(BATCHES[0]).shape == (16, 3, 4, 4)

    def test_blocks_in_which_nothing_learns_are_none_that_were_learned(self):
        fields = {"weights": "kmeans3", "weight_clip": "minmax", "activations": "int8", "deployable": False}
        recipe = RECIPE.replace(overrides=[{"layers": name, "weights": "kmeans3"} for name in ("stem", "fc")], **fields)
        with pytest.warns(UserWarning, match="changed nothing in this network: it has no block that can be learned"):
            found = learned(recipe)
        assert any("weights left as they were (stem: its weight is" in note for note in found.notes)

    def test_no_gradient_is_left_behind(self):
        fields = {"weights": "kmeans3", "weight_clip": "minmax", "clip": "minmax", "deployable": False}
        for recipe in (RECIPE, RECIPE.replace(**fields)):
            found = learned(recipe.replace(reconstruction_iterations=3))
            assert all(parameter.grad is None and parameter.requires_grad for parameter in found.parameters())

    def test_the_model_itself_is_not_touched(self):
        net = float_network()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        learned(net=net)
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


class TestRepeatability:
    def test_the_same_under_a_seed(self, model):
        assert same(learned(), model)

    def test_another_under_another(self, model):
        assert not same(learned(RECIPE.replace(seed=1)), model)

    def test_whatever_torchs_own_generator_has_drawn(self, model):
        torch.manual_seed(123)
        torch.rand(7)
        assert same(learned(), model)

    def test_with_a_statistics_file_too(self, model, tmp_path):
        for _ in range(2):
            assert same(learned(statistics_file=tmp_path / "statistics.json"), model)


class KilledError(Exception):
    """What stands for a process that ends."""


def killed_after(monkeypatch, steps):
    """Let the training stop for good after so many steps in all."""
    train, left = module.train_block, [steps]

    def advance_or_die(advance):
        def advanced():
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            advance()

        return advanced

    def mortal(*arguments, advance, **settings):
        train(*arguments, advance=advance_or_die(advance), **settings)

    monkeypatch.setattr(module, "train_block", mortal)


def changed(change):
    """Damage: a block's file whose tensors are others."""

    def damage(path):
        state = load_file(path)
        change(state, next(name for name in state if name.endswith(".weight")))
        save_file(state, path)

    return damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut off": lambda path: path.write_bytes(b"cut off"),
    "one bit": flip,
    "another block's": lambda path: path.write_bytes(path.with_name("block-0001.safetensors").read_bytes()),
    "a tensor less": changed(lambda state, weight: state.pop(weight)),
    "another shape": changed(lambda state, weight: state.update({weight: state[weight][:1].clone()})),
    "a foreign tensor": changed(lambda state, weight: state.update(foreign=torch.ones(1))),
    "no errors": changed(lambda state, weight: state.pop(module.ERRORS)),
    "another's name": changed(lambda state, weight: state.update({"foreign": state.pop(weight)})),
}


class TestResuming:
    @pytest.mark.parametrize("steps", [0, 30, 60, 239])
    def test_a_run_that_was_killed_ends_the_same(self, model, monkeypatch, tmp_path, steps):
        with monkeypatch.context() as patch:
            killed_after(patch, steps)
            with pytest.raises(KilledError):
                learned(resume=tmp_path)
        assert len(list(tmp_path.glob("block-*"))) == steps // 60
        assert same(learned(resume=tmp_path), model)

    def test_finished_blocks_are_not_learned_again(self, model, monkeypatch, tmp_path):
        learned(resume=tmp_path)
        monkeypatch.setattr(module, "train_block", lambda *_, **__: pytest.fail("learned again"))
        again = learned(resume=tmp_path)
        assert same(again, model)
        assert again.notes == model.notes

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (
                {"recipe": RECIPE.replace(reconstruction_iterations=61)},
                "reconstruction_iterations is 60, this one's 61",
            ),
            ({"recipe": RECIPE.replace(seed=2)}, "seed is 0, this one's 2"),
            ({"batches": BATCHES[:3]}, "(model|images) is"),
            ({"net": sequence(conv(3), nn.ReLU(), conv())}, "model is"),
        ],
    )
    def test_another_run_is_refused(self, tmp_path, change, named):
        learned(resume=tmp_path)
        with pytest.raises(InputError, match=rf"holds another run, whose {named}"):
            learned(resume=tmp_path, **change)

    def test_what_comes_after_the_blocks_may_change(self, monkeypatch, tmp_path):
        learned(resume=tmp_path)
        monkeypatch.setattr(module, "train_block", lambda *_, **__: pytest.fail("learned again"))
        learned(RECIPE.replace(name="tuned", tuning_epochs=1, tuning_batch=16), resume=tmp_path)

    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
    def test_a_damaged_block_is_named(self, tmp_path, damage):
        learned(resume=tmp_path)
        path = tmp_path / "block-0002.safetensors"
        damage(path)
        with pytest.raises(InputError, match=r"block-0002.safetensors.*remove it to learn the block again"):
            learned(resume=tmp_path)

    def test_blocks_of_another_run_are_named_though_nothing_says_which(self, tmp_path):
        learned(RECIPE.replace(reconstruction_iterations=5), resume=tmp_path)
        (tmp_path / "run.json").unlink()
        with pytest.raises(InputError, match=r"block-0000.safetensors is damaged, or of another block or run"):
            learned(resume=tmp_path)

    @pytest.mark.parametrize("content", ["", "[]", "{"])
    def test_a_damaged_header_is_named(self, tmp_path, content):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(InputError, match=r"run\.json"):
            learned(resume=tmp_path)

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="can't be a folder"):
            learned(resume=tmp_path / "file")

    def test_a_folder_for_nothing(self, tmp_path):
        with pytest.raises(InputError, match="resume is for reconstruction"):
            learned(RECIPE.replace(reconstruction="none"), resume=tmp_path)


class TestMistakes:
    def test_no_images(self):
        with pytest.raises(InputError, match="reconstruction learns on images"):
            learned(RECIPE.replace(activations="float32", deployable=False), batches=None)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"reconstruction": "blocks"}, "reconstruction must be one of none, layer, block"),
            ({"reconstruction_learns": "biases"}, "reconstruction_learns must be one of both, weights, activations"),
            ({"reconstruction_drop": 1.5}, "reconstruction_drop must be a probability from 0 to 1, got 1.5"),
            ({"reconstruction_drop": True}, "reconstruction_drop must be a probability"),
            ({"reconstruction_iterations": 0}, "reconstruction_iterations must be a whole number of 1 or more, got 0"),
            ({"reconstruction_batch": 2.5}, "reconstruction_batch must be a whole number"),
            ({"reconstruction_images": "all"}, "reconstruction_images must be a whole number"),
            ({"reconstruction_blocks": ["a"]}, "reconstruction_blocks must be patterns divided by commas"),
            ({"seed": -1}, r"seed must be between 0 and 2\^64 - 1, got -1"),
            ({"deployable": False, "weight_correction": "both"}, "weight_correction shifts weights off the grid"),
        ],
        ids=str,
    )
    def test_fields_out_of_their_rule(self, fields, words):
        with pytest.raises(InputError, match=words):
            RECIPE.replace(**fields)

    def test_a_pattern_that_matches_nothing(self):
        with pytest.raises(InputError, match="no layer's name matches 'layer9'"):
            learned(RECIPE.replace(reconstruction_blocks="a, layer9"))

    def test_patterns_make_blocks(self):
        note = learned(RECIPE.replace(reconstruction_blocks="[abc]", reconstruction_iterations=5)).notes[-1]
        assert "of 3 blocks learned" in note

    def test_a_batch_larger_than_the_images(self):
        net = float_network()
        found = learned(RECIPE.replace(reconstruction_batch=500), net, batches=BATCHES[:1])
        assert bool(torch.isfinite(found(BATCHES[0])).all())
        assert same(found, learned(RECIPE.replace(reconstruction_batch=len(BATCHES[0])), net, batches=BATCHES[:1]))

    def test_only_as_many_images_as_asked(self):
        note = learned(RECIPE.replace(reconstruction_images=20, reconstruction_iterations=5)).notes[-1]
        assert "learned on 20 images" in note
