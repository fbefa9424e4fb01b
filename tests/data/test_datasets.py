"""Every data set reads what its layout promises, and says in one line what is wrong with anything else."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from real_data import real_data
from torch.utils.data import DataLoader

from pytorch_quantizer.data import DATASETS, Preprocessing, has_split, infer_dataset, load_dataset
from pytorch_quantizer.data.cifar10 import CLASS_NAMES
from pytorch_quantizer.data.imagenet import WNIDS
from pytorch_quantizer.errors import InputError

PLAIN = {channels: Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels) for channels in (1, 3)}


def images_of(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class TestRegistry:
    def test_an_unknown_data_set_is_answered_with_the_known_ones(self):
        with pytest.raises(InputError, match=r"unknown data set 'cifar'.*digits, mnist, cifar10, imagenet, folder"):
            load_dataset("cifar")

    def test_an_unknown_split_is_an_input_error(self):
        with pytest.raises(InputError, match="split must be one of train, test, got 'val'"):
            load_dataset("digits", split="val")

    @pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
    def test_a_missing_folder_is_named(self, name, tmp_path):
        with pytest.raises(InputError, match="nowhere is not a folder"):
            load_dataset(name, tmp_path / "nowhere")
        assert not has_split(name, tmp_path / "nowhere", "test")

    @pytest.mark.parametrize("name", ["mnist", "cifar10", "folder"])
    def test_no_path_where_one_is_needed(self, name):
        with pytest.raises(InputError, match=f"{name} needs --data PATH"):
            load_dataset(name)

    def test_the_home_folder_is_expanded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        np.savez(tmp_path / "test.npz", images=images_of(2, 32, 32, 3), labels=np.array([1, 2]))
        assert len(load_dataset("cifar10", "~")) == 2


class TestInference:
    """Which data set a folder holds, by what lies in it."""

    @pytest.mark.parametrize("place", ["", "val/", "train/"])
    def test_imagenet(self, picture_folder, place):
        assert infer_dataset(picture_folder({f"{place}n01440764/a.JPEG": 1})) == "imagenet"

    @pytest.mark.parametrize("place", ["", "val/", "train/"])
    def test_any_other_folder(self, picture_folder, place):
        assert infer_dataset(picture_folder({f"{place}n00000000/a.JPEG": 1, f"{place}dog/a.png": 1})) == "folder"

    @pytest.mark.parametrize("file", ["test.npz", "train_10k.npz", "cifar-10-batches-py/test_batch"])
    def test_cifar10(self, picture_folder, file):
        assert infer_dataset(picture_folder({file: None})) == "cifar10"

    @pytest.mark.parametrize("ending", ["", ".gz"])
    def test_mnist(self, picture_folder, ending):
        files = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
        assert infer_dataset(picture_folder({f"raw/{file}{ending}": None for file in files})) == "mnist"

    def test_what_is_no_folder_is_named(self, tmp_path):
        with pytest.raises(InputError, match="nowhere is not a folder"):
            infer_dataset(tmp_path / "nowhere")


class TestDigits:
    def test_a_folder_is_not_passed_over_in_silence(self, tmp_path):
        with pytest.raises(InputError, match=r"digits is embedded.*--dataset imagenet, cifar10, mnist or folder"):
            load_dataset("digits", tmp_path)

    def test_the_split_is_fixed_for_good(self):
        """Published numbers hold for these 540 images and no others."""
        test = load_dataset("digits")
        assert len(test) == 540
        assert hashlib.sha256(test.pixels.numpy().tobytes()).hexdigest().startswith("f468dcbef7d4d4b5")

    def test_the_splits_share_the_1797_images(self):
        train, test = load_dataset("digits", split="train"), load_dataset("digits")
        assert len(train) + len(test) == 1797
        both = {image.numpy().tobytes() for image in train.pixels} & {image.numpy().tobytes() for image in test.pixels}
        assert not both

    def test_classes_are_as_frequent_in_both_splits(self):
        for split, images in (("train", 1257), ("test", 540)):
            counts = torch.bincount(load_dataset("digits", split=split).labels)
            assert counts.min() >= 0.096 * images
            assert counts.max() <= 0.104 * images

    def test_training_images_are_normalised(self):
        train = load_dataset("digits", split="train")
        images = torch.stack([image for image, _ in train.__getitems__(list(range(len(train))))])
        assert images.shape == (1257, 1, 8, 8)
        assert abs(images.mean()) < 0.01
        assert abs(images.std() - 1) < 0.01

    def test_both_splits_are_always_there(self):
        assert has_split("digits", None, "train")
        assert has_split("digits", None, "test")


class TestArrays:
    def test_a_batch_equals_its_items_to_the_bit(self):
        dataset = load_dataset("digits")
        for (image, label), index in zip(dataset.__getitems__([5, 3, 539]), [5, 3, 539], strict=True):
            one, its_label = dataset[index]
            assert torch.equal(image, one)
            assert label == its_label == dataset.labels[index]

    def test_torchs_own_loader_works(self):
        images, labels = next(iter(DataLoader(load_dataset("digits"), batch_size=7)))
        assert images.shape == (7, 1, 8, 8)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64

    def test_iteration_ends(self):
        assert sum(1 for _ in load_dataset("digits")) == 540

    def test_a_batch_is_normalised_as_torchvision_normalises_images(self):
        pixels = images_of(2, 32, 32, 3)
        preprocessing = Preprocessing(crop=24)
        batch = preprocessing.on_batch(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
        for image, row in zip(pixels, batch, strict=True):
            assert torch.equal(preprocessing.on_image(Image.fromarray(image)), row)

    def test_preprocessing_of_other_channels_is_refused(self):
        with pytest.raises(InputError, match="digits has 1 channels, but the preprocessing has 3"):
            load_dataset("digits", preprocessing=PLAIN[3])


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_mnist(folder, *, prefix="t10k", packed=False, images=None, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    images = idx(images_of(3, 28, 28)) if images is None else images
    labels = idx(np.array([7, 2, 1], dtype=np.uint8)) if labels is None else labels
    for name, content in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        path = folder / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)


class TestMnist:
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw"])
    def test_reads_idx_packed_or_not_where_torchvision_puts_it(self, tmp_path, folder, packed):
        write_mnist(tmp_path / folder, packed=packed)
        dataset = load_dataset("mnist", tmp_path, preprocessing=PLAIN[1])
        image, label = dataset[0]
        assert torch.equal(image * 255, torch.from_numpy(images_of(3, 28, 28)[:1]).float())
        assert label == 7
        assert dataset.labels.tolist() == [7, 2, 1]

    def test_each_split_has_its_files(self, tmp_path):
        write_mnist(tmp_path, prefix="train")
        assert has_split("mnist", tmp_path, "train")
        assert not has_split("mnist", tmp_path, "test")
        with pytest.raises(InputError, match="no MNIST test images"):
            load_dataset("mnist", tmp_path)

    def test_images_without_labels_are_no_split(self, tmp_path):
        write_mnist(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte").unlink()
        assert not has_split("mnist", tmp_path, "test")
        with pytest.raises(InputError, match="no MNIST test images and labels"):
            load_dataset("mnist", tmp_path)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "not an IDX file"),
            (b"\0\0\x08\x03\0\0", "not an IDX file"),
            (b"\x89PNG" + bytes(100), "not an IDX file"),
            (b"\0\0\x0d\x03" + bytes(100), "not an IDX file"),  # floats
            (idx(images_of(3, 28, 28))[:-1], "should hold 2352 bytes of data, has 2351"),
            (idx(images_of(3, 28, 28)) + b"\0", "should hold 2352 bytes of data, has 2353"),
            (bytes((0, 0, 8, 3)) + b"\xff" * 12, "should hold 79228162458924105385300197375 bytes of data, has 0"),
        ],
    )
    def test_malformed_images_are_named(self, tmp_path, content, said):
        write_mnist(tmp_path, images=content)
        with pytest.raises(InputError, match=f"t10k-images-idx3-ubyte {said}|t10k-images-idx3-ubyte is {said}"):
            load_dataset("mnist", tmp_path)

    def test_a_broken_archive_is_named(self, tmp_path):
        write_mnist(tmp_path, packed=True)
        path = tmp_path / "t10k-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\.gz can't be read"):
            load_dataset("mnist", tmp_path)

    def test_labels_must_fit_the_images(self, tmp_path):
        write_mnist(tmp_path, labels=idx(np.array([7, 2], dtype=np.uint8)))
        with pytest.raises(InputError, match=r"3 images, labels \[2\]"):
            load_dataset("mnist", tmp_path)
        write_mnist(tmp_path, labels=idx(np.array([7, 2, 10], dtype=np.uint8)))
        with pytest.raises(InputError, match=r"labels must lie in \[0, 9\], got 2 to 10"):
            load_dataset("mnist", tmp_path)

    def test_the_real_one(self):
        dataset = load_dataset("mnist", real_data("mnist"))
        assert len(dataset) == 10_000
        assert dataset.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def python_batch(images, labels):
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    # The published batches were written when numpy._core was called numpy.core.
    content = pickle.dumps({"data": rows, "labels": labels}, protocol=2)
    return content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


class TestCifar10:
    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("folder", ["cifar-10-batches-py", ""])
    def test_reads_the_python_batches(self, tmp_path, folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        for number in range(1, 6):
            content = python_batch(images_of(2, 32, 32, 3, seed=number), [number, 0])
            (tmp_path / folder / f"data_batch_{number}").write_bytes(content)
        (tmp_path / folder / "test_batch").write_bytes(python_batch(images_of(4, 32, 32, 3), [3, 8, 8, 0]))
        test = load_dataset("cifar10", tmp_path, preprocessing=PLAIN[3])
        assert test.labels.tolist() == [3, 8, 8, 0]
        assert torch.equal(test[1][0] * 255, torch.from_numpy(images_of(4, 32, 32, 3)[1]).permute(2, 0, 1).float())
        assert load_dataset("cifar10", tmp_path, split="train").labels.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]

    @pytest.mark.parametrize(("file", "split"), [("test", "test"), ("train", "train"), ("train_10k", "train")])
    def test_reads_npz(self, tmp_path, file, split):
        np.savez(tmp_path / f"{file}.npz", images=images_of(3, 32, 32, 3), labels=np.array([9, 0, 4]))
        dataset = load_dataset("cifar10", tmp_path, split=split, preprocessing=PLAIN[3])
        assert dataset.labels.tolist() == [9, 0, 4]
        assert torch.equal(dataset[2][0] * 255, torch.from_numpy(images_of(3, 32, 32, 3)[2]).permute(2, 0, 1).float())
        assert has_split("cifar10", tmp_path, split)
        assert not has_split("cifar10", tmp_path, "train" if split == "test" else "test")

    def test_a_batch_can_run_no_code(self, tmp_path):
        class Payload:
            def __reduce__(self):
                return (open, (str(tmp_path / "written"), "w"))

        (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": Payload(), "labels": [1]}, protocol=2))
        with pytest.raises(InputError, match=r"test_batch can't be read as CIFAR-10 \(it asks for .*open"):
            load_dataset("cifar10", tmp_path)
        assert not (tmp_path / "written").exists()

    @pytest.mark.parametrize("content", [b"", b"not a pickle", python_batch(images_of(2, 32, 32, 3), [1, 2])[:-9]])
    def test_a_damaged_batch_is_named(self, tmp_path, content):
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(InputError, match="test_batch can't be read as CIFAR-10"):
            load_dataset("cifar10", tmp_path)

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"images": images_of(2, 32, 32, 3)}, "lacks labels"),
            (
                {"images": images_of(2, 32, 32), "labels": np.array([0, 1])},
                r"must be uint8 \[N, H, W, C\], got uint8 \[2, 32, 32\]",
            ),
            ({"images": np.zeros((2, 32, 32, 3)), "labels": np.array([0, 1])}, "must be uint8"),
            (
                {"images": images_of(2, 32, 32, 3), "labels": np.array([0, -1])},
                r"labels must lie in \[0, 9\], got -1 to 0",
            ),
            ({"images": images_of(2, 32, 32, 3), "labels": np.array([0.5, 1])}, "needs an integer label"),
            ({"images": images_of(0, 32, 32, 3), "labels": np.array([], dtype=int)}, "holds no images"),
        ],
    )
    def test_a_misfit_npz_is_refused(self, tmp_path, arrays, said):
        np.savez(tmp_path / "test.npz", **arrays)
        with pytest.raises(InputError, match=said):
            load_dataset("cifar10", tmp_path)

    def test_a_damaged_npz_is_named(self, tmp_path):
        (tmp_path / "test.npz").write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(InputError, match=r"test\.npz can't be read as CIFAR-10"):
            load_dataset("cifar10", tmp_path)

    def test_an_empty_folder_is_answered_with_the_layout(self, tmp_path):
        with pytest.raises(InputError, match=r"no CIFAR-10 test images in .*cifar-10-batches-py/.*test\.npz"):
            load_dataset("cifar10", tmp_path)

    def test_the_real_ones(self):
        test = load_dataset("cifar10", real_data("cifar10"))
        assert torch.bincount(test.labels).tolist() == [1000] * 10
        assert len(load_dataset("cifar10", real_data("cifar10"), split="train")) == 10_000
        assert test.class_names == CLASS_NAMES


class TestImageNet:
    def test_the_wnids_are_1000_in_label_order(self):
        wnids = WNIDS.read_text().split()
        assert len(wnids) == 1000
        assert wnids == sorted(set(wnids))
        assert (wnids[0], wnids[388], wnids[999]) == ("n01440764", "n02510455", "n15075141")

    def test_the_wnids_are_those_of_the_published_list(self):
        lines = real_data("imagenet/synset_words.txt").read_text().splitlines()
        assert WNIDS.read_text().split() == [line.split()[0] for line in lines]

    @pytest.mark.parametrize("folder", ["val", ""])
    def test_a_part_of_the_classes_gets_the_right_labels(self, picture_folder, folder):
        root = picture_folder({f"{folder}/n15075141/a.JPEG": 3, f"{folder}/n02510455/b.JPEG": 1})
        dataset = load_dataset("imagenet", root)
        assert [(path.rpartition("/")[2], label) for path, label in dataset.files] == [("b.JPEG", 388), ("a.JPEG", 999)]
        assert dataset.num_classes == 1000
        assert dataset[0][0].shape == (3, 224, 224)

    def test_the_default_root(self, tmp_path, monkeypatch, picture_folder):
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(InputError, match=f"{tmp_path}/datasets/ILSVRC2012 is not a folder: pass --data PATH"):
            load_dataset("imagenet")
        picture_folder({"datasets/ILSVRC2012/val/n15075141/a.JPEG": 3})
        assert len(load_dataset("imagenet")) == 1

    def test_an_unknown_class_folder_is_named(self, picture_folder):
        root = picture_folder({"val/n01440764/a.JPEG": 1, "val/n00000001/b.JPEG": 1})
        with pytest.raises(InputError, match=r"val/n00000001 is not a known class \(1 of 2 are not\)"):
            load_dataset("imagenet", root)

    def test_a_folder_without_class_folders(self, picture_folder):
        root = picture_folder({"val/ILSVRC2012_val_00000001.JPEG": 1})
        with pytest.raises(InputError, match="val holds no class folders"):
            load_dataset("imagenet", root)

    def test_class_folders_without_images(self, tmp_path):
        (tmp_path / "val" / "n01440764").mkdir(parents=True)
        with pytest.raises(InputError, match="val holds no images in its 1 class folders"):
            load_dataset("imagenet", tmp_path)

    def test_no_training_split_unless_it_is_there(self, picture_folder):
        root = picture_folder({"val/n01440764/a.JPEG": 1})
        assert has_split("imagenet", root, "test")
        assert not has_split("imagenet", root, "train")
        with pytest.raises(InputError, match="has no train folder"):
            load_dataset("imagenet", root, split="train")

    def test_any_folders_training_split_needs_a_folder_of_its_own(self, picture_folder):
        root = picture_folder({"one/a.JPEG": 1, "two/a.JPEG": 1})
        with pytest.raises(InputError, match="has no train folder, which training needs: give a folder with train/"):
            load_dataset("folder", root, split="train")

    def test_the_real_one(self):
        dataset = load_dataset("imagenet", real_data("imagenet"))
        assert len(dataset) == 650
        assert dataset.num_classes == 1000


class TestFolder:
    def test_classes_are_the_sorted_folders(self, picture_folder):
        root = picture_folder({"dog/1.png": 1, "cat/2.png": 2, "cat/.hidden": None, ".git/x.png": 3, "notes.txt": None})
        dataset = load_dataset("folder", root)
        assert dataset.class_names == ("cat", "dog")
        assert [label for _, label in dataset.files] == [0, 1]

    def test_both_splits_number_classes_alike(self, picture_folder):
        root = picture_folder({"train/ant/1.png": 1, "train/bee/2.png": 1, "val/bee/3.png": 1})
        assert [label for _, label in load_dataset("folder", root).files] == [1]
        assert load_dataset("folder", root).class_names == load_dataset("folder", root, split="train").class_names

    def test_a_class_that_training_does_not_know_is_named(self, picture_folder):
        root = picture_folder({"train/ant/1.png": 1, "test/wasp/3.png": 1})
        with pytest.raises(InputError, match="test/wasp is not a known class"):
            load_dataset("folder", root)

    def test_grey_and_transparent_images_become_rgb(self, tmp_path):
        (tmp_path / "a").mkdir()
        Image.fromarray(images_of(300, 280)).save(tmp_path / "a" / "grey.png")
        Image.fromarray(images_of(300, 280, 4)).save(tmp_path / "a" / "transparent.png")
        for image, _ in load_dataset("folder", tmp_path):
            assert image.shape == (3, 224, 224)
