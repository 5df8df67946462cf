"""training/scaling_results.py: what scaling.json holds, and what a plan says from it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from simulated_cluster import TRUTHS, SimulatedCluster, results

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.reporting import scaling_report
from resnet_cifar.training import scaling_results
from resnet_cifar.training.plan import Plan

RECIPE = replace(read_recipe("scratch"), precision="bf16")  # batches of 256 in groups of 32
FILE = Path("out/scaling.json")


@pytest.fixture(scope="module")
def scaling() -> dict:
    return results(RECIPE, (1, 2, 4, 8, 16, 32), price=2.5)


def test_the_results_survive_json_and_name_the_efficiency_of_every_world(scaling: dict) -> None:
    assert json.loads(json.dumps(scaling)) == scaling
    assert list(scaling["efficiency"]) == ["1", "2", "4", "8", "16", "32"]
    assert scaling["efficiency"]["1"] == 1
    truth = TRUTHS["fast network"]
    for kind, images in (("strong", [256, 128, 64, 32, 16, 8]), ("weak", [256] * 6)):
        rows = scaling[kind]
        assert [row["images_per_device"] for row in rows] == images
        for row in rows:
            n, images_each = row["processes"], row["images_per_device"]
            true = truth.images_per_second(n, images_each) / n / truth.images_per_second(1, 256)
            assert row["efficiency"] == pytest.approx(true, rel=0.06)
            assert row["batch_size"] == n * images_each
    assert scaling["efficiency"] == {str(row["processes"]): row["efficiency"] for row in scaling["strong"]}


def test_costs_are_device_hours_of_the_whole_recipe_times_the_price(scaling: dict) -> None:
    for row in scaling["strong"]:
        epochs = 1_760 * 256 / 45_000
        hours = row["processes"] * 45_000 * epochs / row["images_per_second"] / 3600
        assert row["device_hours"] == pytest.approx(hours)
        assert row["cost"] == pytest.approx(2.5 * hours)
    assert results(RECIPE, (1, 2))["strong"][0]["cost"] is None


def test_predictions_end_at_64_times_the_measured_devices_and_leave_out_what_does_not_divide(scaling: dict) -> None:
    by_devices = {row["processes"]: row for row in scaling["predictions"]}
    assert list(by_devices) == [2**power for power in range(12)]
    assert by_devices[8]["strong"] and not by_devices[16]["strong"]  # 16 images are less than a group of 32
    assert by_devices[2048]["weak"]["batch_size"] == 2048 * 256


def test_a_world_that_is_measured_again_replaces_the_earlier_one() -> None:
    first = results(RECIPE, (1, 2))
    cluster = SimulatedCluster(replace(TRUTHS["fast network"], per_image=0.0006), 0.0, 1)
    again = scaling_results.add(first, cluster.world(2, RECIPE), RECIPE, 0.0)
    assert list(again["worlds"]) == ["1", "2"]
    assert again["efficiency"]["2"] < 0.7 < first["efficiency"]["2"]


def test_other_devices_and_other_recipes_are_not_mixed(tmp_path: Path) -> None:
    kept = results(RECIPE, (1,))
    world = {**SimulatedCluster(TRUTHS["fast network"], 0.0, 1).world(2, RECIPE), "device": "another"}
    with pytest.raises(UserError, match="--out holds measurements on a simulated device, not another: name another"):
        scaling_results.add(kept, world, RECIPE, 0.0)
    world |= {"device": "a simulated device", "precision": "no"}
    with pytest.raises(UserError, match="holds measurements in precision bf16, not no, which this launch uses: name"):
        scaling_results.add(kept, world, RECIPE, 0.0)
    (tmp_path / "scaling.json").write_text(json.dumps(kept))
    assert scaling_results.read_kept(tmp_path, RECIPE) == kept
    assert scaling_results.read_kept(tmp_path / "new", RECIPE) is None
    with pytest.raises(UserError, match="was measured with batch_size 256, not 512: name another folder with --out"):
        scaling_results.read_kept(tmp_path, replace(RECIPE, batch_size=512))


@pytest.mark.parametrize(("worlds", "said"), [((1,), "Communication was not measured"), ((1, 2), "as its logarithm")])
def test_what_the_measurements_leave_open_is_said(worlds: tuple[int, ...], said: str) -> None:
    assert any(said in sentence for sentence in results(RECIPE, worlds)["model"]["assumptions"])


def test_a_measured_network_leaves_nothing_open(scaling: dict) -> None:
    assert scaling["model"]["assumptions"] == []
    assert scaling["model"]["held_back"]["largest_world"]["processes"] == 32


def test_measurements_that_scatter_are_marked_on_the_page_and_in_the_plan() -> None:
    cluster = SimulatedCluster(TRUTHS["fast network"], 0.01, 0)
    noisy = cluster.world(1, RECIPE)
    noisy["points"][0]["spread"] = 0.6
    found = scaling_results.add(None, noisy, RECIPE, 0.0)
    assert found["model"]["assumptions"][0].startswith("The rounds of a step differ by up to 60% of their median")
    assert "The rounds of a step differ by up to 60% of their median" in scaling_report.render(found)
    assert "2 reservations on the page beside scaling.json" in str(
        scaling_results.describe(found, FILE, Plan(RECIPE, 45_000, 1), 1)
    )


def test_worlds_that_share_cores_are_shown_and_not_fitted() -> None:
    truth, cluster = TRUTHS["one machine"], SimulatedCluster(TRUTHS["one machine"], 0.0, 1)
    kept = {"worlds": {str(processes): cluster.world(processes, RECIPE) for processes in (1, 2)}}
    shared = {**cluster.world(4, RECIPE), "shares_cores": True}
    shared["points"] = [{**point, "seconds": 9.0} for point in shared["points"]]
    found = scaling_results.add(kept, shared, RECIPE, 0.0)
    assert found["efficiency"]["4"] < 0.1
    assert found["model"]["per_image"] == pytest.approx(truth.per_image, rel=0.01)
    assert found["model"]["assumptions"][0] == "4 processes share cores, so the model does not use them."


def test_a_plan_says_what_devices_bring_and_which_batch_keeps_90_percent(scaling: dict) -> None:
    plan = Plan(RECIPE, 45_000, 1)
    truth, lines = TRUTHS["fast network"], scaling_results.describe(scaling, FILE, plan, 8)
    (_, brings), (_, keeps) = lines
    rate = float(re.search(r"8 devices: about ([\d,]+) images/s", brings)[1].replace(",", ""))
    assert rate == pytest.approx(truth.images_per_second(8, 32), rel=0.05)
    efficiency = int(re.search(r"(\d+)% efficiency", brings)[1]) / 100
    assert efficiency == pytest.approx(truth.images_per_second(8, 32) / 8 / truth.images_per_second(1, 256), abs=0.03)
    assert re.search(
        r"device-hours, which cost [\d.]+ \(predicted from measurements on a simulated device; off by", brings
    )
    batch = int(re.match(r"batch_size (\d+) is the smallest that keeps 90% efficiency on 8 devices", keeps)[1])
    assert truth.images_per_second(8, batch // 8) / 8 / truth.images_per_second(1, 256) == pytest.approx(0.9, abs=0.05)


def test_a_plan_over_which_batchnorm_spans_devices_still_names_the_batch_that_does_not(scaling: dict) -> None:
    (_, spans), (_, keeps) = scaling_results.describe(scaling, FILE, Plan(RECIPE, 45_000, 1), 64)
    assert spans.startswith("64 devices: each of BatchNorm's groups would span several of them")
    batch = int(re.match(r"batch_size (\d+) is the smallest that keeps 90% efficiency on 64 devices", keeps)[1])
    assert batch % (64 * 32) == 0


def test_steps_whose_batchnorm_spans_devices_are_not_fitted() -> None:
    """16 devices have 16 images each, half a group."""
    truth, cluster = TRUTHS["one machine"], SimulatedCluster(TRUTHS["one machine"], 0.0, 1)
    kept = {"worlds": {str(processes): cluster.world(processes, RECIPE) for processes in (1, 2)}}
    spanning = cluster.world(16, RECIPE)
    for point in spanning["points"]:
        if point["images_per_device"] == 16:
            point |= {"seconds": 9.0, "local_seconds": 9.0}
    found = scaling_results.add(kept, spanning, RECIPE, 0.0)
    assert found["efficiency"]["16"] < 0.01
    assert found["model"]["per_image"] == pytest.approx(truth.per_image, rel=0.01)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model.name", "resnet18", r"measured with model\.name resnet50, not resnet18: measure this recipe with"),
        ("precision", "no", "measured with precision bf16, not no: measure"),
        ("phases.0.image_size", "224", "measured with image size 32, not 224: measure"),
        ("data.image_size", "64", "measured with image size 32, not 64: measure"),
        ("phases.0.trainable", "head", "measured with trainable all, not head: measure"),
        ("deterministic", "True", "measured with deterministic False, not True: measure"),
        ("model.ema_decay", "0.9", r"measured with model\.ema_decay 0\.0, not 0\.9: measure"),
        ("augment.rand_augment", "9", r"measured with augment\.rand_augment 0, not 9: measure"),
    ],
)
def test_a_plan_refuses_measurements_of_another_step(scaling: dict, field: str, value: str, said: str) -> None:
    other = read_recipe("scratch", {"precision": "bf16", field: value})
    with pytest.raises(UserError, match=said):
        scaling_results.describe(scaling, FILE, Plan(other, 45_000, 1), 8)


@pytest.mark.parametrize(
    ("field", "value"), [("micro_batch", "32"), ("optimizer.weight_decay", "0.5"), ("phases.0.lr", "0.2")]
)
def test_a_plan_accepts_fields_that_leave_the_step_as_long(scaling: dict, field: str, value: str) -> None:
    other = read_recipe("scratch", {"precision": "bf16", field: value})
    assert scaling_results.describe(scaling, FILE, Plan(other, 45_000, 1), 8)


def test_a_plan_refuses_measurements_of_a_step_that_is_not_compiled(scaling: dict) -> None:
    with pytest.raises(UserError, match=r"was measured with compile none, not inductor \(max-autotune\): measure"):
        scaling_results.describe(scaling, FILE, Plan(RECIPE, 45_000, 1), 8, "inductor (max-autotune)")


def test_a_plan_reaches_as_far_as_the_predictions_of_the_page(scaling: dict) -> None:
    plan = Plan(replace(RECIPE, batch_size=4096 * 32), 45_000, 1)
    assert scaling_results.describe(scaling, FILE, plan, 2048)
    with pytest.raises(UserError, match=r"--scaling-devices 4096 is more than 64 times .*: lower it to 2048, or"):
        scaling_results.describe(scaling, FILE, plan, 4096)


def test_worlds_of_two_versions_are_a_reservation_and_an_earlier_price_stays() -> None:
    kept, cluster = results(RECIPE, (1, 2), price=2.5), SimulatedCluster(TRUTHS["fast network"], 0.0, 1)
    world = cluster.world(4, RECIPE)
    same = scaling_results.add(kept, world, RECIPE, 0.0)
    assert same["price"] == 2.5 and same["strong"][0]["cost"] == kept["strong"][0]["cost"]
    world["environment"] = {"commit": "0123456789ab", "packages": {"torch": "2.10.0"}}
    assert scaling_results.add(kept, world, RECIPE, 0.0)["model"]["assumptions"] == [
        "1, 2 and 4 processes were measured with different versions of the code or its packages: measure again.",
        *same["model"]["assumptions"],
    ]


def test_a_plan_refuses_worlds_over_which_the_batch_does_not_divide(scaling: dict) -> None:
    with pytest.raises(UserError, match=r"batch_size 256 does not divide over 3 processes .*: use 192 or 288"):
        scaling_results.describe(scaling, FILE, Plan(RECIPE, 45_000, 1), 3)


@pytest.mark.parametrize(("content", "said"), [(None, "there is no such file"), ("{}", "was not written by")])
def test_other_files_are_refused(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "scaling.json").write_text(content)
    for file in (tmp_path / "scaling.json", tmp_path):  # the folder that --out names is as good
        with pytest.raises(UserError, match=said):
            scaling_results.read(file)


def test_the_page_shows_every_world_and_the_errors_of_the_prediction(scaling: dict) -> None:
    page = scaling_report.render(scaling)
    for row in scaling["strong"]:
        assert f"{row['images_per_second']:,.0f}" in page
    error = scaling["model"]["held_back"]["points"]
    assert f"{100 * error['median']:.1f}" in page
    assert "gradients in bf16" in page and "2.5 per device and hour" in page
    assert page.count("<svg") == 4
    assert "<script src" not in page and "http://" not in re.sub(r"http://www\.w3\.org", "", page)
