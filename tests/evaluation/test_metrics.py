"""What evaluate reports is what the labels and the logits say, counted by hand or by scikit-learn."""

import math

import pytest
import torch
from real_data import real_data
from sklearn.metrics import f1_score, precision_score, recall_score, top_k_accuracy_score
from torch import nn

from pytorch_quantizer.data import load_dataset, make_loader
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.evaluation import evaluate, wilson_interval
from pytorch_quantizer.models import bundled_checkpoint, create_model, default_preprocessing


class Given(nn.Module):
    """A model whose logits are its input."""

    def forward(self, x):
        return x


def batches(logits, labels, size=16):
    return list(zip(logits.split(size), labels.split(size), strict=True))


@pytest.fixture
def noisy():
    """Logits [101, 8] that are right now and then, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(8, (101,), generator=generator)
    logits = torch.randn(101, 8, generator=generator) + 1.5 * nn.functional.one_hot(labels, 8)
    return logits, labels


class TestNumbers:
    def test_equal_scikit_learns(self, noisy):
        logits, labels = noisy
        result = evaluate(Given(), batches(logits, labels))
        predictions = logits.argmax(dim=1)
        assert torch.equal(result.predictions, predictions)
        assert torch.equal(result.labels, labels)
        assert result.samples == 101
        assert result.top1 == pytest.approx((predictions == labels).double().mean())
        assert 0.3 < result.top1 < 0.9
        assert result.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
        for average in ("macro", "micro", "weighted"):
            for score, ours in (
                (precision_score, result.precision),
                (recall_score, result.recall),
                (f1_score, result.f1),
            ):
                assert ours[average] == pytest.approx(score(labels, predictions, average=average, zero_division=0))

    def test_by_hand(self):
        """Classes 0, 0, 1, 2 called 0, 1, 1, 1: precisions 1, 1/3, 0; recalls 1/2, 1, 0; F1 2/3, 1/2, 0."""
        logits = torch.eye(3)[torch.tensor([0, 1, 1, 1])]
        result = evaluate(Given(), batches(logits, torch.tensor([0, 0, 1, 2])))
        assert result.top1 == 0.5
        assert result.precision["macro"] == pytest.approx((1 + 1 / 3 + 0) / 3)
        assert result.recall["macro"] == pytest.approx((1 / 2 + 1 + 0) / 3)
        assert result.f1["macro"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
        assert result.f1["weighted"] == pytest.approx((2 * 2 / 3 + 1 / 2 + 0) / 4)
        assert result.precision["micro"] == result.recall["micro"] == result.f1["micro"] == 0.5

    def test_batch_size_changes_nothing(self, noisy):
        assert evaluate(Given(), batches(*noisy, size=1)) == evaluate(Given(), batches(*noisy, size=101))

    def test_top5_of_fewer_than_five_classes_is_everything(self):
        result = evaluate(Given(), batches(torch.randn(10, 3), torch.zeros(10, dtype=torch.int64)))
        assert result.top5 == 1.0

    def test_a_dead_model_gets_no_credit_for_ties(self):
        """All logits equal: class 0 is predicted, classes 0 to 4 are the top five."""
        result = evaluate(Given(), batches(torch.zeros(10, 10), torch.arange(10)))
        assert result.top1 == 0.1
        assert result.top5 == 0.5

    @pytest.mark.parametrize(("correct", "samples"), [(0, 10), (7, 10), (10, 10), (9173, 10_000)])
    def test_the_interval_is_wilsons(self, correct, samples):
        z, p = 1.959963984540054, correct / samples
        centre = (p + z * z / (2 * samples)) / (1 + z * z / samples)
        half = z / (1 + z * z / samples) * math.sqrt(p * (1 - p) / samples + z * z / (4 * samples**2))
        assert wilson_interval(correct, samples) == pytest.approx((centre - half, centre + half), abs=1e-12)

    def test_the_dictionary_is_plain_numbers(self, noisy):
        result = evaluate(Given(), batches(*noisy), reference=Given())
        numbers = result.as_dict()
        assert numbers["top1"] == result.top1
        assert numbers["agreement"] == 1.0
        assert not {"predictions", "labels", "reference"} & numbers.keys()

    def test_prints_on_one_line(self, noisy):
        text = str(evaluate(Given(), batches(*noisy), reference=Given()))
        assert text.startswith("top-1 ")
        assert f"reference's top-1 {text[6:12]}, agreement 100.00%, 101 images" in text
        assert "\n" not in text


class TestReference:
    def test_agreement_is_the_share_of_equal_predictions(self):
        class Shifted(nn.Module):
            def forward(self, x):
                return torch.where(x[:, :1] > 0, x.roll(1, dims=1), x)

        logits = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0])]
        result = evaluate(Given(), batches(logits, torch.tensor([0, 1, 2, 3, 1]), size=2), reference=Shifted())
        assert result.agreement == 0.6
        assert result.reference.predictions.tolist() == [1, 1, 2, 3, 1]
        assert result.reference.top1 == 0.8
        assert result.top1 == 0.8

    def test_both_read_each_batch_once(self, noisy):
        logits, labels = noisy
        result = evaluate(Given(), iter(batches(logits, labels)), reference=Given())
        assert result.samples == result.reference.samples == 101

    def test_none_without_a_reference(self, noisy):
        result = evaluate(Given(), batches(*noisy))
        assert result.agreement is None
        assert result.reference is None


class TestNeverAWrongNumber:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_logits_that_are_no_numbers(self, noisy, value):
        logits, labels = noisy
        logits[3, 2] = logits[3, 5] = logits[50, 0] = value
        with pytest.raises(InputError, match="the model gives NaN or infinite logits for 2 of 101 images"):
            evaluate(Given(), batches(logits, labels))

    def test_of_the_reference(self, noisy):
        class Broken(nn.Module):
            def forward(self, x):
                return x / 0

        with pytest.raises(InputError, match="the reference model gives NaN or infinite logits for 101 of 101"):
            evaluate(Given(), batches(*noisy), reference=Broken())

    @pytest.mark.parametrize("loader", [[], [(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))]])
    def test_no_images(self, loader):
        with pytest.raises(InputError, match="nothing to evaluate"):
            evaluate(Given(), loader)

    def test_labels_without_an_output(self, noisy):
        logits, labels = noisy
        with pytest.raises(InputError, match="the model has 5 outputs, but there is an image of class 7"):
            evaluate(Given(), batches(logits[:, :5], labels))

    @pytest.mark.parametrize(
        ("output", "said"),
        [
            (lambda x: (x, x), "got tuple"),
            (lambda x: x.flatten(), r"got \[808\]"),
            (lambda x: x[:3], r"logits \[101, classes\], got \[3, 8\]"),
        ],
    )
    def test_outputs_that_are_no_logits(self, noisy, output, said):
        class Other(nn.Module):
            def forward(self, x):
                return output(x)

        with pytest.raises(InputError, match=said):
            evaluate(Other(), batches(*noisy, size=101))

    def test_batch_norm_and_dropout_are_in_eval_mode_and_the_mode_is_restored(self):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
        model.train()
        loader = [(torch.eye(3), torch.arange(3))]
        assert evaluate(model, loader).top1 == 1.0
        assert model.training
        assert all(module.training for module in model)
        assert model[0].num_batches_tracked == 0
        assert not evaluate(model.eval(), loader).predictions.is_inference()
        assert not model.training


class TestBaselines:
    """Known numbers on real data: if these move, everything else is measured wrongly."""

    def test_the_bundled_digits_network(self):
        model = create_model("resnet20", in_channels=1, checkpoint=bundled_checkpoint("digits_resnet20"))
        result = evaluate(model, make_loader(load_dataset("digits"), 128))
        assert abs(int((result.predictions == result.labels).sum()) - 536) <= 1

    @pytest.mark.slow
    @pytest.mark.parametrize(("arch", "known"), [("resnet20", 9173), ("resnet32", 9263)])
    def test_cifar10(self, arch, known):
        dataset = load_dataset("cifar10", real_data("cifar10"))
        model = create_model(arch, checkpoint=real_data(f"cifar10/{arch}.th"))
        result = evaluate(model, make_loader(dataset, 250))
        assert abs(int((result.predictions == result.labels).sum()) - known) <= 2

    @pytest.mark.slow
    def test_squeezenet_on_650_images_of_imagenet(self):
        preprocessing = default_preprocessing("squeezenet1_1", "imagenet")
        dataset = load_dataset("imagenet", real_data("imagenet"), preprocessing=preprocessing)
        model = create_model("squeezenet1_1", checkpoint=real_data("imagenet/squeezenet1_1.pth"))
        result = evaluate(model, make_loader(dataset, 50))
        assert abs(int((result.predictions == result.labels).sum()) - 450) <= 2
        assert result.top5 == pytest.approx(0.897, abs=0.003)


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(2, 3),
        torch.zeros(4, 2, 3),
        (torch.zeros(4, 3),),
        (torch.zeros(4, 3), [0, 1, 2, 0]),
        (torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(4, 3), torch.zeros(4, 3)),
        {"images": torch.zeros(4, 3)},
    ],
)
def test_batches_without_labels(batch):
    with pytest.raises(InputError, match=r"batches \(images \[N, …\], labels \[N\]\), got (Tensor|tuple|dict) of "):
        evaluate(Given(), [batch])
