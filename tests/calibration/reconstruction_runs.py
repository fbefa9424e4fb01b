"""A small residual network, a recipe that reconstructs it, and images: what tests of learning run."""

import torch
from networks import images, network
from torch import nn

import pytorch_quantizer as pq

BATCHES = [images(16, 3, 8, 8, seed=seed) for seed in range(4)]
RECIPE = pq.Recipe(
    weights="int3",
    activations="int3",
    clip="mse",
    weight_clip="mse",
    reconstruction="block",
    reconstruction_iterations=60,
    reconstruction_batch=16,
)


def conv(inputs=6, outputs=6, **settings):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **settings)


def residual(net, x):
    x = net.relu(net.stem(x))
    x = net.relu(net.b(net.relu(net.a(x))) + x)
    return net.fc(net.relu(net.c(x)).mean((2, 3)))


def float_network():
    parts = {name: conv() for name in "abc"}
    return network(residual, stem=conv(3), fc=nn.Linear(6, 5), relu=nn.ReLU(), **parts)


def learned(recipe=RECIPE, net=None, batches=BATCHES, **settings):
    return pq.quantize(net or float_network(), recipe, batches, progress=False, **settings)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
