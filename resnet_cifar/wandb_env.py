"""W&B's environment variables: which of them count, and which are invalid."""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
import re
import urllib.parse
from pathlib import Path
from typing import Any

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import is_web_address

SERVER_TIMEOUT = 2.0  # seconds
SERVICE = "wandb-core"  # the process that W&B starts beside ours, in a session of its own
_DEFAULT_URL = "https://api.forge.coreweave.com"
_DEFAULT_PAGE = "https://forge.coreweave.com/wandb"
_BEHIND = {"api.forge.coreweave.com": "api.wandb.ai"}  # an address under which an earlier login may have stored its key
_MODES = ("online", "offline", "disabled", "dryrun", "run")  # the last two are W&B's older names
_YES, _NO = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")
_SHARED_MODE = (0, 68)  # the first W&B server with it
_KEY = re.compile(r"(?:[^-]+-)?[\w-]{40,}|[\w-]+\.[\w-]+\.[\w-]+")  # with a server's prefix, or a JSON web token
_FORBIDDEN = {"PROJECT": "/\\#?%:", "ENTITY": "/\\#?%:", "RUN_ID": ":;,#?/'"}  # in names
# W&B's settings whose variable has another name.
_VARIABLES = {
    "root_dir": "dir",
    "run_name": "name",
    "run_notes": "notes",
    "run_tags": "tags",
    "run_job_type": "job_type",
}


def in_sweep() -> bool:
    """Whether `wandb agent` started this process, as a trial of a sweep."""
    return bool(os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"))


def is_stopped() -> bool:
    """Whether the sweep has stopped this trial, for example by `early_terminate`.

    Its agent then sends SIGTERM, as the end of its machine does; only the server knows which of them it is. One that
    does not answer has not stopped anything.
    """
    import requests

    if not in_sweep() or mode() in ("offline", "disabled"):
        return False
    text = """query RunStopped($entity: String, $project: String, $run: String!) {
        project(name: $project, entityName: $entity) { run(name: $run) { stopped shouldStop } }
    }"""
    names = {"entity": "WANDB_ENTITY", "project": "WANDB_PROJECT", "run": "WANDB_RUN_ID"}
    try:
        run = _query(text, **{name: os.environ.get(variable) for name, variable in names.items()})["project"]["run"]
        return bool(run["stopped"] or run["shouldStop"])
    except (requests.RequestException, ValueError, LookupError, TypeError):
        return False


def trial_path(path: Path) -> Path:
    """The run directory of a trial of a sweep: `path`-RUN_ID; otherwise `path`.

    A sweep may try the same values twice, even at once on two machines: every trial needs a directory of its own to be
    trained, and its metric sent, under the W&B run that the agent has started.
    """
    return path.with_name(f"{path.name}-{os.environ['WANDB_RUN_ID']}") if in_sweep() else path


def wandb_dir() -> Path | None:
    """WANDB_DIR; None if it is not set, or if `wandb agent` has set it, which it always does, to where it runs."""
    folder = os.environ.get("WANDB_DIR")
    is_agents = in_sweep() and folder is not None and Path(folder).resolve() == Path.cwd()
    return Path(folder).expanduser().resolve() if folder and not is_agents else None


def group_and_tags() -> dict[str, Any]:
    """`group` and `tags` of this run, if it has any: variables of W&B, which seeds, searches and arrays set, too."""
    group, tags = os.environ.get("WANDB_RUN_GROUP"), os.environ.get("WANDB_TAGS", "").split(",")
    found = {"group": group, "tags": [tag.strip() for tag in tags if tag.strip()]}
    return {name: value for name, value in found.items() if value}


def mode() -> str | None:
    """`online`, `offline` or `disabled`, if the user has chosen one."""
    if os.environ.get("WANDB_DISABLED", "").lower() in _YES:
        return "disabled"
    chosen = os.environ.get("WANDB_MODE", "").lower()
    return {"dryrun": "offline", "run": "online"}.get(chosen, chosen) or None


def check_variables(project: str = "") -> None:
    """Raises UserError where a WANDB_* variable, or `track.project`, cannot be what it should be."""
    given = {name: os.environ.get(f"WANDB_{name}", "") for name in ("MODE", "DISABLED", "BASE_URL", "API_KEY", "DIR")}
    if given["MODE"] and given["MODE"].lower() not in _MODES:
        raise UserError(f"WANDB_MODE={given['MODE']} is not supported: use online, offline or disabled, or unset it")
    if given["DISABLED"] and given["DISABLED"].lower() not in _YES + _NO:
        raise UserError(f"WANDB_DISABLED={given['DISABLED']} should be true or false: correct or unset it")
    chosen, key = mode(), given["API_KEY"].partition("-")[2] or given["API_KEY"]
    if chosen == "disabled":
        return
    if given["BASE_URL"] and not is_web_address(given["BASE_URL"]):
        raise UserError(f"WANDB_BASE_URL={given['BASE_URL']} is not a web address: use https://HOST, or unset it")
    if chosen != "offline" and key and not _KEY.fullmatch(given["API_KEY"]):
        raise UserError(
            f"WANDB_API_KEY is not a key (it has {len(key)} characters of 40 or more letters and digits): copy it from "
            f"{endpoint().replace(_DEFAULT_URL, _DEFAULT_PAGE)}/authorize, or unset it"
        )
    if not _dir_can_be_written():
        raise UserError(f"WANDB_DIR={given['DIR']} cannot be written: name another folder, or unset it")
    for name in ("PROJECT", "NAME", "RUN_GROUP", "ENTITY", "RUN_ID"):
        value = os.environ.get(f"WANDB_{name}", "")
        _check_name(f"WANDB_{name}={value[:200]}", value, _FORBIDDEN.get(name, ""), ", or unset it")
    _check_name(f"track.project {project[:200]!r}", project, _FORBIDDEN["PROJECT"])


def _check_name(named: str, value: str, forbidden: str, otherwise: str = "") -> None:
    found = sorted(set(value) & set(forbidden))
    if found or len(value) > 128:
        problem = f"has {' '.join(found)} in it" if found else "is longer than 128 characters"
        raise UserError(f"{named} {problem}, and W&B refuses that: use another{otherwise}")


def _dir_can_be_written() -> bool:
    """Whether it can, or is not set."""
    try:
        if (folder := wandb_dir()) is None:
            return True
        place = next(place for place in (folder, *folder.parents) if place.exists())
        return place.is_dir() and os.access(place, os.W_OK)
    except (RuntimeError, OSError):  # ~USER of nobody; a folder that may not be looked into
        return False


def invalid_variable(error: ValueError) -> str:
    """The sentence about a variable that W&B refuses."""
    (found, *_) = error.errors() if hasattr(error, "errors") else [{"loc": (), "msg": str(error)}]
    field = str(next(iter(found["loc"]), ""))
    variable = f"WANDB_{_VARIABLES.get(field, field).upper()}"
    value = os.environ.get(variable)
    named = f"{variable}={value}" if value is not None else "a WANDB_* variable"
    reason = " ".join(found["msg"].split())
    return f"{named} is invalid ({reason}): correct or unset it"


def endpoint() -> str:
    """The URL of the W&B server: from the environment, or as stored by `wandb login --host`."""
    kept = configparser.ConfigParser()
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    with contextlib.suppress(configparser.Error, OSError):
        kept.read(folder / "settings")
    return os.environ.get("WANDB_BASE_URL") or kept.get("default", "base_url", fallback=_DEFAULT_URL)


def has_account() -> bool:
    """Whether there is a key for the server, or the token file that W&B accepts in its place."""
    return bool(_key() or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"))


def _key() -> str | None:
    """The key of the environment, or as `wandb login` has stored it: under the host with its port, unlike requests."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    host = urllib.parse.urlsplit(endpoint()).netloc
    with contextlib.suppress(OSError, RuntimeError, netrc.NetrcParseError):  # W&B does without such a file, too
        for file in (file for name in names if (file := Path(name).expanduser()).exists()):
            kept = netrc.netrc(file)
            found = kept.authenticators(host) or kept.authenticators(_BEHIND.get(host, host))
            return found[2] if found else None
    return None


def lacks_shared_mode() -> str:
    """Why the server cannot take one run from several processes; "" where it can.

    Servers of one's own tell their version; W&B's service has none. One that does not answer is not judged here.
    """
    import requests

    try:
        info = _query("query ServerInfo { serverInfo { latestLocalVersionInfo { versionOnThisInstanceString } } }")
        version = info["serverInfo"]["latestLocalVersionInfo"]["versionOnThisInstanceString"]
        numbers = tuple(map(int, re.match(r"(\d+)\.(\d+)", version).groups()))
    except (requests.RequestException, ValueError, LookupError, TypeError, AttributeError):
        return ""
    needed = ".".join(map(str, _SHARED_MODE))
    return f"the server is version {version}, and its shared mode came with {needed}" if numbers < _SHARED_MODE else ""


def _query(text: str, **variables: str | None) -> dict[str, Any]:
    """The data that the server answers to a GraphQL query."""
    import requests

    key = _key()
    answer = requests.post(
        f"{endpoint().rstrip('/')}/graphql",
        json={"query": text, "variables": variables},
        auth=("api", key) if key else None,
        timeout=SERVER_TIMEOUT,
    )
    answer.raise_for_status()
    return answer.json()["data"]
