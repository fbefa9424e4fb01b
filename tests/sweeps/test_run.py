"""A sweep as a whole: which points are measured, which rows there are in the end, whoever measures."""

from types import SimpleNamespace

import pytest
import torch

from pytorch_quantizer import InputError
from pytorch_quantizer.sweeps import keys as keys_module
from pytorch_quantizer.sweeps import run as module
from pytorch_quantizer.sweeps.bench import Measured
from pytorch_quantizer.sweeps.keys import keyed
from pytorch_quantizer.sweeps.origins import read_origins
from pytorch_quantizer.sweeps.plan import parse_plan
from pytorch_quantizer.sweeps.results import CSV, read_results
from pytorch_quantizer.sweeps.run import Rerun, run_sweep
from pytorch_quantizer.sweeps.tasks import Outcome

ORIGIN = {"versions": {"torch": "1"}, "machine": {"processor": "this"}}
COLUMNS = ["recipe", "seed", "top1", "error"]


class Workers:
    """Measures in this process, without a network: in reverse order; fails or stops where it is told to."""

    def __init__(self, fails=(), stops_after=None, code="this"):
        self.fails, self.stops_after, self.code = fails, stops_after, code
        self.measured, self.stopped = [], False

    def wait_ready(self):
        pass

    def outcomes(self, tasks):
        for number, task in enumerate(reversed(list(tasks))):
            if number == self.stops_after:
                raise KeyboardInterrupt
            point = task.point
            self.measured.append((point.recipe.name, point.config.seed))
            failed = point.recipe.name in self.fails
            figures = (
                {"error": "ValueError: no"} if failed else {"error": "", "top1": point.config.seed / 8, "seconds": 2}
            )
            row = point.columns() | {"code": self.code} | figures
            trace = "Traceback\nValueError: no" if failed else ""
            yield Outcome(task, Measured(row, 0.5, trace, {} if failed else ORIGIN))

    def stop(self):
        self.stopped = True


PLAN = {"recipes": ["w8a8", "w8a4"], "seeds": [0, 1]}


def planned(**changes):
    return parse_plan({**PLAN, **changes}, {"device": "cpu"})[1]


@pytest.fixture(autouse=True)
def this_code(monkeypatch):
    monkeypatch.setattr(module, "code_digest", lambda any_machine: "this")


@pytest.fixture
def start(tmp_path):
    def started(workers=None, points=None, **options):
        workers = Workers() if workers is None else workers
        summary = run_sweep(planned() if points is None else points, tmp_path, lambda: workers, **options)
        return workers, summary, read_results(tmp_path)

    return started


ALL = [("w8a8", 0), ("w8a8", 1), ("w8a4", 0), ("w8a4", 1)]


def test_a_row_a_point_in_the_plans_order(start):
    workers, summary, table = start()
    assert list(zip(table["recipe"], table["seed"], strict=True)) == ALL
    assert list(table["top1"]) == [0, 0.125, 0, 0.125]
    assert (summary.points, summary.measured, summary.kept, summary.failed, summary.repeated) == (4, 4, 0, 0, 0)
    assert (summary.point_seconds, summary.loading_seconds) == (8, 2)
    assert workers.stopped


def test_recipes_lie_beside_the_table(start, tmp_path):
    start()
    assert {path.name for path in (tmp_path / "recipes").iterdir()} == {"w8a8.yaml", "w8a4.yaml"}


def test_versions_and_machine_lie_beside_the_table(start, tmp_path):
    start(Workers(fails=["w8a8"]))
    assert read_origins(tmp_path / "origins.json") == {
        "this": {"versions": {"torch": "1"}, "machines": [{"processor": "this"}]}
    }


def test_finished_points_are_skipped_and_no_worker_starts(start):
    first = start()[2]
    workers, summary, table = start()
    assert workers.measured == []
    assert not workers.stopped
    assert (summary.measured, summary.kept) == (0, 4)
    assert table.equals(first)


class TestStopped:
    def test_what_was_measured_is_kept_and_the_rest_follows(self, start, tmp_path):
        workers = Workers(stops_after=3)
        with pytest.raises(KeyboardInterrupt):
            start(workers)
        assert workers.stopped
        assert list(read_results(tmp_path)["recipe"]) == ["w8a8", "w8a4", "w8a4"]
        begun = []
        workers, _, table = start(begun=lambda pending, kept: begun.append((pending, kept)))
        assert begun == [(1, 3)]
        assert workers.measured == [("w8a8", 0)]
        assert list(zip(table["recipe"], table["seed"], strict=True)) == ALL

    def test_a_row_lies_on_disk_before_the_next_point_is_looked_at(self, start, tmp_path):
        seen = []
        start(told=lambda outcome, done, of: seen.append((len(read_results(tmp_path)), done, of)))
        assert seen == [(1, 1, 4), (2, 2, 4), (3, 3, 4), (4, 4, 4)]


class TestFailed:
    def test_a_row_with_the_error_beside_the_others(self, start, tmp_path):
        _, summary, table = start(Workers(fails=["w8a8"]))
        assert list(table["error"]) == ["ValueError: no"] * 2 + [""] * 2
        assert table["top1"].isna().tolist() == [True, True, False, False]
        assert summary.failed == 2
        assert {path.read_text() for path in (tmp_path / "errors").iterdir()} == {"Traceback\nValueError: no"}
        start(rerun=Rerun(failed=True))
        assert list((tmp_path / "errors").iterdir()) == []

    def test_it_is_measured_again_only_when_asked(self, start):
        start(Workers(fails=["w8a8"]))
        workers, summary, _ = start()
        assert workers.measured == []
        assert (summary.kept, summary.kept_failed) == (4, 2)
        workers, summary, table = start(rerun=Rerun(failed=True))
        assert sorted(workers.measured) == [("w8a8", 0), ("w8a8", 1)]
        assert (summary.kept, summary.kept_failed) == (2, 0)
        assert list(table["error"]) == [""] * 4


class TestOtherCode:
    def test_its_rows_are_measured_again(self, start):
        start(Workers(code="other"))
        workers, _, table = start()
        assert len(workers.measured) == len(table) == 4
        assert set(table["code"]) == {"this"}

    def test_unless_they_may_stay(self, start):
        start(Workers(code="other"))
        workers, _, table = start(rerun=Rerun(any_code=True))
        assert workers.measured == []
        assert set(table["code"]) == {"other"}


def test_rows_of_other_plans_stay_behind(start):
    start(points=planned(seeds=[5]))
    _, summary, table = start()
    assert list(table["seed"]) == [0, 1, 0, 1, 5, 5]
    assert (summary.points, summary.others) == (4, 2)


def test_one_thing_under_two_names_is_one_row(start):
    points = planned(recipes=["w8a8", {"recipe": "w8a8", "name": "again"}], seeds=[0])
    _, summary, table = start(points=points)
    assert list(table["recipe"]) == ["w8a8"]
    assert (summary.points, summary.repeated) == (1, 1)


def test_a_second_sweep_on_the_folder_is_refused(start, tmp_path):
    def second(outcome, done, of):
        with pytest.raises(InputError, match="another sweep"):
            start()

    start(told=second)


def test_listeners_hear_of_every_row(start):
    heard = []
    start(Workers(fails=["w8a8"]), logged=lambda row: heard.append(row["key"]))
    assert len(set(heard)) == 4
    again = []
    start(logged=lambda row: again.append(row["key"]))
    assert sorted(again) == sorted(heard)


def test_a_damaged_table_is_an_error_before_any_work(start, tmp_path):
    (tmp_path / CSV).write_text("not a table")
    workers = Workers()
    with pytest.raises(InputError, match=CSV):
        start(workers)
    assert workers.measured == []


class TestKeys:
    @pytest.mark.parametrize(
        "change",
        [{"limit": 7}, {"batch_size": 5}, {"calibration_samples": 9}, {"strict": True}, {"skip_corrupt": True}],
        ids=str,
    )
    def test_all_that_determines_a_point_is_in_its_key(self, change):
        keys = [keyed(parse_plan({"recipes": ["w8a8"], "settings": settings}, {})[1]) for settings in ({}, change)]
        assert keys[0].keys() != keys[1].keys()

    @pytest.mark.parametrize("change", ["test", "calibration", "device"])
    def test_images_and_device_are(self, monkeypatch, change):
        points = planned()
        test, calibration, split = keys_module.load_images(points[0].config)
        digests = {"test": "a", "calibration": "b", "device": "cpu"}

        def key():
            return keyed(points).keys()

        monkeypatch.setattr(keys_module, "load_images", lambda config: (test, calibration, split))
        monkeypatch.setattr(
            keys_module, "images_digest", lambda images: digests["test" if images is test else "calibration"]
        )
        monkeypatch.setattr(keys_module, "choose_device", lambda name: SimpleNamespace(type=digests["device"]))
        before = key()
        digests[change] = "other"
        assert not before & key()

    def test_weights_are(self, tmp_path):
        from safetensors.torch import save_file

        from pytorch_quantizer.models import bundled_checkpoint, create_model

        kept = bundled_checkpoint("digits_resnet20")
        state = create_model("resnet20", in_channels=1, checkpoint=kept).state_dict()
        save_file(state, tmp_path / "same.safetensors")
        state["linear.bias"] += 1
        save_file(state, tmp_path / "other.safetensors")
        files = [None, str(tmp_path / "same.safetensors"), str(tmp_path / "other.safetensors")]
        found = [next(iter(keyed(planned(models=[{"arch": "resnet20", "checkpoint": file}])))) for file in files]
        assert found[0] == found[1] != found[2]

    def test_weights_that_do_not_fit_are_an_error_that_names_the_network(self, tmp_path):
        from safetensors.torch import save_file

        save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
        points = planned(models=["resnet20", {"arch": "resnet32", "checkpoint": str(tmp_path / "other.safetensors")}])
        with pytest.raises(InputError, match=r"^resnet32 on digits: .*other\.safetensors doesn't fit"):
            keyed(points)

    def test_recipe_and_seed_are_and_names_are_not(self):
        recipes = ["w8a8", {"recipe": "w8a8", "clip": "mse"}, {"recipe": "w8a8", "name": "again"}]
        assert len(keyed(planned(recipes=recipes, seeds=[0, 1]))) == 4
