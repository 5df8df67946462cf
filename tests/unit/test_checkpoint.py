"""checkpoints/checkpoint.py: complete or absent, whenever it is killed; after damage the previous one is used."""

from __future__ import annotations

import errno
import gc
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from resnet_cifar.checkpoints import checkpoint
from resnet_cifar.checkpoints.snapshot import Snapshot
from resnet_cifar.config.errors import UserError

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def snapshot_of(number: int) -> Snapshot:
    """A tiny one, of which each `number` has its own."""
    return Snapshot(
        {"fc.weight": torch.full((2, 3), float(number)), "bn.num_batches_tracked": torch.tensor(number)},
        {"state/fc.weight/exp_avg": torch.full((2, 3), number / 2)},
        {"state": {}, "groups": [{"lr": 0.1 * number}], "tensors": ["state/fc.weight/exp_avg"]},
    )


def write(folder: Path, step: int, number: int | None = None) -> Path:
    return checkpoint.write(folder, step, snapshot_of(number or step), {"best": None, "number": number or step})


def number_of(saved: Path) -> int:
    """Which snapshot a checkpoint holds, all of whose parts are the same one's."""
    found, state = checkpoint.read(saved)
    number = state["number"]
    expected = snapshot_of(number)
    for ours, theirs in ((found.weights, expected.weights), (found.optimizer, expected.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert found.scalars == expected.scalars
    assert checkpoint.name(state["step"]) == saved.name
    return number


def no_warning(text: str) -> None:
    raise AssertionError(f"a warning without damage: {text}")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Files


def test_a_checkpoint_is_three_plain_files(tmp_path: Path) -> None:
    saved = write(tmp_path / "checkpoints", 7)
    assert saved == tmp_path / "checkpoints" / "step-00000007"
    assert names(saved) == set(FILES)
    assert names(saved.parent) == {saved.name}
    state = json.loads((saved / "state.json").read_text())
    assert (state["format"], state["step"], state["number"]) == (checkpoint.FORMAT, 7, 7)
    assert {**checkpoint.read_state(saved), "checksum": state["checksum"]} == state
    assert number_of(saved) == 7


def test_every_type_and_shape_of_tensor_and_number_comes_back_to_the_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    types = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8)
    tensors = {
        f"{kind}{shape}": (100 * torch.rand(shape, generator=generator)).to(kind)
        for kind in types
        for shape in ((), (0,), (3,), (2, 1, 3))
    }
    tensors["flags"] = torch.tensor([True, False])
    tensors["odd"] = torch.tensor([float("nan"), float("inf"), -0.0, 5e-324], dtype=torch.float64)
    numbers = {"small": 5e-324, "third": 1 / 3, "large": 2**80, "none": None, "list": [1, [2.5, True]], "text": "é"}
    saved = checkpoint.write(tmp_path, 1, Snapshot(tensors, tensors, numbers), {"scaler": numbers})
    found, state = checkpoint.read(saved)
    for part in (found.weights, found.optimizer):
        assert part.keys() == tensors.keys()
        for name, tensor in part.items():
            assert (tensor.dtype, tensor.shape) == (tensors[name].dtype, tensors[name].shape)
            assert torch.equal(tensor.flatten().view(torch.uint8), tensors[name].flatten().view(torch.uint8)), name
    assert found.scalars == state["scaler"] == numbers


def test_steps_are_those_of_whole_checkpoints(tmp_path: Path) -> None:
    assert checkpoint.steps(tmp_path / "nowhere") == []
    for name in (
        *("step-00000010", "step-00000002", "step-123456789", "step-00000004.writing", "step-00000005.replaced"),
        *("step-00000006.damaged", "step-5", "notes"),
    ):
        (tmp_path / name).mkdir()
    assert checkpoint.steps(tmp_path) == [2, 10, 123456789]


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (1, None, [5]),
        (2, None, [4, 5]),
        (1, 2, [2, 5]),
        (2, 5, [4, 5]),
        (3, 1, [1, 3, 4, 5]),
        (9, 1, [1, 2, 3, 4, 5]),
    ],
)
def test_the_newest_and_the_best_are_kept(keep: int, best: int | None, left: list[int], tmp_path: Path) -> None:
    for step in range(1, 6):
        (tmp_path / checkpoint.name(step)).mkdir()
    checkpoint.prune(tmp_path, keep, best)
    assert checkpoint.steps(tmp_path) == left


def test_what_was_the_best_of_one_that_is_kept_is_kept_too(tmp_path: Path) -> None:
    """Where the newest is damaged, the one before needs it."""
    for step, best in ((1, None), (2, {"step": 2}), (3, {"step": 2}), (4, {"step": 4}), (5, {"step": 4})):
        checkpoint.write(tmp_path, step, snapshot_of(step), {"best": best})
    checkpoint.prune(tmp_path, 3, 4)
    assert checkpoint.steps(tmp_path) == [2, 3, 4, 5]
    checkpoint.prune(tmp_path, 2, 4)
    assert checkpoint.steps(tmp_path) == [4, 5]


def test_what_a_killed_run_left_half_written_does_no_harm(tmp_path: Path) -> None:
    aside = tmp_path / "step-00000003.writing-1234"
    aside.mkdir(parents=True)
    (aside / "model.safetensors").write_bytes(b"half")
    (aside / "other").write_bytes(b"")
    assert checkpoint.steps(tmp_path) == []
    assert number_of(write(tmp_path, 3)) == 3
    checkpoint.recover(tmp_path)
    assert names(tmp_path) == {"step-00000003"}


def test_a_write_that_fails_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.write(tmp_path, 3, snapshot_of(3), {"best": object()})
    assert checkpoint.steps(tmp_path) == []


def test_the_same_step_is_written_again(tmp_path: Path) -> None:
    """An interrupt in an evaluation saved it without its score."""
    write(tmp_path, 7, 1)
    assert number_of(write(tmp_path, 7, 2)) == 2
    assert names(tmp_path) == {"step-00000007"}


def test_the_first_start_finds_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nowhere", no_warning) is None
    assert checkpoint.newest(tmp_path, no_warning) is None


def test_the_newest_is_found(tmp_path: Path) -> None:
    for step in (4, 99_999_999, 8, 123_456_789):
        write(tmp_path, step)
    assert checkpoint.newest(tmp_path, no_warning) == tmp_path / "step-123456789"


# Killed


class _Watched:
    """A stream whose writes are file operations, one of them half done."""

    def __init__(self, stream: Any, killer: Killer) -> None:
        self._stream, self._killer = stream, killer

    def write(self, content: bytes) -> int:
        self._killer.dirty[os.fstat(self._stream.fileno()).st_ino] = os.dup(self._stream.fileno())
        self._killer.point()
        self._stream.write(content[: len(content) // 2])
        self._stream.flush()
        self._killer.point()
        self._stream.write(content[len(content) // 2 :])
        return len(content)

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Killer:
    """In a forked child: SIGKILL at the n-th file operation. With `power_cut` what was not flushed is lost as well."""

    EVENTS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"})

    def __init__(self, at: int, power_cut: bool) -> None:
        self.at, self.power_cut, self.count, self.armed = at, power_cut, 0, False
        self.dirty: dict[int, int] = {}  # inode -> a descriptor of what was written and not flushed

    def arm(self) -> None:
        real_open, real_fsync = io.open, os.fsync

        def opened(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            stream = real_open(file, mode, *rest, **options)
            return _Watched(stream, self) if "w" in mode else stream

        def fsync(descriptor: int) -> None:
            self.point()
            real_fsync(descriptor)
            self.dirty.pop(os.fstat(descriptor).st_ino, None)

        io.open, os.fsync = opened, fsync
        self.armed = True
        sys.addaudithook(lambda event, _: self.point() if event in self.EVENTS else None)

    def point(self) -> None:
        if not self.armed:
            return
        self.count += 1
        if self.count > self.at:
            self.armed = False
            if self.power_cut:
                for descriptor in self.dirty.values():
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 3)
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at(operation: int, power_cut: bool, action: Callable[[], None]) -> bool:
    """Runs `action` in a forked child that is killed before its n-th file operation; whether it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Killer(operation, power_cut).arm()
            action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.waitstatus_to_exitcode(status) == 0, "the child failed otherwise"
    return True


def prepare(folder: Path, *checkpoints: tuple[int, int]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for step, number in checkpoints:
        write(folder, step, number)


def write_and_prune(folder: Path, keep: int) -> None:
    write(folder, 8, 80)
    checkpoint.prune(folder, keep, best=None)


SITUATIONS: dict[str, tuple[tuple[tuple[int, int], ...], int, int]] = {
    # name: checkpoints before (step, number), `keep`, file operations at least (15 of them write and flush three files)
    "the first one": ((), 1, 22),
    "a new step, and the one before goes": (((4, 40),), 1, 27),
    "a new step, and the one before stays": (((4, 40),), 2, 22),
    "the same step again, alone": (((8, 79),), 1, 27),
    "the same step again, and the one before goes": (((4, 40), (8, 79)), 1, 32),
}


@pytest.mark.parametrize(
    ("situation", "power_cut"),
    [*((name, False) for name in SITUATIONS), *((name, True) for name in list(SITUATIONS)[::4])],
)
def test_a_kill_at_any_file_operation_leaves_a_whole_checkpoint(
    situation: str, power_cut: bool, tmp_path: Path
) -> None:
    before, keep, least = SITUATIONS[situation]
    folder, seen = tmp_path / "checkpoints", []
    for operation in range(500):
        prepare(folder, *before)
        ended = kill_at(operation, power_cut, lambda: write_and_prune(folder, keep))
        found = checkpoint.newest(folder, no_warning)
        assert found is not None or not before
        seen.append(number_of(found) if found else None)
        assert not [name for name in names(folder) if "." in name], f"left over after operation {operation}"
        assert {checkpoint.name(step) for step, _ in before[: 1 if keep > 1 else 0]} <= names(folder)
        if ended:
            break
    assert ended
    assert operation >= least
    old, new = seen[0], seen[-1]
    assert (old, new) == (before[-1][1] if before else None, 80)
    switch = seen.index(new)
    assert seen == [old] * switch + [new] * (len(seen) - switch), "it is the old one up to one moment, then the new one"


def leftovers(folder: Path, final_is_there: bool) -> None:
    """What a kill while step 8 was written again may leave."""
    prepare(folder, (4, 40), (8, 79))
    shutil.copytree(folder / "step-00000004", folder / "step-00000008.writing-1234")
    shutil.copytree(folder / "step-00000008", folder / "step-00000008.replaced")
    if final_is_there:
        (folder / "step-00000008.replaced" / "state.json").unlink()
    else:
        shutil.rmtree(folder / "step-00000008")


@pytest.mark.parametrize("final_is_there", [False, True])
def test_a_kill_while_tidying_up_after_a_kill_does_no_harm(final_is_there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for operation in range(100):
        leftovers(folder, final_is_there)
        ended = kill_at(operation, True, lambda: checkpoint.recover(folder))
        found = checkpoint.newest(folder, no_warning)
        assert found is not None
        assert number_of(found) == 79
        assert names(folder) == {"step-00000004", "step-00000008"}
        if ended:
            break
    assert ended
    assert operation >= 6


def test_the_power_cut_of_these_tests_would_notice_a_missing_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "fsync_path", lambda path: None)
    outcomes = set()
    for operation in range(100):
        prepare(tmp_path / "c")
        if kill_at(operation, True, lambda: write_and_prune(tmp_path / "c", 1)):
            break
        for step in checkpoint.steps(tmp_path / "c"):
            try:
                outcomes.add(number_of(tmp_path / "c" / checkpoint.name(step)))
            except UserError:
                outcomes.add("damaged")
    assert "damaged" in outcomes


# Damage


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def damages() -> Iterator[tuple[str, Callable[[Path], None]]]:
    yield "missing", lambda file: file.unlink()
    yield "empty", lambda file: file.write_bytes(b"")
    yield "zeros", lambda file: file.write_bytes(bytes(file.stat().st_size))
    yield "a folder", lambda file: (file.unlink(), file.mkdir())
    yield "longer", lambda file: file.write_bytes(file.read_bytes() + b"x")
    for share in (1 / 3, 0.9):
        yield f"cut at {share:.0%}", lambda file, share=share: os.truncate(file, int(file.stat().st_size * share))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with whole checkpoints of steps 4 and 8."""
    prepare(tmp_path / "checkpoints", (4, 4), (8, 8))
    return tmp_path / "checkpoints"


def falls_back(folder: Path) -> str:
    """What `newest` says where step 8 is damaged and step 4 is not."""
    said: list[str] = []
    found = checkpoint.newest(folder, said.append)
    assert found == folder / "step-00000004"
    assert number_of(found) == 4
    assert names(folder) == {"step-00000004", "step-00000008.damaged"}
    assert len(said) == 1
    assert "\n" not in said[0]
    assert str(folder / "step-00000008") in said[0]
    assert said[0].endswith("; it is now step-00000008.damaged")
    assert checkpoint.newest(folder, no_warning) == found, "the next start is not told again"
    return said[0]


@pytest.mark.parametrize("damage", [pytest.param(do, id=name) for name, do in damages()])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_one_is_named_and_put_aside_and_the_one_before_is_used(
    file: str, damage: Callable[[Path], None], two: Path
) -> None:
    damage(two / "step-00000008" / file)
    falls_back(two)


@pytest.mark.parametrize("file", FILES)
def test_any_flipped_bit_is_noticed(file: str, two: Path) -> None:
    saved = two / "step-00000008"
    whole = (saved / file).read_bytes()
    random = np.random.default_rng(FILES.index(file))
    for place, bit in zip(random.integers(len(whole), size=150), random.integers(8, size=150), strict=True):
        (saved / file).write_bytes(flipped(whole, int(place), int(bit)))
        with pytest.raises(UserError, match="step-00000008"):
            checkpoint.read_state(saved)
        with pytest.raises(UserError, match="step-00000008"):
            checkpoint.read(saved)
    falls_back(two)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"', "{}", '{"checksums": {}}', '{"checksums": []}', "\xff"])
def test_a_state_file_of_another_shape_is_damage(text: str, two: Path) -> None:
    (two / "step-00000008" / "state.json").write_bytes(text.encode("latin-1"))
    falls_back(two)


def test_where_none_is_whole_all_are_named(two: Path) -> None:
    for step in (4, 8):
        (two / checkpoint.name(step) / "model.safetensors").write_bytes(b"")
    said: list[str] = []
    for start in range(2):  # a second start must not train from step 0 over what is left
        with pytest.raises(UserError) as caught:
            checkpoint.newest(two, said.append)
        assert len(said) == 2, start
        assert "step-00000004.damaged, step-00000008.damaged" in str(caught.value)
        assert "--restart" in str(caught.value)
    assert names(two) == {"step-00000004.damaged", "step-00000008.damaged"}


def test_a_copy_that_was_brought_back_is_used_and_may_be_damaged_again(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "step-00000008", tmp_path / "copy")
    for _ in range(2):
        (two / "step-00000008" / "state.json").write_bytes(b"")
        falls_back(two)
        shutil.copytree(tmp_path / "copy", two / "step-00000008")
        assert checkpoint.newest(two, no_warning) == two / "step-00000008"


def test_an_older_one_that_is_damaged_is_not_looked_at(two: Path) -> None:
    (two / "step-00000004" / "state.json").write_bytes(b"")
    assert checkpoint.newest(two, no_warning) == two / "step-00000008"


# Forged: every checksum fits


def forge(saved: Path, **changes: Any) -> None:
    """Makes the checksums those of the files as they are, and state.json's its own."""
    state = {**json.loads((saved / "state.json").read_text()), **changes}
    state.pop("checksum")
    state["checksums"] = {file: hashlib.sha256((saved / file).read_bytes()).hexdigest() for file in FILES[:2]}
    state["checksum"] = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (saved / "state.json").write_text(json.dumps(state))


def test_a_forged_checkpoint_of_these_tests_is_otherwise_accepted(two: Path) -> None:
    forge(two / "step-00000008", number=8)
    assert number_of(two / "step-00000008") == 8


class _Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("file", FILES[:2])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_run(file: str, form: str, two: Path, tmp_path: Path) -> None:
    place = two / "step-00000008" / file
    if form == "pickle":
        place.write_bytes(pickle.dumps(_Bomb(tmp_path / "ran")))
    else:
        torch.save({"fc.weight": _Bomb(tmp_path / "ran")}, place)
    forge(two / "step-00000008")
    falls_back(two)
    assert not (tmp_path / "ran").exists()


def header(content: bytes) -> dict[str, Any]:
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


def with_header(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    values = header(content)
    data = content[8 + struct.unpack("<Q", content[:8])[0] :]
    change(values)
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + data


def an_entry(**values: Any) -> Callable[[bytes], bytes]:
    return lambda content: with_header(content, lambda h: h[next(key for key in h if "weight" in key)].update(values))


LIES: dict[str, Callable[[bytes], bytes]] = {
    "the data end later": an_entry(data_offsets=[0, 1 << 40]),
    "the data begin inside another": an_entry(data_offsets=[4, 28]),
    "the data end before they begin": an_entry(data_offsets=[24, 0]),
    "the data begin below 0": an_entry(data_offsets=[-8, 16]),
    "a larger shape": an_entry(shape=[1 << 20, 1 << 20]),
    "a shape that overflows": an_entry(shape=[1 << 62, 8]),
    "a wider type": an_entry(dtype="F64"),
    "an unknown type": an_entry(dtype="OBJECT"),
    "no offsets": lambda content: with_header(content, lambda h: h[next(k for k in h if "weight" in k)].clear()),
    "a header that is larger than the file": lambda content: struct.pack("<Q", 1 << 62) + content[8:],
    "a header that is as large as can be": lambda content: struct.pack("<Q", (1 << 64) - 1) + content[8:],
    "a header of no length": lambda content: struct.pack("<Q", 0) + content[8:],
    "data that no tensor has": lambda content: content + bytes(64),
    "data cut short": lambda content: content[:-4],
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("file", FILES[:2])
def test_a_header_that_lies_is_damage(file: str, lie: str, two: Path) -> None:
    place = two / "step-00000008" / file
    place.write_bytes(LIES[lie](place.read_bytes()))
    forge(two / "step-00000008")
    falls_back(two)


@pytest.mark.parametrize("name", ["optimizer.pt", "model.bin", "__init__.py"])
def test_a_file_too_many_is_refused_and_nothing_is_put_aside(name: str, two: Path) -> None:
    (two / "step-00000008" / name).write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match=f"{name} is not a checkpoint's file .*: remove it"):
        checkpoint.newest(two, no_warning)
    assert names(two) == {"step-00000004", "step-00000008"}


@pytest.mark.parametrize("name", [".DS_Store", ".nfs0000000001"])
def test_files_that_systems_leave_everywhere_are_no_damage(name: str, two: Path) -> None:
    (two / "step-00000008" / name).write_bytes(b"")
    assert checkpoint.newest(two, no_warning) == two / "step-00000008"


# The writer


def nothing() -> None:
    pass


def test_it_writes_in_the_background_one_at_a_time(tmp_path: Path) -> None:
    go_on, events = threading.Event(), []
    writer = checkpoint.Writer(tmp_path, 9, before=lambda: go_on.wait(60))
    writer.write(4, snapshot_of(4), {"number": 4}, best=None)
    assert checkpoint.steps(tmp_path) == [], "it returned before anything was written"

    def second() -> None:
        writer.write(8, snapshot_of(8), {"number": 8}, best=None)
        events.append(checkpoint.steps(tmp_path)[0])

    other = threading.Thread(target=second)
    other.start()
    assert [thread.name for thread in threading.enumerate()].count("checkpoint") == 1
    assert not events
    go_on.set()
    other.join(60)
    writer.wait()
    assert events == [4], "the second began when the first was on disk"
    assert [number_of(tmp_path / checkpoint.name(step)) for step in checkpoint.steps(tmp_path)] == [4, 8]


def test_waiting_without_a_write_returns(tmp_path: Path) -> None:
    checkpoint.Writer(tmp_path, 1, before=nothing).wait()
    assert names(tmp_path) == set()


@pytest.mark.parametrize(("keep", "left"), [(1, [8, 20]), (2, [8, 16, 20]), (9, [4, 8, 12, 16, 20])])
def test_the_newest_and_the_best_survive_the_rotation(keep: int, left: list[int], tmp_path: Path) -> None:
    writer = checkpoint.Writer(tmp_path, keep, before=nothing)
    for step in (4, 8, 12, 16, 20):
        writer.write(step, snapshot_of(step), {"number": step}, best=4 if step == 4 else 8)
    writer.wait()
    assert [number_of(tmp_path / checkpoint.name(step)) for step in checkpoint.steps(tmp_path)] == left


def refuse() -> None:
    raise UserError("taken over by attempt 2")


def test_where_the_folder_is_anothers_nothing_is_written_and_waiting_says_so_once(tmp_path: Path) -> None:
    write(tmp_path, 4)
    writer = checkpoint.Writer(tmp_path, 1, before=refuse)
    writer.write(8, snapshot_of(8), {}, best=None)
    with pytest.raises(UserError, match="taken over by attempt 2"):
        writer.wait()
    assert names(tmp_path) == {"step-00000004"}
    writer.wait()
    writer.check()


def test_an_owner_that_lost_its_folder_while_writing_removes_nothing(tmp_path: Path) -> None:
    write(tmp_path, 4)
    asked: list[None] = []

    def before() -> None:
        asked.append(None)
        if len(asked) > 1:
            refuse()

    writer = checkpoint.Writer(tmp_path, 1, before=before)
    writer.write(8, snapshot_of(8), {"number": 8}, best=None)
    with pytest.raises(UserError, match="taken over"):
        writer.wait()
    assert number_of(tmp_path / "step-00000004") == 4


def test_what_went_wrong_is_raised_by_the_next_write_and_by_a_check(tmp_path: Path) -> None:
    writer = checkpoint.Writer(tmp_path, 1, before=refuse)
    writer.write(4, snapshot_of(4), {}, best=None)
    with pytest.raises(UserError, match="taken over"):
        writer.write(8, snapshot_of(8), {}, best=None)
    assert names(tmp_path) == set()
    unserializable = checkpoint.Writer(tmp_path, 1, before=lambda: None)
    unserializable.write(4, snapshot_of(4), {"best": object()}, best=None)
    unserializable._thread.join(60)
    with pytest.raises(TypeError):
        unserializable.check()


def test_copies_on_a_device_are_let_go_before_the_disk_is_written(tmp_path: Path) -> None:
    gone = []
    here = snapshot_of(1)

    class OnDevice:
        def on_host(self) -> Snapshot:
            return here

    def before() -> None:  # called when all is written
        gc.collect()
        gone.append(device_copies() is None)

    there = OnDevice()
    device_copies = weakref.ref(there)
    writer = checkpoint.Writer(tmp_path, 1, before=before)
    writer.write(1, there, {"best": None}, None)
    del there
    writer.wait()
    assert gone == [True, True]
    assert checkpoint.read(tmp_path / checkpoint.name(1))[0].weights.keys() == here.weights.keys()


def check_full_disk(folder: Path, writer: checkpoint.Writer, snapshot: Snapshot, reason: str) -> None:
    """Step 8 finds no room: one sentence, nothing half written, step 4 still loads."""
    writer.write(8, snapshot, {"number": 8}, best=None)
    with pytest.raises(UserError) as caught:
        writer.wait()
    assert str(caught.value) == (
        f"the checkpoint of step 8 could not be written to {folder} ({reason}): make room, and rerun the same "
        "command to resume from step 4"
    )
    assert names(folder) == {"step-00000004"}
    assert number_of(folder / "step-00000004") == 4
    writer.check()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("place", ["fsync", "mkdir", "write"])
def test_a_disk_that_fails_is_one_sentence_and_the_last_good_one_loads(
    place: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 4)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    writer = checkpoint.Writer(tmp_path, 1, before=nothing)
    with monkeypatch.context() as patched:
        owner, name = {"fsync": (os, "fsync"), "mkdir": (Path, "mkdir"), "write": (checkpoint, "_write")}[place]
        patched.setattr(owner, name, fail)
        check_full_disk(tmp_path, writer, snapshot_of(8), os.strerror(number))
    writer.write(8, snapshot_of(8), {"number": 8}, best=None)  # there is room again
    writer.wait()
    assert number_of(checkpoint.newest(tmp_path, no_warning)) == 8


@pytest.mark.parametrize("floats", [20_000, 10_000], ids=["in the weights", "in the optimizer's state"])
def test_a_full_disk_is_one_sentence_and_the_last_good_one_loads(floats: int, mounted: Callable[[str], Path]) -> None:
    small_disk = mounted("size=64k")
    write(small_disk, 4)
    large = {"fc.weight": torch.zeros(floats)}
    writer = checkpoint.Writer(small_disk, 1, before=nothing)
    check_full_disk(small_disk, writer, Snapshot(large, large, {}), os.strerror(errno.ENOSPC))
    writer.write(8, snapshot_of(8), {"number": 8}, best=None)  # a smaller one finds room
    writer.wait()
    assert number_of(checkpoint.newest(small_disk, no_warning)) == 8


@pytest.mark.parametrize("other", [checkpoint.FORMAT + 1, 2])
def test_a_checkpoint_of_another_version_is_refused_and_not_renamed(other: int, two: Path) -> None:
    forge(two / "step-00000008", format=other)
    sentence = (
        f"step-00000008 has format {other}, and this version reads {checkpoint.FORMAT}: .*, or train again with --re"
    )
    with pytest.raises(UserError, match=sentence):
        checkpoint.newest(two, no_warning)
    assert names(two) == {"step-00000004", "step-00000008"}


# With a moving average


def with_average(folder: Path) -> Path:
    """A checkpoint whose average differs from its weights."""
    plain = snapshot_of(1)
    averaged = {name: tensor * 0.5 for name, tensor in plain.weights.items()}
    return checkpoint.write(folder, 1, replace(plain, average=averaged), {"best": None})


def test_the_average_is_kept_and_is_what_is_scored(tmp_path: Path) -> None:
    folder = with_average(tmp_path)
    plain, (saved, _) = snapshot_of(1), checkpoint.read(folder)
    scored = checkpoint.weights(folder)
    for name, tensor in plain.weights.items():
        assert torch.equal(saved.weights[name], tensor)
        assert torch.equal(saved.average[name], tensor * 0.5)
        assert torch.equal(scored[name], tensor * 0.5)


def test_a_damaged_or_missing_average_is_noticed(tmp_path: Path) -> None:
    folder = with_average(tmp_path)
    file = folder / "average.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(checkpoint.Damage, match=r"average\.safetensors has changed"):
        checkpoint.read(folder)
    file.unlink()
    with pytest.raises(checkpoint.Damage, match=r"average\.safetensors"):
        checkpoint.read(folder)


def test_an_average_that_does_not_belong_to_a_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = checkpoint.write(tmp_path, 1, snapshot_of(1), {"best": None})
    shutil.copy(folder / "model.safetensors", folder / "average.safetensors")
    with pytest.raises(UserError, match=r"average\.safetensors is not a checkpoint's file"):
        checkpoint.read(folder)


def test_tensors_are_written_as_safetensors_writes_them(tmp_path: Path) -> None:
    types = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    tensors = {f"of {type}": torch.arange(6).view(2, 3).to(type) for type in (*types, torch.int8, torch.uint8)}
    tensors |= {
        "é": torch.tensor([True, False]),
        "number": torch.tensor(3.0),
        "none": torch.empty(0, 2),
        "a.b": torch.ones(1),
    }
    for number, each in enumerate((tensors, {})):
        saved = checkpoint.write(tmp_path, number, Snapshot(each, {}, {}), {"best": None})
        assert (saved / "model.safetensors").read_bytes() == safetensors.torch.save(each)
