"""run_folder.py: whose folder it is, what lies in it, and files that are whole or not there."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_cifar.atomic_io import read_json, write_json
from resnet_cifar.checkpoints.run_dir import RunDir, _end_of_rows, default_run_path
from resnet_cifar.config.diff import fingerprint
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, write_recipe
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


def test_a_claim_writes_recipe_environment_and_owner(folder: RunDir) -> None:
    folder.acquire(recipe_of(seed=5), {"python": "3"})
    assert read_recipe(str(folder.path / "recipe.yaml")) == recipe_of(seed=5)
    assert json.loads((folder.path / "environment.json").read_text()) == {"python": "3"}
    owner = json.loads((folder.path / "lease.json").read_text())
    assert (owner["attempt"], owner["pid"]) == (1, os.getpid())
    assert names(folder.path) == {"recipe.yaml", "environment.json", "lease.json"}


def two_starts(folder: RunDir) -> tuple[RunDir, RunDir]:
    """An earlier start that appends rows, and a later one that has claimed the folder."""
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
def test_a_later_start_takes_over_and_the_earlier_one_stops(use: str, folder: RunDir) -> None:
    earlier, later = two_starts(folder)
    before = {file.name: file.read_bytes() for file in folder.path.iterdir()}
    expected = f"taken over by start 2 (pid {os.getpid()} on {socket.gethostname()}); this is start 1: stopping"
    with pytest.raises(UserError, match=re.escape(expected)):
        USES[use](earlier)
    assert {file.name: file.read_bytes() for file in folder.path.iterdir()} == before
    later.resume_metrics(2)
    USES[use](later)


def test_of_two_starts_at_the_same_moment_the_later_to_write_has_the_folder(
    folder: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both read that there was no start, so both are start 1."""
    rival, write = RunDir(folder.path), write_json
    with monkeypatch.context() as patched:

        def write_after_the_rival(file: Path, values: dict[str, Any]) -> None:
            patched.setattr(run_folder, "write_json", write)
            rival.acquire(recipe_of(), {})
            write(file, values)

        patched.setattr(run_folder, "write_json", write_after_the_rival)
        folder.acquire(recipe_of(), {})
    assert read_json(folder.path / "lease.json")["attempt"] == 1
    folder.check_lease()
    with pytest.raises(UserError, match="taken over by start 1"):
        rival.check_lease()


def test_a_start_that_claims_while_another_does_is_not_disturbed_by_it(
    folder: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rival claims when the first has half written its recipe; the rival, the later one, must come through."""
    rival, write = RunDir(folder.path), write_recipe
    with monkeypatch.context() as patched:

        def write_before_the_rival(recipe: Recipe, path: Path) -> None:
            write(recipe, path)
            patched.setattr(cli, "write_recipe", write)
            rival.acquire(recipe_of(), {})

        patched.setattr(cli, "write_recipe", write_before_the_rival)
        folder.acquire(recipe_of(), {})
    rival.check_lease()
    with pytest.raises(UserError, match="taken over by start 2"):
        folder.check_lease()
    assert read_recipe(str(folder.path / "recipe.yaml")) == recipe_of()


def test_a_folder_that_is_gone_is_not_owned(folder: RunDir) -> None:
    folder.acquire(recipe_of(), {})
    folder.move_aside()
    with pytest.raises(UserError):
        folder.check_lease()


def test_a_folder_that_cannot_be_written_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--run .*file/run cannot be written"):
        RunDir(tmp_path / "file" / "run").acquire(recipe_of(), {})


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_disk_that_refuses_is_a_mistake_that_says_why(
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


def test_a_full_disk_is_a_mistake_and_owner_and_recipe_are_whole_or_absent(
    mounted: Callable[[str], Path],
) -> None:
    disk = mounted("size=8k")
    (disk / "filler").write_bytes(bytes(8192))
    folder = RunDir(disk / "run")
    with pytest.raises(UserError, match="No space left on device"):
        folder.acquire(recipe_of(), {})
    assert not [name for name in names(disk / "run") if ".writing" not in name]
    (disk / "filler").write_bytes(bytes(4096))  # room for the owner alone
    with pytest.raises(UserError, match="No space left on device"):
        folder.acquire(recipe_of(), {})
    assert "recipe.yaml" not in names(disk / "run")
    assert read_json(disk / "run" / "lease.json")["attempt"] == 1


def test_a_folder_that_is_read_only_is_a_mistake(mounted: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="Read-only file system"):
        RunDir(mounted("ro") / "run").acquire(recipe_of(), {})


def test_a_folder_that_is_read_only_is_told_without_writing(mounted: Callable[[str], Path], tmp_path: Path) -> None:
    disk = mounted("ro")
    for path in (disk, disk / "run", disk / "runs" / "run"):
        with pytest.raises(UserError, match=rf"--run {path} cannot be written \({disk} is read-only\)"):
            RunDir(path).check_writable()
    RunDir(tmp_path / "runs" / "run").check_writable()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["", "garbage", '{"half": ', "[1]", "null"])
def test_a_file_that_is_not_what_was_written_is_a_mistake_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(UserError, match=r"status\.json is damaged.*remove it"):
        read_json(tmp_path / "status.json")


def test_check_accepts_what_is_not_there_empty_or_the_same(folder: RunDir) -> None:
    folder.check(recipe_of())
    folder.path.mkdir(parents=True)
    folder.check(recipe_of())
    folder.acquire(recipe_of(), {})
    folder.check(recipe_of())
    folder.check(recipe_of(track={"to": "none"}, checkpoint={"keep": 4}))


def test_check_names_what_differs(folder: RunDir) -> None:
    folder.acquire(recipe_of(seed=5), {})
    with pytest.raises(UserError) as caught:
        folder.check(recipe_of(seed=6, data={"limit": 50}))
    assert "belongs to another recipe" in str(caught.value)
    assert "seed: 6, not 5" in str(caught.value)
    assert "data.limit: 50, not 0" in str(caught.value)


def test_check_refuses_a_file_and_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("")
    with pytest.raises(UserError, match="holds files that are no run"):
        RunDir(tmp_path / "notes").check(recipe_of())
    with pytest.raises(UserError, match="is a file"):
        RunDir(tmp_path / "notes" / "a.txt").check(recipe_of())


def test_starting_over_loses_nothing(folder: RunDir) -> None:
    assert folder.move_aside() is None
    for number in (1, 2):
        folder.acquire(recipe_of(seed=number), {})
        aside = folder.move_aside()
        assert aside == folder.path.with_name(f"a.before-{number}")
        assert read_recipe(str(aside / "recipe.yaml")).seed == number
        assert not folder.path.exists()


def test_the_status_says_what_and_when_and_leaves_no_half_file(folder: RunDir) -> None:
    folder.acquire(recipe_of(), {})
    folder.status("running", step=3)
    folder.status("finished", step=9)
    status = json.loads((folder.path / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 9)
    assert not [name for name in names(folder.path) if ".writing" in name]


def test_every_start_is_kept_with_where_it_went_on_and_how_it_ended(folder: RunDir) -> None:
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


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "status.json"
    file.write_text('{"old": 1}')

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(file, {"new": 1})
    assert read_json(file) == {"old": 1}
    monkeypatch.undo()
    write_json(file, {"new": 1})  # what was left aside is in nobody's way
    assert read_json(file) == {"new": 1}


def test_a_write_that_fails_leaves_nothing_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "a.json", {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(tmp_path / "a.json", {"a": 2})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert names(tmp_path) == {"a.json"}


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_result_is_there_or_not(folder: RunDir) -> None:
    assert folder.result() is None
    folder.acquire(recipe_of(), {})
    assert folder.result() is None
    write_json(folder.path / "result.json", {"test/accuracy": 0.5})
    assert folder.result() == {"test/accuracy": 0.5}


def test_a_status_that_a_kill_left_behind_is_put_right_and_a_right_one_is_left(folder: RunDir) -> None:
    folder.acquire(recipe_of(), {})
    folder.status("running", step=3)
    folder.mark_finished({"steps": 9})
    status = read_json(folder.path / "status.json")
    assert (status["state"], status["step"], status["steps"]) == ("finished", 9, 9)
    folder.mark_finished({"steps": 10})
    assert read_json(folder.path / "status.json") == status


# A run that is extended


def phases_of(*epochs: float, **values: object) -> Recipe:
    return recipe_of(phases=[{"epochs": one, "lr": 0.1} for one in epochs], **values)


def finish(folder: RunDir, recipe: Recipe, **facts: object) -> None:
    folder.acquire(recipe, {})
    write_json(folder.path / "result.json", {"steps": 20, "stopped_early": False, **facts})


def test_a_run_may_get_more_phases_only_where_it_is_extended(folder: RunDir) -> None:
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


def test_the_same_extension_finds_its_run_again_and_another_is_refused(folder: RunDir) -> None:
    finish(folder, phases_of(1))
    folder.acquire(phases_of(1, 2), {})
    folder.check(phases_of(1, 2), extends=True)
    with pytest.raises(UserError, match=r"phases\.1\.epochs: 3\.0, not 2\.0"):
        folder.check(phases_of(1, 3), extends=True)


def test_without_its_extension_an_extended_run_asks_for_it(folder: RunDir) -> None:
    folder.acquire(phases_of(1, 2), {})
    with pytest.raises(UserError, match="give the same --extend-epochs again"):
        folder.check(phases_of(1))
    with pytest.raises(UserError, match="name another folder, or start over with --restart"):
        folder.check(phases_of(1, seed=3))


def test_a_run_that_stopped_early_is_not_extended(folder: RunDir) -> None:
    finish(folder, phases_of(1), stopped_early=True)
    with pytest.raises(UserError, match=r"--extend-epochs: the run in .* stopped early"):
        folder.check(phases_of(1, 2), extends=True)
    folder.check(phases_of(1), extends=True)
    folder.check(phases_of(1))


def test_an_extension_that_stopped_early_is_found_again(folder: RunDir) -> None:
    finish(folder, phases_of(1, 2), stopped_early=True)
    folder.check(phases_of(1, 2), extends=True)
    assert folder.finished(phases_of(1, 2))["stopped_early"]


def test_a_run_is_finished_with_as_many_phases_as_it_was_asked_for(folder: RunDir) -> None:
    assert folder.finished(phases_of(1)) is None
    finish(folder, phases_of(1))
    assert folder.finished(phases_of(1))["steps"] == 20
    assert folder.finished(phases_of(1, 2)) is None


def test_the_result_of_the_run_that_is_extended_is_kept_under_its_step(folder: RunDir) -> None:
    finish(folder, phases_of(1), **{"test/accuracy": 0.5})
    folder.acquire(phases_of(1, 2), {})
    assert folder.result() is None
    assert folder.finished(phases_of(1, 2)) is None
    kept = read_json(folder.path / "result-step-20.json")
    assert (kept["steps"], kept["test/accuracy"]) == (20, 0.5)


# Rows


@pytest.fixture
def rows(folder: RunDir) -> RunDir:
    """A folder with rows of steps 2, 4 and 6, of a start before."""
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
def test_rows_after_the_checkpoint_are_cut_and_written_again(step: int, kept: list[int], rows: RunDir) -> None:
    rows.resume_metrics(step)
    assert steps(rows) == kept
    rows.append_metrics({"step": 10})
    assert steps(rows) == [*kept, 10]
    assert not [name for name in names(rows.path) if ".writing" in name]


@pytest.mark.parametrize("content", [None, b"", b'{"step": 1', b'{"step": 1}\n{"st'], ids=str)
def test_a_first_row_follows_whatever_was_there(content: bytes | None, folder: RunDir) -> None:
    folder.acquire(recipe_of(), {})
    if content is not None:
        (folder.path / "metrics.jsonl").write_bytes(content)
    folder.resume_metrics(0)
    folder.append_metrics({"step": 2})
    assert steps(folder) == [2]


def test_a_row_that_a_killed_run_left_half_written_is_cut(rows: RunDir) -> None:
    with (rows.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 8, "train/lo')
    rows.resume_metrics(9)
    assert steps(rows) == [2, 4, 6]


def test_a_row_is_in_the_file_when_append_returns(rows: RunDir) -> None:
    rows.resume_metrics(6)
    for step in (8, 10):
        rows.append_metrics({"step": step})
        assert steps(rows)[-1] == step


def test_rows_of_an_earlier_owner_never_show_after_a_later_one_took_up(folder: RunDir) -> None:
    """Even a row that passed its check just before: it goes to a file that has no name any more."""
    earlier, later = two_starts(folder)
    later.resume_metrics(2)
    earlier._rows.write(b'{"step": 3}\n')
    earlier._rows.flush()
    later.append_metrics({"step": 4})
    earlier._rows.write(b'{"step": 5}\n')
    earlier._rows.close()
    assert steps(later) == [2, 4]


def naive(content: bytes, step: int) -> bytes:
    """Every whole row before the first that comes after the last one up to `step`, by reading all of them."""
    lines = content.split(b"\n")[:-1]
    kept = [place for place, line in enumerate(lines) if json.loads(line)["step"] <= step]
    return b"".join(line + b"\n" for line in lines[: kept[-1] + 1 if kept else 0])


def test_what_is_kept_is_what_reading_every_row_would_keep(folder: RunDir) -> None:
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
        folder._rows.close()
        assert file.read_bytes() == naive(content + torn, step)

    check()


def test_a_row_that_a_power_cut_garbled_after_the_checkpoint_is_cut(rows: RunDir) -> None:
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

    monkeypatch.setattr(run_folder.json, "loads", look)
    folder.resume_metrics(9_997)
    monkeypatch.undo()
    assert steps(folder)[-1] == 9_997
    assert [loads(text)["step"] for text in looked_at if isinstance(text, bytes)] == [10_000, 9_999, 9_998, 9_997]


# Mounted drives


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_drive_that_cannot_flush_folders_can_hold_a_run(
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
def test_other_trouble_with_flushing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_folder: bool
) -> None:
    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == is_folder:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_json(tmp_path / "a.json", {})


def test_rows_are_cut_where_a_drive_does_not_map_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    mapped = _end_of_rows(file, 2)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert _end_of_rows(file, 2) == mapped == len('{"step": 1}\n{"step": 2}\n')
