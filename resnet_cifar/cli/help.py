"""The page that --help shows: tyro renders it from the documentation of a command and of the recipe."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated, Any


def show_help(command: type, program: str, fields: Any, alone: str = "") -> None:
    """Prints the page of `command`, with the fields of a recipe below its own, and ends the program.

    `alone`: the field of the command that is a word without a --name.
    """
    if os.environ.get("RANK", "0") != "0":
        raise SystemExit(0)
    import tyro

    kind = Annotated[tyro.conf.FlagConversionOff[type(fields)], tyro.conf.arg(name="")]
    own = [(alone, tyro.conf.Positional[str])] if alone else []
    shown = dataclasses.make_dataclass(
        command.__name__, [*own, ("fields", kind, dataclasses.field(default=fields))], bases=(command,), frozen=True
    )
    shown.__doc__ = command.__doc__
    shown = tyro.conf.FlagCreatePairsOff[shown]
    tyro.cli(shown, prog=program, args=["--help"], use_underscores=True)
