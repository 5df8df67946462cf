"""W&B's variables: which of them count, and the sentence about an invalid one; the sweep of this repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_cifar import wandb_env
from resnet_cifar.cli.train import parse_arguments
from resnet_cifar.config.diff import flatten
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.validation import parse
from resnet_cifar.tracking.multi import check_trackers

ROOT = Path(__file__).parents[2]
WANDB = parse({"track": {"trackers": "wandb"}})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("MODE", "garbage", "WANDB_MODE=garbage is not supported: use online, offline or disabled, or unset it"),
        ("MODE", "shared", "WANDB_MODE=shared is not supported"),
        ("DISABLED", "perhaps", "WANDB_DISABLED=perhaps should be true or false"),
        ("BASE_URL", "my.server", "WANDB_BASE_URL=my.server is not a web address: use https://HOST"),
        ("BASE_URL", "http://[::1", "WANDB_BASE_URL=http://[::1 is not a web address"),
        ("API_KEY", "0123456789abcdef", "WANDB_API_KEY is not a key (it has 16 characters"),
        ("API_KEY", "x" * 39 + " ", "WANDB_API_KEY is not a key"),
        ("DIR", "/proc/version/wandb", "WANDB_DIR=/proc/version/wandb cannot be written"),
        ("DIR", "~nobody-of-this-name/x", "WANDB_DIR=~nobody-of-this-name/x cannot be written"),
        ("PROJECT", "mine/yours", "WANDB_PROJECT=mine/yours has / in it, and W&B refuses that"),
        ("NAME", "n" * 129, "is longer than 128 characters"),
        ("RUN_ID", "a:b", "WANDB_RUN_ID=a:b has : in it"),
        ("RUN_ID", "a;b,c'd", "WANDB_RUN_ID=a;b,c'd has ' , ; in it"),
    ],
)
def test_an_invalid_variable_is_named(name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"WANDB_{name}", value)
    with pytest.raises(UserError) as error:
        check_trackers(WANDB)
    assert sentence in str(error.value)
    if name == "API_KEY":
        assert value not in str(error.value), "it is a secret"
    check_trackers(parse({"track": {"trackers": "none"}}))


@pytest.mark.parametrize(("name", "found"), [("ada/photos", "/"), ("50%", "%")])
def test_a_project_that_wandb_refuses(name: str, found: str) -> None:
    sentence = f"^track.project '{name}' has {found} in it, and W&B refuses that: use another$"
    with pytest.raises(UserError, match=sentence):
        check_trackers(parse({"track": {"trackers": "wandb", "project": name}}))
    check_trackers(parse({"track": {"trackers": "tensorboard", "project": name}}))


@pytest.mark.parametrize(
    "key", ["0" * 40, "local-" + "a" * 40, "wandb_v1_" + "A" * 77, "head-er.pay_load.signature", "a" * 86]
)
def test_every_form_of_a_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    check_trackers(WANDB)


def test_a_key_is_not_needed_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "none")
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    check_trackers(WANDB)


@pytest.mark.parametrize(
    ("server", "machine"),
    [("http://localhost:8080", "localhost:8080"), ("", "api.forge.coreweave.com"), ("", "api.wandb.ai")],
)
def test_a_login_is_found_as_wandb_stores_it(
    server: str, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("requests.post", lambda *_, auth, **__: asked.append(auth))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", server)
    assert not wandb_env.has_account()
    (tmp_path / ".netrc").write_text(f"machine {machine}\n  login user\n  password {'0' * 40}\n")
    assert wandb_env.has_account()
    assert wandb_env.lacks_shared_mode() == "" and asked == [("api", "0" * 40)]
    (tmp_path / ".netrc").write_text("machine\n")
    assert not wandb_env.has_account()
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "token.jwt")
    assert wandb_env.has_account()


def test_the_server_is_wandbs_own_unless_named() -> None:
    import wandb

    assert wandb_env.endpoint() == wandb.Settings().base_url


@pytest.mark.parametrize(
    ("variable", "field", "value"),
    [("INIT_TIMEOUT", "init_timeout", "soon"), ("CONSOLE", "console", "soon"), ("TAGS", "run_tags", "t" * 65)],
)
def test_a_variable_that_only_wandb_checks(
    variable: str, field: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv(f"WANDB_{variable}", value)
    with pytest.raises(ValueError) as error:
        wandb.Settings(**{field: value})
    assert wandb_env.invalid_variable(error.value).startswith(f"WANDB_{variable}={value} is invalid (")


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, None),
        ({"WANDB_MODE": "Offline"}, "offline"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "run"}, "online"),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "false"}, None),
    ],
)
def test_the_mode(variables: dict[str, str], mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_env.mode() == mode


class TestSweep:
    @pytest.fixture(autouse=True)
    def _agent(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        for name, value in (("SWEEP_ID", "sweep0"), ("RUN_ID", "trial1"), ("DIR", str(tmp_path))):
            monkeypatch.setenv(f"WANDB_{name}", value)

    def test_a_trial_has_a_directory_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert wandb_env.trial_path(Path("runs/small-1a2b3c4d")) == Path("runs/small-1a2b3c4d-trial1")
        monkeypatch.delenv("WANDB_SWEEP_ID")
        assert wandb_env.trial_path(Path("runs/small-1a2b3c4d")) == Path("runs/small-1a2b3c4d")

    def test_the_agents_folder_is_no_choice_of_the_users(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert wandb_env.wandb_dir() is None
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / "mine"))
        assert wandb_env.wandb_dir() == tmp_path / "mine"

    def test_a_trial_that_would_send_no_metric_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"^track.trackers 'tensorboard' sends no metric .*SWEEP_ID=sweep0\)"):
            check_trackers(parse({"track": {"trackers": "tensorboard"}}))

    def test_the_sweep_of_this_repository_names_fields_of_a_recipe(self) -> None:
        """Each parameter's values, as `wandb agent` writes them on the command line."""
        sweep = yaml.safe_load((ROOT / "sweeps" / "wandb.yaml").read_text())
        assert (ROOT / sweep["program"]).is_file()
        assert sweep["metric"] == {"name": "val/accuracy", "goal": "maximize"}
        (recipe,) = (word for word in sweep["command"] if not word.startswith("${"))
        for name, choice in sweep["parameters"].items():
            for value in choice.get("values") or (choice["min"], choice["max"]):
                parse_arguments([recipe, f"--{name}={value}"])
            if "min" in choice:
                own = flatten(parse_arguments([recipe])[1])[name]
                assert choice["min"] < own < choice["max"], f"{name} {own} of the recipe is among what is searched"

    def test_values_as_the_agent_writes_them(self) -> None:
        words = ["--model.head.hidden_dims=[128, 64]", "--augment.trivial_augment=True", "--phases.0.lr=1e-05"]
        _, recipe = parse_arguments([*words, "--model.ghost_batch_size=None", "--model.head.dropout=0.5"])
        assert (recipe.model.head.hidden_dims, recipe.model.ghost_batch_size) == ((128, 64), None)
        assert (recipe.augment.trivial_augment, recipe.phases[0].lr) == (True, 1e-5)
