"""benchmarks/: the whole harness on a tiny model. No figure is tested."""

from __future__ import annotations

import configparser
import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

import benchmarks.__main__ as command
from benchmarks import finetune, gpu, gpu_stages, jobs, results, training, usage
from benchmarks.step import Configuration
from resnet_cifar.cli.train import parse_arguments

CONFIGURATION = Configuration("scratch", "cifar", 32, 64, "no", model="test_resnet", rounds=1, seconds=0.0)


@pytest.mark.proof_only
def test_a_rehearsal_measures_everything_and_keeps_nothing(capsys: pytest.CaptureFixture) -> None:
    """What training measures is left out here: the other rehearsal, below, does that."""
    before = {file: file.read_bytes() for file in results.FOLDER.iterdir()}
    names = ("training", "jobs", "pipeline", "startup", "finetune", "serve")
    assert command.main(["--rehearse", "--minutes", "0", *names]) == 0
    said = capsys.readouterr().out
    for words in (
        "no time was left",
        "train.py over the better one",
        "images/s resident",
        "with an empty cache",
        "3 updates of 32",
        "16 requests of 8",
    ):
        assert words in said
    assert {file: file.read_bytes() for file in results.FOLDER.iterdir()} == before


def test_a_configuration_without_time_is_left_out_and_said() -> None:
    (found,) = training.measure("synthetic", time.monotonic() + 1, [CONFIGURATION])
    assert found["left_out"] == "no time was left" and found["model"] == "test_resnet"
    console = Console(width=160)
    with console.capture() as printed:
        results.show({"training": {"configurations": [found]}}, console)
    assert "no time was left" in printed.get()


def test_a_configuration_that_fails_says_why_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Configuration("scratch", "cifar", 32, 33, "no", model="test_resnet", rounds=1)
    (found,) = training.measure("synthetic", time.monotonic() + 60, [broken])
    assert found["left_out"] == "it failed"
    assert "batch_size 33" in found["error"]


def test_children_find_packages_on_the_python_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('found on PYTHONPATH')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = training.measure("synthetic", time.monotonic() + 60, [CONFIGURATION])
    assert "found on PYTHONPATH" in found["error"]


def test_figures_go_to_the_folder_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.startup, "measure", lambda _: {"seconds_to_first_step": {"cold": 2.0, "warm": 1.0}})
    assert command.main(["startup", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["startup"]["seconds_to_first_step"] == {"cold": 2.0, "warm": 1.0}


class TestJobs:
    """The plain scripts train, and figures are compared with the better one."""

    @pytest.fixture(scope="class")
    def source(self, tmp_path_factory: pytest.TempPathFactory) -> str:
        return jobs.parquet(tmp_path_factory.mktemp("synthetic") / "images", 320)

    @pytest.mark.parametrize("script", jobs.PLAIN)
    def test_a_plain_script_learns(
        self, script: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = jobs.Job(model="test_resnet", images=320, epochs=3, batch_size=32)
        _, file, *words = jobs.command(script, source, tmp_path / "run", job, workers=0)
        monkeypatch.setattr(sys, "argv", [file, *words])
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        runpy.run_path(file, run_name="__main__")
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        first, *_, last = (row["train/loss"] for row in result["history"])
        assert last < 0.9 * first
        assert result["test/accuracy"] > 0.2
        assert (
            tmp_path / "run" / {"accelerate_style": "model/model.safetensors", "timm_style": "last.pth.tar"}[script]
        ).is_file()

    def test_train_py_takes_the_same_job(self, tmp_path: Path) -> None:
        _, file, *words = jobs.command(jobs.OURS, "synthetic", tmp_path, jobs.SMALL, workers=0)
        assert Path(file).name == "train.py"
        _, recipe = parse_arguments(words)
        assert (recipe.batch_size, recipe.data.limit, recipe.data.validation_fraction) == (128, 2000, 0.1)
        assert (recipe.optimizer.name, recipe.augment.mixup_alpha, recipe.augment.cutmix_alpha) == ("sgd", 0, 0)
        assert recipe.phases[0].epochs == 2 and not recipe.model.pretrained and recipe.model.name == "resnet50"

    def test_each_figure_is_compared_with_the_plain_script_that_is_better_at_it(self) -> None:
        def runs(seconds: tuple[float, ...], memory: int) -> list[dict]:
            common = {"cpu_seconds": 10.0, "peak_bytes": memory, "test/accuracy": 0.5}
            return [{**common, "seconds": one} for one in seconds]

        ours = [{**run, "parts": {"steps": run["seconds"] - 3}} for run in runs((10, 24, 12), 110)]
        found = {"train.py": ours, "accelerate_style": runs((20, 20, 10), 100), "timm_style": runs((15, 15, 15), 120)}
        cold = {script: runs[0] for script, runs in found.items()}
        summary = jobs.summarize(found, cold, dict.fromkeys(found, 0))
        assert summary["to"] == {
            "seconds": "timm_style",
            "cpu_seconds": "accelerate_style",
            "peak_bytes": "accelerate_style",
        }
        assert summary["ratios"] == {"seconds": 0.8, "cpu_seconds": 1.0, "peak_bytes": 1.1}
        assert summary["met"] == {"seconds": True, "peak_bytes": True}
        assert summary["seconds_by_part"] == {"steps": 9}
        console = Console(width=160)
        with console.capture() as printed:
            results.show({"jobs": {"job": vars(jobs.SMALL), **summary}}, console)
        assert "0.80" in printed.get() and "9.00 s" in printed.get()

    def test_memory_is_that_of_all_processes_together(self) -> None:
        child = "import sys; pages = b'x' * (100 << 20); print(flush=True); sys.stdin.read()"
        before = usage.held(os.getpid())
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                command = [sys.executable, "-c", child]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
                stack.enter_context(subprocess.Popen(command, **pipes)).stdout.readline()
            assert usage.held(os.getpid()) - before > 190 << 20

    def test_what_a_command_uses_is_not_what_its_parent_holds(self, tmp_path: Path) -> None:
        """This process has torch in memory. A command's exit code is passed on."""
        command = [sys.executable, str(jobs.USAGE), str(tmp_path / "log"), sys.executable, "-c", "print(1); exit(3)"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        assert done.returncode == 3 and (tmp_path / "log").read_text() == "1\n"
        assert json.loads(done.stdout)["peak_bytes"] < 60 << 20

    def test_a_job_that_fails_says_why(self, tmp_path: Path) -> None:
        script = tmp_path / "job.py"
        script.write_text("raise SystemExit('there is no such dataset')")
        with pytest.raises(RuntimeError, match=r"job\.py failed: there is no such dataset"):
            jobs.run([sys.executable, str(script)], dict(os.environ))


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        command.main(["pipelin"])
    assert "'pipelin'" in capsys.readouterr().err


def test_figures_are_kept_beside_each_other_until_the_machine_changes(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    results.keep(file, "pipeline", "/somewhere/cifar10", {"x": 1})
    results.keep(file, "startup", "synthetic", {"y": 2})
    kept = json.loads(file.read_text())
    assert kept["pipeline"]["x"] == 1 and kept["startup"]["y"] == 2
    assert kept["pipeline"]["source"] == "cifar10", "the machine's folders stay out"
    assert {"commit", "time"} <= kept["startup"].keys() and "command" not in kept["environment"]
    file.write_text(json.dumps({**kept, "environment": {**kept["environment"], "cpu": "another"}}))
    results.keep(file, "startup", "synthetic", {"y": 3})
    assert json.loads(file.read_text()).keys() == {"environment", "startup"}


def variant(batchnorm: str = "auto", **values: object) -> dict:
    """What a stage reports of one."""
    measured = {"images_per_second": 1000.0, "first_steps_s": 1.0}
    return {**asdict(gpu_stages.Variant("scratch", 32, 256, batchnorm)), **measured, **values}


def test_a_benchmark_that_is_measured_alone_keeps_the_figures_of_the_others(tmp_path: Path) -> None:
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    for name in ("finetune", "serve", "checkpoints"):
        assert results.file(tmp_path, [name]) == tmp_path / f"bench-{name}-{kind}.json"
    for names in ([], ["training"], ["jobs", "pipeline"]):
        assert results.file(tmp_path, names) == tmp_path / f"bench-{kind}.json"


class TestGpuRunner:
    """benchmarks.gpu, as far as it goes without a GPU."""

    @pytest.fixture
    def runner(self, tmp_path: Path) -> gpu.Runner:
        return gpu.Runner(tmp_path / "gpu-test", time.monotonic() + 600, 1.0, rehearse=True)

    @pytest.mark.proof_only
    def test_a_rehearsal_goes_through_all_stages_and_writes_only_into_its_folder(self, tmp_path: Path) -> None:
        before = sorted(results.FOLDER.iterdir())
        command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--minutes", "9", "--out", str(tmp_path)]
        done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = [json.loads(line) for line in (tmp_path / "gpu-rehearsal.jsonl").read_text().splitlines()]
        kinds = Counter(row["kind"] for row in rows)
        ceilings = len(gpu_stages.EXPECTED)
        expected = {"environment": 1, "tests": 2, "images": 1, "warm-up": 1, "ceiling": ceilings, "variant": 5}
        assert kinds == {**expected, "trained": 1, "end": 1}
        assert {"commit", "packages", "gpus"} <= rows[0].keys()
        assert all(row["images_per_second"] > 0 for row in rows if row["kind"] == "variant")
        trained = rows[-2]
        assert trained["exit_code"] == 0 and trained["curve"] and trained["result"]["test/accuracy"] > 0
        assert any("aten::convolution_backward" in line for line in trained["trace"])
        assert "rehearsed: all is well" in done.stdout
        assert "scratch | " in (tmp_path / "gpu-rehearsal.log").read_text()
        assert sorted(results.FOLDER.iterdir()) == before

    def test_processes_find_the_project_and_what_pythonpath_names(
        self, runner: gpu.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "carried_package.py").write_text("")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        command = [sys.executable, "-c", "import carried_package, benchmarks; print(benchmarks.__file__)"]
        outcome = runner.run(600, {"imports": command})["imports"]
        assert outcome.code == 0 and outcome.lines == [str(gpu.ROOT / "benchmarks" / "__init__.py")]

    def test_at_its_limit_a_process_is_killed_with_its_children_and_its_results_stay(self, runner: gpu.Runner) -> None:
        script = """echo 'RESULT {"kind": "x", "value": 1}'; sleep 600 & echo $!; echo 'RESULT {"cut'; wait"""
        found = runner.run(2, {"slow": ["sh", "-c", script], "quick": ["sh", "-c", "echo done; exit 3"]})
        assert found["slow"].code is None and found["slow"].problem("slow") == ["slow was not done within 2 s"]
        assert found["quick"].problem("quick") == ["quick ended with 3: done"]
        (child,) = found["slow"].lines
        with contextlib.suppress(psutil.NoSuchProcess):
            killed = psutil.Process(int(child))
            while (state := killed.status()) in (psutil.STATUS_RUNNING, psutil.STATUS_WAKING):  # until it is scheduled
                os.sched_yield()
            assert state == psutil.STATUS_ZOMBIE
        (row,) = map(json.loads, runner.file.read_text().splitlines())
        assert row["kind"] == "x" and row["value"] == 1
        assert "quick | done" in runner.log.read_text()

    def test_nothing_is_started_when_the_time_is_over(self, tmp_path: Path) -> None:
        runner = gpu.Runner(tmp_path / "gpu-test", time.monotonic(), 1.0, rehearse=False)
        outcome = runner.run(runner.limit("eager"), {"eager": ["no-such-command"]})["eager"]
        assert outcome.problem("eager") == ["eager was not done within 0 s"]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_without_a_gpu_it_says_so(self, capsys: pytest.CaptureFixture) -> None:
        assert gpu.main([]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_images_that_are_not_there_are_refused_at_once(self, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
        assert gpu.main(["--rehearse", "--source", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith("error: data.source")
        assert not list(tmp_path.iterdir())

    def test_the_step_must_keep_up_with_stock_timm_in_a_plain_loop(self) -> None:
        stock, other = variant("plain loop"), variant("plain loop", batch=1024, images_per_second=9e9)
        assert (
            gpu.too_slow([variant(images_per_second=971.0), variant("stock", images_per_second=1.0), stock, other])
            == []
        )
        slow = variant(images_per_second=969.0)
        (sentence,) = gpu.too_slow([slow, stock])
        assert sentence.startswith("scratch 32 px, batch 256, bf16, auto trains at 96.9% of stock timm")
        assert gpu.too_slow([slow, stock], compare=False) == []
        left_out = {**asdict(gpu_stages.Variant("scratch", 32, 256, "plain loop")), "left_out": "no time was left"}
        (sentence,) = gpu.too_slow([slow, left_out])
        assert sentence.endswith("was not compared with stock timm in a plain loop: give it more --minutes")
        failed = {**asdict(gpu_stages.Variant("scratch", 32, 256)), "error": "out of memory"}
        assert gpu.too_slow([stock, failed]) == ["scratch 32 px, batch 256, bf16, auto failed: out of memory"]
        assert gpu.too_slow([]) == ["no variant of the step was measured"]

    def test_training_takes_the_way_that_gives_the_most_epochs(self) -> None:
        eager = variant(images_per_second=4500.0)
        compiled = variant(images_per_second=9000.0, first_steps_s=100.0, compile_mode="default")
        others = [variant("stock", images_per_second=1e6), variant(batch=1024, images_per_second=1e6)]
        assert gpu.best_way([eager, compiled, *others], 50_000, 165) == (10, eager)  # 0.9 * 120 s / 10.8 s
        assert gpu.best_way([eager, compiled, *others], 50_000, 345) == (31, compiled)  # 0.9 * 200 s / 5.8 s
        assert gpu.best_way([eager], 50_000, 20) == (1, eager)
        assert gpu.best_way([eager], 50_000, 1e6) == (100, eager)
        assert gpu.best_way(others, 50_000, 100) == (0, None)

    def test_what_fails_in_the_tests_is_named(self) -> None:
        lines = ["..F", "FAILED tests/gpu/test_gpu.py::test_x[bf16] - RuntimeError: called a synchronizing operation"]
        (failed,) = gpu.failures("tests/gpu", gpu.Outcome(lines, code=1))
        assert failed.startswith("tests/gpu/test_gpu.py::test_x[bf16] - RuntimeError")
        assert gpu.failures("tests/gpu", gpu.Outcome(["no such folder"], code=4)) == [
            "tests/gpu ended with 4: no such folder"
        ]
        assert gpu.failures("tests/gpu", gpu.Outcome(["2 passed"], code=0)) == []

    def test_kernels_and_their_milliseconds_are_counted_a_step(self) -> None:
        kernels = [{"cat": "kernel", "dur": 1500.0}] * 4
        others = [{"cat": "gpu_memcpy", "dur": 9.0}, {"cat": "cuda_runtime", "dur": 9.0}, {"ph": "M"}]
        assert gpu_stages.kernels_in([*kernels, *others], steps=2) == (2, 3.0)
        assert gpu_stages.kernels_in(others, steps=2) == (None, None)

    def test_a_variant_that_fails_is_reported_and_the_next_one_measured(
        self, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def measured(variant: gpu_stages.Variant, rehearse: bool) -> dict:
            if variant.batch == 33:
                raise RuntimeError("CUDA error: too many resources\nand more lines")
            return {"images_per_second": 1.0}

        monkeypatch.setattr(gpu_stages, "_measured", measured)
        chosen = [gpu_stages.Variant("scratch", 32, batch) for batch in (33, 64)]
        gpu_stages.measure(chosen, time.monotonic() + 600, rehearse=True)
        gpu_stages.measure(chosen[:1], time.monotonic() + 1, rehearse=True)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("RESULT ")]
        failed, fine, late = (json.loads(line.removeprefix("RESULT ")) for line in lines)
        assert failed["error"] == "RuntimeError: CUDA error: too many resources" and failed["batch"] == 33
        assert fine["images_per_second"] == 1.0
        assert late["left_out"] == "no time was left"

    def test_without_datasets_parquet_files_are_read_all_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        folder, colors = tmp_path / "source" / "plain_text", np.arange(20, dtype=np.uint8)
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            images = []
            for color in colors:
                stream = io.BytesIO()
                Image.new("RGB", (8, 8), (int(color), 0, 0)).save(stream, "PNG")
                images.append({"bytes": stream.getvalue(), "path": None})
            table = pa.table({"img": images, "label": [int(color) % 2 for color in colors]})
            pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
        monkeypatch.setenv("RESNET_CIFAR_CACHE", str(tmp_path / "cache"))
        monkeypatch.setitem(sys.modules, "datasets", None)  # importing it raises ImportError
        gpu_stages.decode(str(tmp_path / "source"))
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("RESULT ")]
        found = json.loads(line.removeprefix("RESULT "))
        assert found["images"] == {"train": 20, "test": 20}
        with np.load(found["source"]) as arrays:
            assert arrays["x_train"][:, 0, 0, 0].tolist() == colors.tolist()
            assert arrays["y_test"].tolist() == (colors % 2).tolist()


def test_packing_fetches_nothing_that_the_machine_has(tmp_path: Path) -> None:
    """benchmarks/pack.sh, without an index: every requirement of setup.cfg is on the list of what is there."""
    config = configparser.ConfigParser()
    config.read(gpu.ROOT / "setup.cfg")
    names = (line.partition(">")[0] for line in config["options"]["install_requires"].split("\n") if line)
    (tmp_path / "freeze.txt").write_text("".join(f"{name}==999.0\n" for name in names))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train.parquet").write_bytes(b"some")
    out = tmp_path / "packed"
    done = subprocess.run(
        ["bash", str(gpu.ROOT / "benchmarks" / "pack.sh"), str(tmp_path / "images"), str(tmp_path / "freeze.txt")],
        env={**os.environ, "OUT": str(out), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (out / "images" / "train.parquet").read_bytes() == b"some" and not list((out / "wheels").iterdir())
    assert f"python3 -m benchmarks.gpu --source {out}/images --minutes 9" in done.stdout


def test_recipes_are_compared_on_images_that_none_trains_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = timm.create_model("test_resnet", num_classes=7).state_dict()
    save_file(weights, tmp_path / "a.safetensors")
    model = {"model.name": "test_resnet", "model.init_from": str(tmp_path / "a.safetensors")}
    candidates = {"finetune": {}, "probe only": {"phases.0.lr": "1e-12"}}
    settings = [finetune.Setting(60, 32, 1, 20, validation_images=100)]
    *_, found = finetune.measure("synthetic", model, settings, candidates)
    (setting,) = found["settings"]
    assert (setting["updates"], setting["validation_images"]) == (3, 100)
    assert setting["scores"]["probe only"] == setting["probe"] != setting["scores"]["finetune"]
    console = Console(width=160)
    with console.capture() as printed:
        results.show({"finetune": found}, console)
    assert "60 images, 32 px, 3 updates of 20: accuracy on 100 validation images" in printed.get()
