"""atomic_io.py: files that are replaced as a whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_cifar import atomic_io
from resnet_cifar.config.errors import UserError


@pytest.mark.parametrize("flush", [False, True])
def test_a_file_is_replaced_at_the_end(flush: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with atomic_io.atomic_write(file, flush) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(OSError, match="full"), atomic_io.atomic_write(file, flush=False) as temporary:
        temporary.write_text("half")
        raise OSError(28, "full")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_json_is_read_back_and_damage_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    assert atomic_io.read_json(file) is None
    atomic_io.write_json(file, {"x": 1})
    assert atomic_io.read_json(file) == {"x": 1}
    for content in ("[1]", "{", ""):
        file.write_text(content)
        with pytest.raises(UserError, match=r"a\.json is damaged, it is not valid JSON: remove it"):
            atomic_io.read_json(file)
