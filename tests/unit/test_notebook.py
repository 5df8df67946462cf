"""What train and show make of their arguments, and what a notebook sees of a run; no run is started."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import IPython.display
import pytest

import resnet_cifar
from resnet_cifar import notebook
from resnet_cifar.atomic_io import write_json
from resnet_cifar.checkpoints.run_dir import default_run_path
from resnet_cifar.cli.train import parse_arguments
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, write_recipe
from resnet_cifar.reporting import notebook_panel
from resnet_cifar.sweeps import launcher, run_monitor

ROW = {"step": 5, "epoch": 0.5, "images": 500, "lr": 0.1, "images_per_second": 50.0}
ROW |= {"train/loss": 1.5, "train/accuracy": 0.4}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An unfinished run of the recipe `debug`."""
    folder = tmp_path / "RUN"
    folder.mkdir()
    write_recipe(read_recipe("debug"), folder / "recipe.yaml")
    write_json(folder / "status.json", {"state": "interrupted", "why": "SIGINT", "time": 0, "step": 5, "steps": 20})
    return folder


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """In place of the report's maker: the runs whose page was written."""
    written: list[Path] = []

    def write(folder: Path) -> Path:
        written.append(folder)
        page = folder / "report" / "index.html"
        page.parent.mkdir(exist_ok=True)
        page.write_text(f'<p title="it\'s">page {len(written)}</p>')
        return page

    module = types.ModuleType("resnet_cifar.reporting.run_report")
    module.write_run_report = write
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("resnet_cifar.reporting.run_report", module, raising=False)
    return written


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data.limit": 2000, "seed": 1}, ["--data.limit=2000", "--seed=1"]),
        ({"data": {"limit": 2000, "columns": {"image": "img"}}}, ["--data.limit=2000", "--data.columns.image=img"]),
        (
            {"model": {"pretrained": False, "ghost_batch_size": None}},
            ["--model.pretrained=False", "--model.ghost_batch_size=null"],
        ),
        ({"phases": [{"lr": 1e-5}, {"epochs": 2}]}, ["--phases.0.lr=1e-05", "--phases.1.epochs=2"]),
        ({"track.trackers": ["wandb", "tensorboard"]}, ["--track.trackers=wandb,tensorboard"]),
        ({"data.source": Path("a") / "b"}, ["--data.source=a/b"]),
    ],
)
def test_python_values_become_the_command_lines_words(overrides: dict, words: list[str]) -> None:
    assert list(notebook._words(overrides)) == words
    parse_arguments(["--recipe=debug", *(word for word in words if "source" not in word)])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"recipe": "scrath"}, "did you mean scratch"),
        ({"data.limit": -1}, "data.limit cannot be '-1'"),
        ({"data": {"limi": 1}}, "unknown field data.limi; did you mean data.limit"),
        ({"learning_rate": 0.1}, r'unknown field learning_rate: use \*\*{"phases.0.lr": 0.1}'),
        ({"processes": 0}, "processes cannot be 0"),
        ({"extend_epochs": 2, "restart": True}, "--extend-epochs continues a run and --restart starts over"),
        ({"recipe": "scratch", "run": "RUN"}, "--run RUN belongs to another recipe"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    arguments: dict, sentence: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "start", lambda *_, **__: pytest.fail("train.py was started"))
    monkeypatch.chdir(run.parent)
    with pytest.raises(UserError, match=sentence) as caught:
        resnet_cifar.train(**arguments)
    assert caught.value._render_traceback_() == [f"error: {caught.value}"]


def test_a_finished_run_is_returned_and_one_of_more_phases_is_not(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(run / "result.json", {"test/accuracy": 0.5, "val/accuracy": 0.25})
    started: list[list[str]] = []
    monkeypatch.setattr(launcher, "start", lambda words, processes, quiet: started.append(words))
    monkeypatch.setattr(run_monitor, "follow", lambda process, folder, is_shown: None)
    found = resnet_cifar.train("debug", run=run)
    assert (found.path, found.result["test/accuracy"], os.fspath(found)) == (run, 0.5, str(run))
    assert repr(found).endswith("interrupted, step 5 of 20, val/accuracy 0.2500, test/accuracy 0.5000")
    assert started == []
    resnet_cifar.train("debug", run=run, extend_epochs=1.5)
    resnet_cifar.train("debug", run=run, restart=True)
    write_json(run / "result.json", {"step": 5, "val/accuracy": 0.25})
    assert resnet_cifar.train(refit=run).path == run.with_name(f"{run.name}-refit")
    assert started == [
        ["--recipe=debug", "--extend-epochs=1.5", f"--run={run}"],
        ["--recipe=debug", "--restart", f"--run={run}"],
        [f"--refit={run}", f"--run={run}-refit"],
    ]


def test_the_folder_is_the_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "start", lambda words, processes, quiet: None)
    monkeypatch.setattr(run_monitor, "follow", lambda process, folder, is_shown: None)
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("debug", {"seed": "3", "precision": "no"})
    assert resnet_cifar.train("debug", seed=3).path == default_run_path("debug", recipe)


def test_several_processes_go_through_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    commands_run: list[list[str]] = []
    monkeypatch.setattr(launcher.subprocess, "Popen", lambda command, **_: commands_run.append(command))
    for gpu, config in ((True, "multi_gpu.yaml"), (False, "cpu_ddp.yaml")):
        monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
        launcher.start(["--recipe=debug"], 3, quiet=True)
        *words, script, word = commands_run[-1]
        assert words[1:3] == ["-m", "accelerate.commands.launch"] and words[-2:] == ["--num_processes", "3"]
        assert Path(words[4]).is_file() and words[4].endswith(config)
        assert (Path(script).name, word) == ("train.py", "--recipe=debug")


def test_a_report_is_written_anew_only_where_the_run_has_gone_on(
    run: Path, reports: list[Path], capsys: pytest.CaptureFixture
) -> None:
    page = run / "report" / "index.html"
    resnet_cifar.show(str(run))
    resnet_cifar.show(run)
    assert reports == [run]
    assert capsys.readouterr().out.splitlines()[-2:] == [f"Run({str(run)!r}): interrupted, step 5 of 20", str(page)]
    sources = ("status.json", "attempts.json", "eval-test.json", "report/pictures-test.npz")
    for count, name in enumerate(sources, start=2):
        (run / name).touch()
        os.utime(run / name, ns=(0, page.stat().st_mtime_ns + 1))
        resnet_cifar.show(notebook.Run(run))
        assert len(reports) == count, name
        os.utime(run / name, ns=(0, 0))


def test_a_page_keeps_to_its_frame(run: Path, reports: list[Path]) -> None:
    shown = notebook.Run(run)._repr_html_()
    page = '<p title="it\'s">page 1</p>'
    assert f'srcdoc="{html.escape(page)}" sandbox="allow-scripts"' in shown and "<p" not in shown


def test_what_is_no_run_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"show: .* is not a run directory \(it has no recipe.yaml\)"):
        resnet_cifar.show(tmp_path)


def test_the_panel_says_where_a_run_is() -> None:
    rows = [{**ROW, "val/loss": 1.2, "val/accuracy": 0.5}, {**ROW, "step": 10, "epoch": 1.0, "images": 1000}]
    panel = notebook_panel.panel("runs/<a>", "training", 40, rows, ["take <care>"], notebook_panel.curves(rows))
    for part in ("runs/&lt;a&gt;", "step 10 of 40", "epoch 1.00 of 4.00", "50 images/s", "60 s left"):
        assert part in panel, part
    assert 'aria-valuenow="25.0"' in panel and "validation accuracy 0.5000 (best 0.5000)" in panel
    assert "warning: take &lt;care&gt;" in panel and "data:image/svg+xml" in panel
    by_loss = notebook_panel.panel("runs/a", "training", 40, rows, [], "", "loss")
    assert "validation loss 1.2000 (best 1.2000)" in by_loss
    still = notebook_panel.panel("runs/a", "training", 40, [{**ROW, "images_per_second": 0.004}], [], "")
    assert "0.004 images/s" in still and " left" not in still, "the first row includes warm-up"
    empty = notebook_panel.panel("runs/a", "starting", 0, [], [], notebook_panel.curves([]))
    assert 'aria-valuenow="0"' in empty and "<img" not in empty


def followed(run: Path, script: str, is_shown: bool = False) -> None:
    """Follows a process that does what `script` says in place of train.py."""
    command, pipe = [sys.executable, "-c", script, str(run)], subprocess.PIPE
    run_monitor.follow(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True), run, is_shown)


@pytest.mark.parametrize(
    ("script", "error", "sentence"),
    [
        ("import sys; sys.exit('error: use another')", UserError, "use another"),
        ("import sys; print('error: a\\nTraceback', file=sys.stderr); sys.exit(1)", UserError, "a"),
        ("1 / 0", run_monitor.Failed, r"train.py exited with code 1; its last output:\n(.*\n)*ZeroDivisionError"),
        (
            "import sys; sys.exit(75)",
            run_monitor.Interrupted,
            "interrupted with nothing new to save: call again to start again",
        ),
        ("", run_monitor.Failed, "train.py exited with code 0"),
    ],
)
def test_how_a_start_ended_is_told(run: Path, script: str, error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        followed(run, script)
    assert "\n".join(caught.value._render_traceback_()).endswith(str(caught.value))


@pytest.mark.parametrize(
    ("step", "said"),
    [(7, "and saved at step 7 of 20: call again to resume"), (0, "before the first step: .* start again")],
)
def test_a_stop_that_nobody_here_asked_for_is_told(run: Path, step: int, said: str) -> None:
    status = {"state": "interrupted", "why": "--max-minutes 5", "time": 1e12, "step": step, "steps": 20}
    if step:
        (run / "checkpoints" / "step-00000007").mkdir(parents=True)
    with pytest.raises(run_monitor.Interrupted, match=rf"interrupted \(--max-minutes 5\) {said}"):
        followed(run, f"import json, sys; json.dump({status!r}, open(sys.argv[1] + '/status.json', 'w'))")


FINISHES = """
import pathlib, sys
run = pathlib.Path(sys.argv[1])
(run / "metrics.jsonl").write_text(METRICS)
while not (run / "looks").exists() or (run / "looks").stat().st_size < 3:
    pass
(run / "result.json").write_text("{}")
"""


@pytest.fixture
def panels(run: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the cell shows, one after the other; their number is the size of the file `looks` in the run's folder."""
    shown: list[str] = []

    def update(panel: IPython.display.HTML, **_: bool) -> types.SimpleNamespace:
        shown.append(panel.data)
        return types.SimpleNamespace(update=update)

    monkeypatch.setattr("IPython.display.display", update)
    monkeypatch.setattr(run_monitor, "_POLL", 0.01)
    monkeypatch.setattr(run_monitor, "_IDLE_FACTOR", 0)
    panel = notebook_panel.panel

    def counted(*facts: Any) -> str:
        with (run / "looks").open("a") as stream:
            stream.write(".")
        return panel(*facts)

    monkeypatch.setattr(notebook_panel, "panel", counted)
    return shown


def test_a_torn_row_is_left_out_of_what_is_shown(run: Path, panels: list[str], capsys: pytest.CaptureFixture) -> None:
    write_json(run / "status.json", {"state": "running", "time": 1e12, "step": 5, "steps": 20})
    rows = f"{json.dumps(ROW)}\n{{torn\n{json.dumps({**ROW, 'step': 10})}\n{{being"
    followed(run, FINISHES.replace("METRICS", repr(rows)), is_shown=True)
    assert "step 10 of 20" in panels[-1]
    assert "warning" not in capsys.readouterr().err


def test_what_cannot_be_drawn_is_said_once_and_stops_nothing(
    run: Path, panels: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    counted = notebook_panel.panel

    def away(*facts: Any) -> str:
        counted(*facts)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(notebook_panel, "panel", away)
    followed(run, FINISHES.replace("METRICS", "''"), is_shown=True)
    said = "warning: training continues, but its progress cannot be shown (OSError: [Errno 5] Input/output error)\n"
    assert capsys.readouterr().err == said
    assert notebook.Run(run).result == {} and panels == []


def test_an_interrupt_while_it_draws_is_handed_on(
    run: Path, panels: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    counted = notebook_panel.panel

    def interrupted(*facts: Any) -> str:
        text = counted(*facts)
        if (run / "ready").exists():
            (run / "ready").unlink()
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr(notebook_panel, "panel", interrupted)
    script = "import pathlib, signal, sys; signal.signal(signal.SIGINT, lambda *_: sys.exit(75)); "
    with pytest.raises(run_monitor.Interrupted, match="interrupted with nothing new to save"):
        followed(run, script + "pathlib.Path(sys.argv[1], 'ready').touch(); signal.pause()", is_shown=True)
    assert capsys.readouterr().err == "interrupting: the run is being saved\n"
