"""Where a setting of the launcher comes from: a variable, a flag or a configuration file of `accelerate launch`."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple


class LaunchCommand(NamedTuple):
    """The words after `accelerate launch`, and the environment that it was started in."""

    words: list[str]
    environment: dict[str, str]


def origin(variable: str, flag: str) -> tuple[str, str]:
    """(where the value of `variable` comes from, how to change it); `flag` is the one of accelerate launch."""
    by_variable = f"{variable}={os.environ[variable]}", f"unset {variable}"
    launcher = launch_command()
    if launcher is None or launcher.environment.get(variable) == os.environ[variable]:
        return by_variable
    options = _options(launcher.words)
    if flag and flag.replace("-", "_") in options:
        return f"accelerate launch {flag}", f"remove {flag}"
    file = _config_file(launcher.words, options.get("__config_file"))
    if not file.is_file():
        return by_variable
    fix = f"use --config_file accelerate_configs/multi_gpu.yaml (or cpu.yaml), or correct {shlex.quote(str(file))}"
    return str(file), fix


def file_names_gpus(launcher: LaunchCommand | None) -> bool:
    """Whether the command named a configuration file with gpu_ids. `all` sets no variable that would tell.

    Not the file that `accelerate config` writes: it has them on machines without GPUs, too.
    """
    words = launcher.words if launcher else []
    option = _options(words).get("__config_file")
    file = None if option is None else _config_file(words, option)
    return file is not None and file.is_file() and bool(re.search(r'^[ "]*gpu_ids\b', file.read_text(), re.MULTILINE))


def _options(words: list[str]) -> dict[str, int]:
    """The place of each option among the words."""
    return {word.partition("=")[0].replace("-", "_"): number for number, word in enumerate(words)}


def _config_file(words: list[str], option: int | None) -> Path:
    """The file of --config_file, or the one that `accelerate config` writes."""
    if option is not None:
        return Path(words[option].partition("=")[2] or words[option + 1])
    home = os.environ.get("HF_HOME", f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/huggingface")
    return Path(home).expanduser() / "accelerate" / "default_config.yaml"


def launch_command() -> LaunchCommand | None:
    """The command if `accelerate launch` started this process; torch's launcher runs inside it."""
    import psutil

    if not {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        return None
    try:
        for process in psutil.Process().parents()[:4]:
            words = process.cmdline()
            for number, word in enumerate(words):
                name = Path(word).name
                is_launch = name == "accelerate" and words[number + 1 : number + 2] == ["launch"]
                if is_launch or name in ("accelerate-launch", "accelerate.commands.launch"):
                    return LaunchCommand(words[number + 1 :], process.environ())
    except psutil.Error:  # it is gone, or belongs to another user
        pass
    return None
