"""checkpoints/{run_dir,lease,metrics_log}.py and atomic_io.py: who may write, and files that are complete or absent."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_cifar import atomic_io, notebook
from resnet_cifar.atomic_io import read_json, write_json
from resnet_cifar.checkpoints import lease, metrics_log
from resnet_cifar.checkpoints.metrics_log import end_of_rows
from resnet_cifar.checkpoints.run_dir import RunDir, default_run_path, with_a_name
from resnet_cifar.config.diff import fingerprint
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import parse

some = settings(deadline=None, derandomize=True, max_examples=100)


def recipe_of(**values: object) -> Recipe:
    return parse({"phases": [{"epochs": 1, "lr": 0.1}], **values})


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "runs" / "a")


def names(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


def test_the_default_path_is_the_recipes_name_and_fingerprint() -> None:
    recipe = recipe_of(seed=5)
    assert default_run_path("debug", recipe) == Path(f"runs/debug-{fingerprint(recipe)}")
    assert default_run_path("some/where/mine.yaml", recipe) == Path(f"runs/mine-{fingerprint(recipe)}")


def test_a_run_in_the_current_folder_can_be_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here := tmp_path / "mine" / "deep").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert [with_a_name(Path(name)) for name in (".", "..", "runs/a")] == [here, here.parent, Path("runs/a")]
    assert RunDir(with_a_name(Path())).move_aside() == here.with_name("deep.before-1")


def test_acquiring_writes_recipe_environment_and_lease(folder: RunDir) -> None:
    folder.acquire(recipe_of(seed=5), {"python": "3"})
    assert read_recipe(str(folder.path / "recipe.yaml")) == recipe_of(seed=5)
    assert json.loads((folder.path / "environment.json").read_text()) == {"python": "3"}
    owner = json.loads((folder.path / "lease.json").read_text())
    assert (owner["attempt"], owner["pid"]) == (1, os.getpid())
    assert names(folder.path) == {"recipe.yaml", "environment.json", "lease.json"}


def two_attempts(folder: RunDir) -> tuple[RunDir, RunDir]:
    """An earlier attempt that appends rows, and a later one that has acquired the lease."""
    folder.acquire(recipe_of(), {})
    folder.resume_metrics(0)
    folder.append_metrics({"step": 2})
    later = RunDir(folder.path)
    later.acquire(recipe_of(), {})
    return folder, later


USES: dict[str, Callable[[RunDir], object]] = {
    "check_lease": lambda folder: folder.check_lease(),
    "append_metrics": lambda folder: folder.append_metrics({"step": 4}),
    "status": lambda folder: folder.status("failed"),
    "sync": lambda folder: folder.sync(),
    "resume_metrics": lambda folder: folder.resume_metrics(2),
}


@pytest.mark.parametrize("use", USES)
def test_a_later_attempt_takes_over_and_the_earlier_one_stops(use: str, folder: RunDir) -> None:
    earlier, later = two_attempts(folder)
    before = {file.name: file.read_bytes() for file in folder.path.iterdir()}
    expected = f"taken over by attempt 2 (pid {os.getpid()} on {socket.gethostname()}); this is attempt 1: stopping"
    with pytest.raises(UserError, match=re.escape(expected)):
        USES[use](earlier)
    assert {file.name: file.read_bytes() for file in folder.path.iterdir()} == before
    later.resume_metrics(2)
    USES[use](later)


def test_if_two_attempts_acquire_at_once_the_last_to_write_holds_the_lease(
    folder: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both read that there was no attempt, so both are attempt 1."""
    rival, write = RunDir(folder.path), write_json
    with monkeypatch.context() as patched:

        def write_after_the_rival(file: Path, values: dict[str, Any]) -> None:
            patched.setattr(lease, "write_json", write)
            rival.acquire(recipe_of(), {})
            write(file, values)

        patched.setattr(lease, "write_json", write_after_the_rival)
        folder.acquire(recipe_of(), {})
    assert read_json(folder.path / "lease.json")["attempt"] == 1
    folder.check_lease()
    with pytest.raises(UserError, match="taken over by attempt 1"):
        rival.check_lease()


def test_an_attempt_that_acquires_while_another_does_is_not_disturbed(
    folder: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rival acquires when the first has half written its recipe; the rival, the later one, must succeed."""
    rival, fsync = RunDir(folder.path), atomic_io.fsync_path
    with monkeypatch.context() as patched:

        def fsync_before_the_rival(path: Path) -> None:
            fsync(path)
            if path.name.startswith("recipe.yaml.writing"):
                patched.setattr(atomic_io, "fsync_path", fsync)
                rival.acquire(recipe_of(), {})

        patched.setattr(atomic_io, "fsync_path", fsync_before_the_rival)
        folder.acquire(recipe_of(), {})
    rival.check_lease()
    with pytest.raises(UserError, match="taken over by attempt 2"):
        folder.check_lease()
    assert read_recipe(str(folder.path / "recipe.yaml")) == recipe_of()


def test_a_missing_directory_fails_the_lease_check(folder: RunDir) -> None:
    folder.acquire(recipe_of(), {})
    folder.move_aside()
    with pytest.raises(UserError):
        folder.check_lease()


def test_a_directory_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--run .*file/run cannot be written"):
        RunDir(tmp_path / "file" / "run").acquire(recipe_of(), {})


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_failing_disk_is_a_user_error_with_the_reason(
    number: int, folder: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for owner, name in ((os, "fsync"), (Path, "mkdir"), (Path, "replace")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, refuse)
            with pytest.raises(UserError, match=rf"--run .*/a cannot be written \({os.strerror(number)}\)"):
                RunDir(folder.path).acquire(recipe_of(), {})
    folder.acquire(recipe_of(), {})
    folder.check_lease()


def test_a_full_disk_is_a_user_error_and_files_are_complete_or_absent(
    mounted: Callable[[str], Path],
) -> None:
    disk = mounted("size=8k")
    (disk / "filler").write_bytes(bytes(8192))
    folder = RunDir(disk / "run")
    with pytest.raises(UserError, match="No space left on device"):
        folder.acquire(recipe_of(), {})
    assert not [name for name in names(disk / "run") if ".writing" not in name]
    (disk / "filler").write_bytes(bytes(4096))  # room for the lease alone
    with pytest.raises(UserError, match="No space left on device"):
        folder.acquire(recipe_of(), {})
    assert "recipe.yaml" not in names(disk / "run")
    assert read_json(disk / "run" / "lease.json")["attempt"] == 1


def test_a_read_only_directory_is_a_user_error(mounted: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="Read-only file system"):
        RunDir(mounted("ro") / "run").acquire(recipe_of(), {})


def test_a_read_only_directory_is_detected_without_writing(mounted: Callable[[str], Path], tmp_path: Path) -> None:
    disk = mounted("ro")
    for path in (disk, disk / "run", disk / "runs" / "run"):
        with pytest.raises(UserError, match=rf"--run {path} cannot be written \({disk} is read-only\)"):
            RunDir(path).check_writable()
    RunDir(tmp_path / "runs" / "run").check_writable()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["", "garbage", '{"half": ', "[1]", "null"])
def test_a_damaged_json_file_is_a_user_error_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(UserError, match=r"status\.json is damaged.*remove it"):
        read_json(tmp_path / "status.json")


def test_check_accepts_an_absent_or_empty_directory_and_the_same_recipe(folder: RunDir) -> None:
    folder.check(recipe_of())
    folder.path.mkdir(parents=True)
    folder.check(recipe_of())
    folder.acquire(recipe_of(), {})
    folder.check(recipe_of())
    folder.check(recipe_of(track={"trackers": "none"}, checkpoint={"keep_last": 4}))


def test_check_names_the_fields_that_differ(folder: RunDir) -> None:
    folder.acquire(recipe_of(seed=5), {})
    with pytest.raises(UserError) as caught:
        folder.check(recipe_of(seed=6, data={"limit": 50}))
    assert "belongs to another recipe" in str(caught.value)
    assert "seed: 6, not 5" in str(caught.value)
    assert "data.limit: 50, not 0" in str(caught.value)


def test_images_may_move_until_the_run_is_finished(folder: RunDir) -> None:
    folder.acquire(recipe_of(data={"source": "/job-1/images"}), {})
    moved = recipe_of(data={"source": "/job-2/images"})
    folder.check(moved)
    write_json(folder.path / "result.json", {})  # of the images there, whatever the others are
    with pytest.raises(UserError, match=r"another recipe \(data.source: /job-2/images, not /job-1/images\)"):
        folder.check(moved)


def test_check_refuses_a_file_and_a_directory_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("")
    with pytest.raises(UserError, match="holds files that are no run"):
        RunDir(tmp_path / "notes").check(recipe_of())
    with pytest.raises(UserError, match="is a file"):
        RunDir(tmp_path / "notes" / "a.txt").check(recipe_of())


def test_starting_over_keeps_the_previous_run(folder: RunDir) -> None:
    assert folder.move_aside() is None
    for number in (1, 2):
        folder.acquire(recipe_of(seed=number), {})
        aside = folder.move_aside()
        assert aside == folder.path.with_name(f"a.before-{number}")
        assert read_recipe(str(aside / "recipe.yaml")).seed == number
        assert not folder.path.exists()


def test_the_latest_status_is_written_and_no_temporary_file_remains(folder: RunDir) -> None:
    folder.acquire(recipe_of(), {})
    folder.status("running", step=3)
    folder.status("finished", step=9)
    status = json.loads((folder.path / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 9)
    assert not [name for name in names(folder.path) if ".writing" in name]


def test_every_attempt_is_recorded_with_its_first_step_and_its_end(folder: RunDir) -> None:
    words = [
        [("running", {"step": 0}), ("running", {"step": 4}), ("interrupted", {"step": 6, "why": "SIGTERM"})],
        [("running", {"step": 6}), ("running", {"step": 8})],  # killed
        [("running", {"step": 8}), ("finished", {"step": 12})],
    ]
    for start in words:
        now = RunDir(folder.path)
        now.acquire(recipe_of(), {})
        for state, facts in start:
            now.status(state, **facts)
    starts = read_json(folder.path / "attempts.json")["attempts"]
    kept = [(each["attempt"], each["from_step"], each["step"], each["state"], each.get("why")) for each in starts]
    assert kept == [(1, 0, 6, "interrupted", "SIGTERM"), (2, 6, 8, "killed", None), (3, 8, 12, "finished", None)]
    assert all(each["began"] <= each["ended"] for each in starts)


@pytest.mark.parametrize("number", [0, 1])
def test_an_attempt_that_was_killed_before_its_first_status_took_no_time(number: int, folder: RunDir) -> None:
    """Number 0 leaves no status.json, number 1 that of the attempt before."""
    for attempt in range(3):
        now = RunDir(folder.path)
        now.acquire(recipe_of(), {})
        status = read_json(file := folder.path / "status.json")
        now.status("running", step=0)
        if attempt == number:
            file.unlink() if status is None else write_json(file, status)
    killed = read_json(folder.path / "attempts.json")["attempts"][number]
    assert (killed["state"], killed["step"], killed["ended"]) == ("killed", 0, killed["began"])


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "status.json"
    file.write_text('{"old": 1}')

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(file, {"new": 1})
    assert read_json(file) == {"old": 1}
    monkeypatch.undo()
    write_json(file, {"new": 1})
    assert read_json(file) == {"new": 1}


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "a.json", {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert names(tmp_path) == {"a.json"}


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_the_result_is_none_until_it_is_written(folder: RunDir) -> None:
    assert folder.result() is None
    folder.acquire(recipe_of(), {})
    assert folder.result() is None
    write_json(folder.path / "result.json", {"test/accuracy": 0.5})
    assert folder.result() == {"test/accuracy": 0.5}


def test_an_outdated_status_of_a_finished_run_is_corrected_once(folder: RunDir) -> None:
    folder.acquire(recipe_of(), {})
    folder.status("running", step=3)
    folder.mark_finished({"steps": 9})
    status = read_json(folder.path / "status.json")
    assert (status["state"], status["step"], status["steps"]) == ("finished", 9, 9)
    folder.mark_finished({"steps": 10})
    assert read_json(folder.path / "status.json") == status


# Runs of earlier versions


@pytest.mark.parametrize("file", ["owner.json", "starts.json"])
def test_a_run_of_an_earlier_version_is_refused(file: str, folder: RunDir) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / file).write_text("{}")
    (folder.path / "recipe.yaml").write_text("model: {norm_batch: 8}\n")
    uses = (
        lambda: folder.check(recipe_of()),
        lambda: folder.finished(recipe_of()),
        lambda: notebook.show(folder.path),
    )
    for use in uses:
        with pytest.raises(UserError, match=r".*/a was written by an earlier version: .* --restart$"):
            use()


def test_a_recipe_of_an_earlier_version_is_refused_with_the_new_field_name(folder: RunDir) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / "recipe.yaml").write_text("model: {norm_batch: 8}\n")
    with pytest.raises(UserError, match=r"--run .* cannot read \(.*it is now called model\.ghost_batch_size\): name"):
        folder.check(recipe_of())


def test_every_command_refuses_a_run_of_an_earlier_version_in_one_sentence(
    run: Callable[..., subprocess.CompletedProcess], tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "owner.json").write_text('{"start": 1}')
    (tmp_path / "old" / "recipe.yaml").write_text("model: {norm_batch: 8}\n")
    commands = (
        ("train.py", "--recipe", "debug", "--run", "old"),
        ("eval.py", "old"),
        ("-m", "resnet_cifar", "report", "old"),
        ("-m", "resnet_cifar", "compare", "old", "old"),
    )
    for command in commands:
        done = run(*command)
        assert done.returncode == 2
        assert done.stderr.startswith("error: old was written by an earlier version: use that version")
        assert done.stderr.count("\n") == 1


# A run that is extended


def phases_of(*epochs: float, **values: object) -> Recipe:
    return recipe_of(phases=[{"epochs": one, "lr": 0.1} for one in epochs], **values)


def finish(folder: RunDir, recipe: Recipe, **facts: object) -> None:
    folder.acquire(recipe, {})
    write_json(folder.path / "result.json", {"steps": 20, "stopped_early": False, **facts})


def test_more_phases_are_accepted_only_with_an_extension(folder: RunDir) -> None:
    finish(folder, phases_of(1))
    folder.check(phases_of(1, 2), extends=True)
    with pytest.raises(UserError, match=r"phases\.1\.epochs: 2\.0, not absent"):
        folder.check(phases_of(1, 2))


def test_an_extension_changes_nothing_else(folder: RunDir) -> None:
    finish(folder, phases_of(1))
    with pytest.raises(UserError, match=r"seed: 3, not 0\): name another folder"):
        folder.check(phases_of(1, 2, seed=3), extends=True)
    with pytest.raises(UserError, match=r"phases\.0\.epochs: 4\.0, not 1\.0"):
        folder.check(phases_of(4, 2), extends=True)


def test_the_same_extension_resumes_its_run_and_another_is_refused(folder: RunDir) -> None:
    finish(folder, phases_of(1))
    folder.acquire(phases_of(1, 2), {})
    folder.check(phases_of(1, 2), extends=True)
    with pytest.raises(UserError, match=r"phases\.1\.epochs: 3\.0, not 2\.0"):
        folder.check(phases_of(1, 3), extends=True)


def test_an_extended_run_asks_for_its_extension(folder: RunDir) -> None:
    folder.acquire(phases_of(1, 2), {})
    with pytest.raises(UserError, match="give the same --extend-epochs again"):
        folder.check(phases_of(1))
    with pytest.raises(UserError, match="name another folder, or start over with --restart"):
        folder.check(phases_of(1, seed=3))


@pytest.mark.parametrize("is_finished", [True, False], ids=["finished", "killed before its result"])
def test_a_run_whose_patience_ran_out_is_not_extended(is_finished: bool, folder: RunDir) -> None:
    stops = {"early_stopping": {"patience": 2}}
    folder.acquire(phases_of(1, **stops), {})
    if is_finished:
        write_json(folder.path / "result.json", {"steps": 20, "stopped_early": False})  # at its last step
    for step, waited in ((10, 1), (20, 2)):
        last = folder.checkpoints / f"step-{step:08d}"
        last.mkdir(parents=True)
        write_json(last / "state.json", {"stopping": {"best": 0.5, "waited": waited}})
    with pytest.raises(UserError, match=r"--extend-epochs: early_stopping\.patience 2 of .* has run out"):
        folder.check(phases_of(1, 2, **stops), extends=True)
    folder.check(phases_of(1, **stops), extends=True)
    folder.check(phases_of(1, **stops))
    (last / "state.json").write_text("garbage")
    folder.check(phases_of(1, 2, **stops), extends=True)


def test_an_extension_that_stopped_early_is_finished(folder: RunDir) -> None:
    finish(folder, phases_of(1, 2), stopped_early=True)
    folder.check(phases_of(1, 2), extends=True)
    assert folder.finished(phases_of(1, 2))["stopped_early"]


def test_a_run_is_finished_only_with_all_phases_of_the_recipe(folder: RunDir) -> None:
    assert folder.finished(phases_of(1)) is None
    finish(folder, phases_of(1))
    assert folder.finished(phases_of(1))["steps"] == 20
    assert folder.finished(phases_of(1, 2)) is None


def test_the_result_before_an_extension_is_kept_under_its_step(folder: RunDir) -> None:
    finish(folder, phases_of(1), **{"test/accuracy": 0.5})
    folder.acquire(phases_of(1, 2), {})
    assert folder.result() is None
    assert folder.finished(phases_of(1, 2)) is None
    kept = read_json(folder.path / "result-step-20.json")
    assert kept == {"steps": 20, "stopped_early": False, "test/accuracy": 0.5, "phases": 1}


def test_the_recipe_in_the_directory_gets_the_phase_once(folder: RunDir) -> None:
    source = str(folder.path / "recipe.yaml")
    finish(folder, phases_of(1))
    assert not folder.is_extending(phases_of(1), source, 2)
    folder.acquire(phases_of(1, 2), {})
    assert folder.is_extending(phases_of(1, 2), source, 2)
    assert not folder.is_extending(phases_of(1), "debug", 2), "another recipe, to which the phase is appended"
    assert not folder.is_extending(phases_of(1), source, 2), "killed before the longer recipe was written"
    finish(folder, phases_of(1, 2), steps=40)
    folder.acquire(phases_of(1, 2, 2), {})
    assert folder.is_extending(phases_of(1, 2, 2), source, 2)


@pytest.mark.parametrize(("phases", "epochs"), [((1, 2), 3), ((1, 2, 2), 2), ((2,), 2)])
def test_the_recipe_of_an_unfinished_run_is_not_extended(
    phases: tuple[float, ...], epochs: float, folder: RunDir
) -> None:
    if len(phases) > 1:
        finish(folder, phases_of(1))
    folder.acquire(phases_of(*phases), {})
    with pytest.raises(UserError, match=rf"--extend-epochs {epochs}: .* is not finished: remove --extend-epochs"):
        folder.is_extending(phases_of(*phases), str(folder.path / "recipe.yaml"), epochs)


# Rows


@pytest.fixture
def rows(folder: RunDir) -> RunDir:
    """A directory with rows of steps 2, 4 and 6, by an earlier attempt."""
    folder.acquire(recipe_of(), {})
    folder.resume_metrics(0)
    for step in (2, 4, 6):
        folder.append_metrics({"step": step, "train/loss": step / 8})
    later = RunDir(folder.path)
    later.acquire(recipe_of(), {})
    return later


def steps(folder: RunDir) -> list[int]:
    return [json.loads(line)["step"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("step", "kept"), [(0, []), (3, [2]), (4, [2, 4]), (9, [2, 4, 6])])
def test_rows_after_the_checkpoint_are_removed_and_written_again(step: int, kept: list[int], rows: RunDir) -> None:
    rows.resume_metrics(step)
    assert steps(rows) == kept
    rows.append_metrics({"step": 10})
    assert steps(rows) == [*kept, 10]
    assert not [name for name in names(rows.path) if ".writing" in name]


@pytest.mark.parametrize("content", [None, b"", b'{"step": 1', b'{"step": 1}\n{"st'], ids=str)
def test_the_first_row_replaces_incomplete_ones(content: bytes | None, folder: RunDir) -> None:
    folder.acquire(recipe_of(), {})
    if content is not None:
        (folder.path / "metrics.jsonl").write_bytes(content)
    folder.resume_metrics(0)
    folder.append_metrics({"step": 2})
    assert steps(folder) == [2]


def test_a_half_written_row_is_removed(rows: RunDir) -> None:
    with (rows.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 8, "train/lo')
    rows.resume_metrics(9)
    assert steps(rows) == [2, 4, 6]


def test_a_row_is_in_the_file_when_append_returns(rows: RunDir) -> None:
    rows.resume_metrics(6)
    for step in (8, 10):
        rows.append_metrics({"step": step})
        assert steps(rows)[-1] == step


def test_rows_of_an_earlier_attempt_do_not_appear_after_a_takeover(folder: RunDir) -> None:
    """Even a row whose check passed just before: it goes to a file that no longer has a name."""
    earlier, later = two_attempts(folder)
    later.resume_metrics(2)
    earlier._metrics.stream.write(b'{"step": 3}\n')
    earlier._metrics.stream.flush()
    later.append_metrics({"step": 4})
    earlier._metrics.stream.write(b'{"step": 5}\n')
    earlier._metrics.stream.close()
    assert steps(later) == [2, 4]


def naive(content: bytes, step: int) -> bytes:
    """Every whole row before the first that comes after the last one up to `step`, by reading all of them."""
    lines = content.split(b"\n")[:-1]
    kept = [place for place, line in enumerate(lines) if json.loads(line)["step"] <= step]
    return b"".join(line + b"\n" for line in lines[: kept[-1] + 1 if kept else 0])


def test_the_kept_rows_equal_those_of_a_full_scan(folder: RunDir) -> None:
    folder.acquire(recipe_of(), {})
    file = folder.path / "metrics.jsonl"

    @some
    @given(
        st.lists(st.tuples(st.integers(1, 4), st.text(max_size=8)), max_size=20),
        st.integers(0, 60),
        st.sampled_from([b"", b"{", b'{"step": 1}', b'{"step": 999, "x"', "é".encode()[:1], bytes(9)]),
    )
    def check(rows: list[tuple[int, str]], step: int, torn: bytes) -> None:
        content, at = b"", 0
        for gap, text in rows:
            at += gap
            content += json.dumps({"step": at, "text": text}, ensure_ascii=False).encode() + b"\n"
        file.write_bytes(content + torn)
        folder.resume_metrics(step)
        folder._metrics.stream.close()
        assert file.read_bytes() == naive(content + torn, step)

    check()


def test_a_row_damaged_by_a_power_cut_is_removed(rows: RunDir) -> None:
    with (rows.path / "metrics.jsonl").open("ab") as stream:
        stream.write(bytes(30) + b'\n{"step": 12}\n')
    rows.resume_metrics(6)
    assert steps(rows) == [2, 4, 6]


def test_rows_are_read_from_the_end(folder: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.acquire(recipe_of(), {})
    lines = "".join(json.dumps({"step": step}) + "\n" for step in range(1, 10_001))
    (folder.path / "metrics.jsonl").write_text(lines)
    looked_at: list[str | bytes] = []
    loads = json.loads

    def look(text: str | bytes) -> Any:
        looked_at.append(text)
        return loads(text)

    monkeypatch.setattr(metrics_log.json, "loads", look)
    folder.resume_metrics(9_997)
    monkeypatch.undo()
    assert steps(folder)[-1] == 9_997
    assert [loads(text)["step"] for text in looked_at if isinstance(text, bytes)] == [10_000, 9_999, 9_998, 9_997]


# Mounted drives


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_drive_that_cannot_flush_directories_can_hold_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync, refused = os.fsync, []

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refused.append(descriptor)
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1} and refused


@pytest.mark.parametrize(("number", "is_folder"), [(errno.EIO, True), (errno.EINVAL, False)])
def test_other_flush_errors_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_folder: bool
) -> None:
    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == is_folder:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_json(tmp_path / "a.json", {})


def test_rows_are_removed_on_a_drive_that_cannot_map_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    mapped = end_of_rows(file, 2)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert end_of_rows(file, 2) == mapped == len('{"step": 1}\n{"step": 2}\n')
