"""Entry point of all commands: `resnet-cifar COMMAND ...`, train.py and eval.py.

Imports only the standard library, so that --help is immediate and a missing package is reported in one sentence.
"""

from __future__ import annotations

import errno
import importlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from resnet_cifar.config.errors import NodeError, RankError, UserError, did_you_mean
from resnet_cifar.config.rerun import how_to_start_again
from resnet_cifar.distributed.launcher_env import is_reported_elsewhere, unset_empty_variables

COMMANDS = {
    "train": "train a recipe, evaluate the model and write a report",
    "evaluate": "evaluate a trained model on a split of its dataset or of another one",
    "predict": "classify images with a trained model",
    "export": "export a trained model as ONNX, for torch.export or for timm",
    "push": "upload a trained model and its card to the Hugging Face Hub",
    "serve": "answer HTTP requests with a trained model",
    "report": "write the report of a run",
    "dashboard": "show runs on a page that updates itself, or in a W&B workspace",
    "runs": "list runs with their state, progress and results",
    "compare": "compare runs in a table and on a page",
    "explore": "write a page about the images of a data source",
    "reproduce": "train a finished run again and say whether the result is the same",
    "seeds": "train a recipe with several seeds and summarize the results",
    "tune": "search hyperparameters of a recipe",
    "scale": "measure how training scales with devices, and predict larger numbers",
    "cache": "list and clear decoded datasets",
}
HELP = "\n".join(
    [
        "usage: resnet-cifar COMMAND ...\n",
        *(f"  {name:9} {summary}" for name, summary in COMMANDS.items()),
        "\nresnet-cifar COMMAND --help shows the options of a command.",
    ]
)
ROOT = Path(__file__).parents[2]


def main() -> int:
    """Runs the command that the command line names; returns the exit code."""
    return run(lambda arguments: _dispatch(*arguments))


def run_command(name: str) -> int:
    """Runs the command `name` with the words of the command line; returns the exit code."""
    return run(lambda arguments: _dispatch(name, *arguments))


def _dispatch(name: str = "--help", *arguments: str) -> None:
    if name in ("-h", "--help"):
        print_once(HELP)
        return
    if name not in COMMANDS:
        hint = did_you_mean(name, list(COMMANDS)) or f": it should be one of {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}{hint}")
    importlib.import_module(f"resnet_cifar.cli.{name}").main(list(arguments))


def run(main: Callable[[list[str]], None]) -> int:
    """Runs `main` on the words of the command line; returns the exit code.

    A user's mistake becomes one sentence on standard error, printed by one process, and exit code 2.
    """
    escape_what_the_console_lacks()
    unset_empty_variables()
    try:
        try:
            main(sys.argv[1:])
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EACCES) or str(error.filename) not in _values():
                raise
            raise UserError(f"{str(error.filename)[:80]} cannot be used ({error.strerror}): name another") from None
        finally:
            sys.stdout.flush()
    except UserError as error:
        return _report(error)
    except KeyboardInterrupt:
        print_once(f"\nstopped: {how_to_start_again()} to start again", to_stderr=True)
        return 130
    except BrokenPipeError:  # `train.py --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int("torch" in sys.modules)  # interrupted training is not a success
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("resnet_cifar"):
            raise
        print_once(f"error: {_how_to_install(error.name)}", to_stderr=True)
        return 2
    except Exception:
        if "RANK" in os.environ:
            print(f"{_this_rank()} failed:", file=sys.stderr, flush=True)
        raise
    return 0


def _values() -> set[str]:
    """The words of the command line, and what follows an equals sign in one."""
    return {part for word in sys.argv[1:] for part in (word, word.partition("=")[2])}


def escape_what_the_console_lacks() -> None:
    r"""Makes standard output and error print characters that their encoding lacks as \xfc instead of raising.

    So PYTHONIOENCODING=ascii, a Windows code page or a file name that is not UTF-8 never ends a run.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's streams accept every character
            stream.reconfigure(errors="backslashreplace")


def _report(error: UserError) -> int:
    """Prints the error, unless another process is known to; returns the exit code."""
    if isinstance(error, RankError):
        if error.is_told_here:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.code
    if isinstance(error, NodeError):
        if not is_reported_elsewhere("LOCAL_RANK"):
            several_nodes = "RANK" in os.environ and os.environ.get("WORLD_SIZE") != os.environ.get("LOCAL_WORLD_SIZE")
            print(f"error: {f'{_this_rank()}: ' if several_nodes else ''}{error}", file=sys.stderr, flush=True)
        return 2
    print_once(f"error: {error}", to_stderr=True)
    return 2


def _how_to_install(package: str) -> str:
    activate = Path(os.path.relpath(ROOT / ".venv/bin/activate"))
    command = f". {activate}" if activate.is_file() else f"pip install -e {os.path.relpath(ROOT)}"
    if not (ROOT / "setup.cfg").is_file():
        command = "pip install resnet-cifar"
    return f"{sys.executable} does not have the package {package}: run `{command}`, then the same command again"


def _this_rank() -> str:
    """`rank 3 on node2`, as numbered by the launcher."""
    return f"rank {os.environ['RANK']} on {socket.gethostname()}"


def print_once(text: str, to_stderr: bool = False) -> None:
    """Prints, unless rank 0 is known to do so."""
    if not is_reported_elsewhere():
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=to_stderr)
