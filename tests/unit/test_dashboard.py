"""The local dashboard: what it reads from run directories that grow, its page, its file and its server."""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reported

from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.cli import dashboard as command
from resnet_cifar.cli.dashboard_server import DashboardServer, report_address
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.reporting.dashboard import panels, tables
from resnet_cifar.reporting.dashboard.run_feed import RunFeed
from resnet_cifar.reporting.dashboard.view import Dashboard, View, relative_link
from resnet_cifar.reporting.run_listing import list_runs
from resnet_cifar.reporting.seed_stats import spread


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, one that is killed, another field's, and two of another seed, of which one has finished."""
    home = tmp_path_factory.mktemp("made")
    reported.finish(home / "runs" / "done")
    reported.start(home / "runs" / "cut", 33)
    reported.start(home / "runs" / "faster", 25, **{"phases.1.lr": "0.01"})
    shutil.copytree(home / "runs" / "done", home / "runs" / "seeds" / "seed-1")
    shutil.copytree(home / "runs" / "cut", home / "runs" / "seeds" / "seed-2")
    for seed in (1, 2):
        file = home / "runs" / "seeds" / f"seed-{seed}" / "recipe.yaml"
        file.write_text(re.sub(r"^seed: 0$", f"seed: {seed}", file.read_text(), flags=re.MULTILINE))
    for file in (home / "runs").rglob("lease.json"):  # their process, this one, is still there
        file.write_text(json.dumps(json.loads(file.read_text()) | {"time": 0.0}))
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def look(*roots: str) -> View:
    return Dashboard([Path(root) for root in roots or ("runs",)], relative_link(Path("page.html"))).look()


def feed(folder: Path) -> RunFeed:
    (listed,) = list_runs([folder])
    made = RunFeed(folder, listed)
    made.read(listed)
    return made


def again(run: RunFeed) -> bool:
    """Reads it once more; whether anything has changed."""
    return run.read(list_runs([run.folder])[0])


def run_of(view: View, name: str) -> dict[str, Any]:
    (found,) = [part for part in view.parts.values() if isinstance(part, dict) and part.get("name") == name]
    return found


def test_only_new_rows_are_read_and_a_half_written_one_later(tmp_path: Path) -> None:
    run = reported.start(tmp_path / "run", 30)
    read = feed(run.path)
    assert [point[0] for point in read.lines["train/loss"]] == list(range(1, 31))
    assert not again(read)
    line = json.dumps(reported.row(31)) + "\n"
    with (run.path / "metrics.jsonl").open("r+") as stream:
        stream.write("{" * 10)  # what has been read is not read again: this would be rows lost
        stream.seek(0, os.SEEK_END)
        stream.write(line[:40])
    again(read)
    assert len(read.lines["train/loss"]) == 30
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write(line[40:])
    assert again(read)
    assert [point[0] for point in read.lines["train/loss"]] == list(range(1, 32))
    assert read.lines["train/loss"][-1] == (31, 3.1, pytest.approx(2 / 31))


def test_a_resumed_run_is_one_curve_with_its_interruptions(tmp_path: Path) -> None:
    run = reported.start(tmp_path / "run", 30)
    read = feed(run.path)
    next_attempt = RunDir(run.path)
    next_attempt.acquire(read_recipe(str(run.path / "recipe.yaml")), {})
    next_attempt.status("running", step=24, steps=40)
    next_attempt.resume_metrics(24)
    next_attempt.append_metrics(reported.row(25))
    assert again(read)
    assert [point[0] for point in read.lines["lr"]] == list(range(1, 26)), "updates that were lost are gone"
    assert [(stop.step, stop.epoch) for stop in read.stops] == [(14, 1.4), (20, 2.0), (24, 2.4)]
    assert read.stops[0].text == "interrupted at step 14 (SIGTERM), resumed from step 14"
    assert read.stops[2].text == "killed, resumed from step 24"


def test_rows_that_were_replaced_twice_between_two_looks_are_gone(tmp_path: Path) -> None:
    run = reported.start(tmp_path / "run", 30)
    read = feed(run.path)
    file, inode = run.path / "metrics.jsonl", (run.path / "metrics.jsonl").stat().st_ino
    rows = [reported.row(step) | ({"lr": 7.0} if step > 20 else {}) for step in range(1, 35)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))  # file systems give a freed inode to the next file
    assert file.stat().st_ino == inode
    assert again(read)
    assert [value for step, _, value in read.lines["lr"] if step > 20] == [7.0] * 14


def test_a_run_that_starts_over_under_the_same_name_is_read_from_its_start(tmp_path: Path) -> None:
    run = reported.start(tmp_path / "run", 30)
    read = feed(run.path)
    RunDir(run.path).move_aside()
    reported.start(tmp_path / "run", 21)
    assert again(read)
    assert len(read.lines["lr"]) == 21


@pytest.mark.parametrize("file", ["status.json", "recipe.yaml", "attempts.json", "result.json", "eval-test.json"])
@pytest.mark.parametrize("content", ["[1, 2", '{"state": 3, "attempts": [{}], "accuracy": "high"}'])
def test_a_damaged_file_is_named_and_the_other_runs_are_shown(home: Path, file: str, content: str) -> None:
    (home / "runs" / "done" / file).write_text(content)
    parts = look().parts
    assert "cut" in parts["html:speed"]
    if content == "[1, 2" or file not in ("result.json", "eval-test.json"):  # of these the unusable fields are left out
        assert parts["html:overview"].count('<span class="state damaged">damaged</span>') == 1
    json.dumps(parts, allow_nan=False)


def test_damaged_rows_are_left_out_and_long_runs_thinned(tmp_path: Path) -> None:
    run = reported.start(tmp_path / "run", 30)
    rows = [{"step": step, "epoch": step / 10, "images": step, "lr": float(step)} for step in range(1, 4001)]
    rows[10]["lr"], rows[11]["lr"], rows[12]["epoch"] = math.nan, "high", None
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.path / "metrics.jsonl").write_bytes(b"\xff\xfe\n[]\n{}\n" + text.encode())
    line = feed(run.path).lines["lr"]
    assert len(line) == 400
    assert sum(value for *_, value in line) * 10 == pytest.approx(sum(range(1, 4001)), rel=1e-2)
    assert line[-1][:2] == (4000, 400.0)


def test_the_page_has_each_section_that_has_data(home: Path) -> None:
    page = Dashboard([Path("runs")], relative_link(Path("page.html")))
    view = page.look()
    text, parts = page.page(view), view.parts
    assert "<script>alert(1)" not in text and "&lt;script&gt;alert(1)" in text, "the name of a class"
    overview = parts["html:overview"]
    assert overview.count("<li>") == 5
    assert overview.count("killed, resumed from step 20") == 5
    assert '<span class="state finished">finished</span>' in overview
    assert '<span class="state killed">killed</span>' in overview
    assert "87.0\u00a0%" in overview
    assert [panel["title"] for panel in parts["layout"]["panels"] if panel["section"] == "overview"] == [
        "loss",
        "accuracy",
        "macro F1",
    ]
    assert run_of(view, "cut")["stops"][1][:2] == (20, 2.0)
    assert run_of(view, "done")["best"] == {"step": 30, "epoch": 3.0}
    colors = [run_of(view, name)["color"] for name in ("cut", "done", "faster", "seed-1", "seed-2")]
    assert len(set(colors)) == 5
    assert parts["html:predictions"].count("<details") == 2
    assert parts["html:predictions"].count("data:image/png") > 20
    assert "phases.1.lr" in parts["html:sweep"] and "0.01" in parts["html:sweep"]
    assert parts["html:cluster"].count("<tr><td>") == 15, "every attempt"
    assert "GPU-hours" not in parts["html:speed"] and "data wait" not in parts["html:speed"]


def test_seeds_are_grouped_with_mean_and_interval(home: Path) -> None:
    runs = {run.run: feed(Path(run.run)) for run in list_runs([Path("runs")])}
    ((name, group),) = tables.seed_groups(runs).items()
    assert re.fullmatch("[0-9a-f]{8}", name), "the runs are in several directories"
    assert sorted(Path(each).name for each in group) == ["done", "seed-1", "seed-2"], "a seed counts once"
    (result,) = [row for row in tables.seeds({name: group}) if row["metric"] == "val/accuracy"]
    assert (result["finished"], result["mean"], result["interval"]) == ("2 of 3", "0.6000", "0.6000 to 0.6000")
    trial = {"a": feed(Path(shutil.copytree(home / "runs" / "done", home / "runs" / "trial-007")))}
    ((_, again),) = tables.seed_groups(trial | runs).items()
    assert again == group, "a trial was chosen by its result"
    lines = [[(10, 1.0, value), (20, 2.0, value)][:count] for value, count in ((0.5, 2), (0.7, 2), (0.9, 1))]
    first, second = panels.band(lines)
    expected = spread([0.5, 0.7, 0.9])
    assert first == (10, 1.0, expected["mean"], *expected["interval"])
    assert second[2] == pytest.approx(0.6), "of the runs that have come that far"
    assert panels.band([lines[0]]) == []


def test_drawn_runs_never_look_alike_and_keep_their_colors(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [reported.start(tmp_path / "runs" / f"r{number:02d}", 2).path for number in range(30)]
    dashboard = Dashboard([Path("runs")], lambda key, run: "")

    def strokes(*latest: int) -> dict[str, tuple[str, str]]:
        for place, number in enumerate([*(n for n in range(30) if n not in latest), *latest]):
            for file in folders[number].iterdir():
                os.utime(file, (place, place))
        parts = dashboard.look().parts
        drawn = [part for name, part in parts.items() if name.startswith("run:")]
        return {each["name"]: (each["color"], each["dash"]) for each in drawn}

    first, second = strokes(0, 24), strokes(0, 1, 2, 3, 4, 24)
    for found in (first, second):
        assert len(found) == len(set(found.values())) == panels.MAX_RUNS
    assert {"r00", "r24"} <= first.keys() and "r01" not in first and "r01" in second
    assert all(first[name] == second[name] for name in first.keys() & second.keys())


def test_a_sweep_lists_the_best_first_and_draws_each_searched_number(home: Path) -> None:
    runs = {run.run: feed(Path(run.run)) for run in list_runs([Path("runs")])}
    found = tables.sweep(runs)
    assert found["fields"] == ["phases.1.lr"]
    scores = [row["score"] for row in found["rows"]]
    assert scores == sorted(scores, reverse=True) and scores[-1] == 0.5
    (panel,) = panels.slice_panels(found, {row["name"]: row["name"] for row in found["rows"]})
    assert {x for x, _, _ in panel["points"]} == {0.0005, 0.01} and panel["log"]
    runs["runs/faster"].curves.best["val/accuracy"] = float("nan")  # which is no JSON
    assert tables.sweep(runs)["rows"][-1]["score"] is None
    del runs["runs/faster"]
    assert tables.sweep(runs) is None


def test_unknown_fields_have_panels_of_their_own(tmp_path: Path) -> None:
    run = reported.start(tmp_path / "run", 20)
    run.append_metrics({**reported.row(21), "gpu_temperature": 61.0, "mfu": 0.4})
    found = {panel["title"]: panel["section"] for panel in panels.line_panels([feed(run.path)])}
    assert found["gpu_temperature"] == "other" and found["model FLOPs utilization"] == "speed"


def test_of_many_runs_the_latest_are_drawn(tmp_path: Path) -> None:
    run = reported.start(tmp_path / "runs" / "00", 20).path
    for number in range(1, panels.MAX_RUNS + 3):
        shutil.copytree(run, run.with_name(f"{number:02}"))
        os.utime(run.with_name(f"{number:02}") / "status.json", (2e9 + number,) * 2)
    for file in ("status.json", "lease.json", "metrics.jsonl"):
        os.utime(run / file, (1, 1))
    parts = look(str(run.parent)).parts
    drawn = [name for name in parts if name.startswith("run:")]
    assert len(drawn) == panels.MAX_RUNS and f"run:{run}" not in drawn
    assert f"{panels.MAX_RUNS} latest active runs of {panels.MAX_RUNS + 3}" in parts["html:overview"]
    looks = {(part["color"], part["dash"]) for name, part in parts.items() if name.startswith("run:")}
    assert len(looks) > panels.MAX_RUNS - 4


def test_only_what_has_changed_is_sent(home: Path) -> None:
    page = Dashboard([Path("runs")], report_address)
    first = page.look()
    assert page.look() is first
    with (home / "runs/faster/metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(reported.row(26)) + "\n")
    second = page.look()
    key = f"run:{(home / 'runs/faster').resolve()}"
    assert set(second.changes(first.parts)) == {key, "html:overview", "html:speed"}
    assert second.changes(first.parts)[key]["lines"]["lr"][-1][0] == 26
    shutil.rmtree(home / "runs/faster")
    assert page.look().changes(second.parts)[key] is None


def test_the_file_is_written_until_no_run_goes_on(home: Path, capsys: pytest.CaptureFixture) -> None:
    """Of runs that have all ended it is written once; a running one is followed to its end by another process."""
    command.main(["--local", "runs/done", "runs/cut", "--out", "page.html"])
    assert capsys.readouterr().out == "written: page.html\n"
    text = Path("page.html").read_text()
    assert '"reload": 0' in text and 'href="runs/done/report/index.html"' not in text
    lease = json.loads((home / "runs/cut/lease.json").read_text()) | {"pid": os.getpid(), "time": 2e9}
    (home / "runs/cut/lease.json").write_text(json.dumps(lease))
    program = "import sys; from resnet_cifar.cli import dashboard\n"
    program += "dashboard.main(['--local', 'runs/cut', '--out', 'page.html'])\n"
    program += "assert not {'torch', 'timm', 'datasets', 'matplotlib'} & sys.modules.keys()"
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written: page.html, and again until no run goes on (Ctrl-C ends it)\n"
        assert '"reload": 5' in Path("page.html").read_text()
        status = json.loads((home / "runs/cut/status.json").read_text())
        (home / "runs/cut/status.json").write_text(json.dumps(status | {"state": "interrupted", "why": "SIGUSR1"}))
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    text = Path("page.html").read_text()
    assert '"reload": 0' in text and "SIGUSR1" in text


def test_a_directory_that_has_just_finished_a_run_may_start_the_next(home: Path) -> None:
    os.utime(home / "runs/done/status.json")
    assert look("runs").is_live
    assert not look("runs/done").is_live


@pytest.fixture
def server(home: Path) -> Iterator[DashboardServer]:
    (home / "runs/done/report/figures").mkdir(parents=True, exist_ok=True)
    (home / "runs/done/report/index.html").write_text("the report")
    (home / "runs/done/report/figures/a.svg").write_text("<svg/>")
    with DashboardServer(Dashboard([Path("runs")], report_address), 0, 0.02, 1) as made:
        yield made


def get(server: DashboardServer, path: str, **headers: str) -> tuple[int, str, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer


def test_the_page_and_reports_are_served_and_nothing_else(server: DashboardServer, home: Path) -> None:
    status, text, _ = get(server, "/")
    assert status == 200 and "connect-src 'self'" in text and '"events": "/events"' in text
    (address,) = set(re.findall(r'href="(/report/[^"]*)"', text))
    assert get(server, address)[1] == "the report"
    assert get(server, address.replace("index.html", "figures/a.svg"))[2].headers["Content-Type"] == "image/svg+xml"
    for path in ("/other", address.replace("index.html", "../recipe.yaml"), "/report/etc/hostname", "/report"):
        assert get(server, path)[0] == 404, path
    (home / "runs/done/report/link").symlink_to("/etc/hostname")
    assert get(server, address.replace("index.html", "link"))[0] == 404
    assert get(server, "/", Host="evil.example")[0] == 403, "a page of another site, whose name leads here"


def test_changes_are_sent_as_events_until_the_server_ends(server: DashboardServer, home: Path) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    assert answer.headers["Content-Type"] == "text/event-stream"

    def event() -> dict[str, Any]:
        line = answer.readline()
        assert answer.readline() == b"\n"
        return json.loads(line.removeprefix(b"data: "))

    first = event()
    assert {"layout", "html:overview", "html:predictions", f"run:{home.resolve()}/runs/cut"} <= first.keys()
    with (home / "runs/faster/metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(reported.row(26)) + "\n")
    changed = event()
    assert "html:predictions" not in changed and "26 of 40" in changed["html:overview"]
    reported.start(home / "runs" / "new", 22)
    changed = event()
    while f"run:{home.resolve()}/runs/new" not in changed:
        changed |= event()
    server.ended.set()
    answer.read()
    assert answer.isclosed()


def test_the_command_serves_until_it_is_interrupted(home: Path) -> None:
    words = [sys.executable, "-m", "resnet_cifar", "dashboard", "--local", "runs/done"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        port = int(re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+) .*\n", process.stdout.readline())[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/events")
        assert connection.getresponse().readline().startswith(b"data: {")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout.read() == "ended\n" and process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("", "--local or a W&B project is missing: name runs, resnet-cifar dashboard --local"),
        ("--local runs/done --report runs/done", "--report is a report of W&B and needs its project"),
        ("--local nowhere", "--local nowhere is not a directory: name a run directory"),
        ("--local runs/done --out a.html --port 1", "--out writes a file and --port 1 serves the page: remove one"),
        ("--local runs/done --port many", "--port cannot be 'many': it should be a number up to 65535"),
        ("--local runs/done --out runs/done/recipe.yaml", "exists and is not a page of this command: name another"),
        ("--local empty", "no run is at or below empty: name a run directory"),
        (
            "--local runs/done --out missing/a.html",
            "--out missing/a.html cannot be written (No such file or directory)",
        ),
        ("--local runs/done --port BOUND", "cannot be used (Address already in use): choose another, or leave it out"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(home: Path, arguments: str, sentence: str) -> None:
    (home / "empty").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as bound, pytest.raises(UserError, match=re.escape(sentence)):
        command.main(arguments.replace("BOUND", str(bound.getsockname()[1])).split())
