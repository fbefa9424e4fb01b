"""download fetches what torchvision fetches, once, and a network that isn't there is one clear error."""

import gzip
import hashlib
import io
import pickle
import tarfile
import threading
import urllib.error
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, MNIST

from pytorch_quantizer.data import load_dataset
from pytorch_quantizer.data.download import download
from pytorch_quantizer.errors import InputError


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tmp_path):
    """(a folder, the address under which it is served)."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar_mirror(mirror, monkeypatch):
    """A local mirror of a CIFAR-10 of two images a batch; torchvision's own reader and checksums."""
    random, packed = np.random.default_rng(0), io.BytesIO()
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]
    sums = {}
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in names:
            batch = {"data": random.integers(0, 256, (2, 3072), dtype=np.uint8), "labels": [1, 2]}
            content = pickle.dumps({"label_names": list("abcdefghij")} if name == "batches.meta" else batch)
            sums[name] = md5(content)
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    folder, address = mirror
    (folder / CIFAR10.filename).write_bytes(packed.getvalue())
    monkeypatch.setattr(CIFAR10, "url", address + CIFAR10.filename)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(packed.getvalue()))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    return folder / CIFAR10.filename


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_cifar10_comes_from_where_torchvision_takes_it(cifar_mirror, tmp_path):
    download("cifar10", tmp_path / "data")
    assert len(load_dataset("cifar10", tmp_path / "data", split="train")) == 10
    assert len(load_dataset("cifar10", tmp_path / "data", split="test")) == 2


def test_what_is_there_is_not_fetched_again(cifar_mirror, tmp_path):
    download("cifar10", tmp_path / "data")
    cifar_mirror.unlink()
    download("cifar10", tmp_path / "data")


def test_a_damaged_download_is_said(cifar_mirror, tmp_path):
    cifar_mirror.write_bytes(cifar_mirror.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"can't download cifar10 into .*: check the network"):
        download("cifar10", tmp_path / "data")


def test_mnist_comes_from_where_torchvision_takes_it(mirror, tmp_path, monkeypatch):
    (folder, address), resources = mirror, []
    for prefix in ("train", "t10k"):
        for kind, shape in (("images-idx3", (3, 28, 28)), ("labels-idx1", (3,))):
            header = bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()
            content = gzip.compress(header + bytes(int(np.prod(shape))))
            name = f"{prefix}-{kind}-ubyte.gz"
            (folder / name).write_bytes(content)
            resources.append((name, md5(content)))
    monkeypatch.setattr(MNIST, "mirrors", [address])
    monkeypatch.setattr(MNIST, "resources", resources)
    download("mnist", tmp_path / "data")
    assert len(load_dataset("mnist", tmp_path / "data", split="train")) == 3


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_without_a_network(name, tmp_path, no_network):
    with pytest.raises(InputError, match=rf"can't download {name} into .*: check the network, or put its files there"):
        download(name, tmp_path / "data")


def test_digits_need_none():
    download("digits", None)


@pytest.mark.parametrize(
    ("name", "root", "said"),
    [
        ("imagenet", ".", "imagenet can't be downloaded, only cifar10, mnist"),
        ("cifar10", None, "download needs --data PATH"),
    ],
)
def test_what_can_not_be_fetched(name, root, said):
    with pytest.raises(InputError, match=said):
        download(name, root)
