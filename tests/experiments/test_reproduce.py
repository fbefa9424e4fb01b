"""The tables of earlier projects: their rows can be carried out, their published figures are those that were given."""

import math

import pytest

from pytorch_quantizer import Recipe
from pytorch_quantizer.experiments import reproduce
from pytorch_quantizer.experiments.reproduce import (
    ONNX_RUNTIME,
    RESNET18_CIFAR10,
    RESNET18_MNIST,
    RESNET20_BITS,
    RESNET20_INT8,
)
from pytorch_quantizer.experiments.reproduce_measure import recipe_of
from pytorch_quantizer.models import list_models

TABLES = (RESNET20_BITS, RESNET20_INT8, RESNET18_CIFAR10, RESNET18_MNIST)


def published(table, measure):
    return {row.name: row.published[measure] for row in table.rows if measure in row.published}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
class TestEveryTable:
    def test_rows_have_names_of_their_own_and_recipes_that_exist(self, table):
        assert len({row.name for row in table.rows}) == len(table.rows)
        for row in table.rows:
            recipe_of(row)

    def test_the_float_network_comes_first_in_either_runtime(self, table):
        assert [row.recipe for row in table.rows[:2]] == [None, None]
        assert [row.runtime for row in table.rows[:2]] == ["PyTorch", "ONNX Runtime"]

    def test_integers_run_in_onnx_runtime_unless_it_has_none(self, table):
        for row in table.rows:
            recipe = recipe_of(row)
            if recipe is not None:
                assert (row.runtime == ONNX_RUNTIME) == (recipe.weights != "int16"), row.name

    def test_figures_are_of_measures_that_the_table_has(self, table):
        known = {*table.columns, "file", *(timing.name for timing in table.timings)}
        assert all(row.published.keys() <= known for row in table.rows)

    def test_the_network_is_one(self, table):
        assert table.arch in list_models()


class TestBits:
    def test_weights_and_activations_have_the_bits_of_the_row(self):
        for row in RESNET20_BITS.rows:
            recipe = recipe_of(row)
            if recipe is not None:
                assert recipe.weights == recipe.activations == row.name

    def test_published(self):
        assert published(RESNET20_BITS, "top1") == {"int16": 0.9153, "int8": 0.9156, "int4": 0.8600, "int2": 0.1303}
        assert published(RESNET20_BITS, "precision") == {
            "int16": 0.9166,
            "int8": 0.9167,
            "int4": 0.8695,
            "int2": 0.1396,
        }
        assert published(RESNET20_BITS, "recall") == published(RESNET20_BITS, "top1")
        assert published(RESNET20_BITS, "f1") == {"int16": 0.9156, "int8": 0.9159, "int4": 0.8616, "int2": 0.1176}


class TestInt8:
    def test_int4_with_narrow_shortcuts_is_the_shipped_recipe_but_for_them(self):
        narrow, shipped = reproduce.INT4_ALONE, Recipe.load("w4a4_statistical")
        assert narrow == shipped.replace(name=narrow.name, wide_residual=False)

    def test_one_row_is_not_fused(self):
        assert [row.name for row in RESNET20_INT8.rows if not row.fused] == ["int8, not fused"]

    def test_published(self):
        rates, seconds = published(RESNET20_INT8, "top1"), published(RESNET20_INT8, "test set")
        assert list(rates.values()) == [0.921, 0.881, 0.913, 0.914, 0.296, 0.111]
        assert list(seconds.values()) == [39500, 22900, 15600, 16800]
        sizes = published(RESNET20_INT8, "file").values()
        assert all(map(math.isclose, sizes, (1.596e6, 0.485e6, 0.430e6, 0.425e6)))
        assert all(row.published.keys() == {"top1", "test set", "file"} for row in RESNET20_INT8.rows[2:5])


class TestResnet18:
    def test_published(self):
        assert list(published(RESNET18_CIFAR10, "top1").values()) == [0.8136, 0.8136, 0.7814, 0.7885]
        assert list(published(RESNET18_CIFAR10, "224 x 224").values()) == [8.15, 8.13, 2.42, 2.45]
        assert all(map(math.isclose, published(RESNET18_CIFAR10, "file").values(), (42.8e6, 42.8e6, 10.8e6, 10.8e6)))
        assert not any(row.published for row in RESNET18_MNIST.rows)
        assert [row.name for row in RESNET18_CIFAR10.rows if row.epochs] == ["int8, trained with it"]

    def test_images_have_the_size_that_the_networks_were_trained_at(self):
        assert (RESNET18_CIFAR10.image_size, RESNET18_MNIST.image_size) == (32, 28)
        assert [timing.size for timing in RESNET18_CIFAR10.timings] == [None, 224]
        assert all(timing.batch == timing.images == 1 for timing in RESNET18_CIFAR10.timings + RESNET18_MNIST.timings)
