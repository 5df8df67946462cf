"""`resnet-cifar push`: what the hub holds afterwards, what a rerun sends, and what is said when it fails."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hub_uploads
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from hub_server import HubServer
from huggingface_hub import constants
from huggingface_hub.utils import _http

from resnet_cifar.atomic_io import sha256
from resnet_cifar.cli import entry, export, push
from resnet_cifar.cli import train as cli_train
from resnet_cifar.config.errors import UserError
from resnet_cifar.training import trainer

TOKEN = "hf_a_secret_of_alice"
TINY = "--recipe debug --data.limit 100 --data.validation_fraction 0.2 --batch_size 16 --micro_batch 0 --model.name "
TINY += "test_resnet --track.trackers none --track.report False"


class NoStop:
    """In place of StopSignals, which would handle the signals of this process."""

    def hand_over(self, answer: object) -> None:
        """Nobody asks."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cifar`, with a CIFAR stem, and `plain`, with that of ImageNet, whose verified export has two large files."""
    folder = tmp_path_factory.mktemp("runs")
    for stem, name in {"imagenet": "plain", "cifar": "cifar"}.items():
        options, recipe = cli_train.parse_arguments([*TINY.split(), "--model.stem", stem, "--run", str(folder / name)])
        AcceleratorState._reset_state(True)
        trainer.train(recipe, options, NoStop())
    AcceleratorState._reset_state(True)
    export.main([str(folder / "plain"), "--to", "timm"])
    AcceleratorState._reset_state(True)
    facts, program = json.loads((folder / "plain/export/export.json").read_text()), folder / "plain/export/model.pt2"
    program.write_bytes(np.random.default_rng(0).bytes(300_000))
    facts["files"]["model.pt2"] = {**facts["files"]["model.safetensors"], "sha256": sha256(program)}
    (folder / "plain/export/export.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with the account of alice, whose token this process has."""
    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_XET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)  # push sets it where the hub has no Xet
    with HubServer(tmp_path / "hub") as hub:
        hub.uploads.accounts = {TOKEN: "alice", "hf_bob": "bob"}
        hub.uploads.organizations = {"alice": ["lab"]}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def copied(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runs, to be changed, in the working directory."""
    monkeypatch.chdir(shutil.copytree(runs, tmp_path / "runs"))
    return Path.cwd()


def command(*words: str) -> subprocess.CompletedProcess:
    """`python WORDS` in a process of its own, whose output does not show the token."""
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True, timeout=300)
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


Push = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Push:
    """`resnet-cifar push WORDS` in this process: exit code, standard output and standard error."""

    def main(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["resnet-cifar", "push", *words])
        code = entry.main()
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        return code, out, err

    return main


@pytest.fixture
def sentence(pushed: Push) -> Callable[..., str]:
    """The one line that a push which fails writes."""

    def fail(*words: str) -> str:
        code, _, err = pushed(*words)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return fail


def repository(server: HubServer, name: str) -> dict[str, str]:
    """The SHA-256 of the files of a repository."""
    files = (server.root / "models" / name).iterdir()
    return {file.name: sha256(file) for file in files if file.name != ".gitattributes"}


LOAD = """
import sys
import timm, torch
images = torch.rand(5, 3, 48, 48, generator=torch.Generator().manual_seed(0))
for name in ("plain", "cifar"):
    if name == "cifar":
        assert "resnet_cifar" not in sys.modules
        import resnet_cifar
    with torch.no_grad():
        ours, theirs = (
            timm.create_model(place, pretrained=True).eval()(images)
            for place in (f"local-dir:{name}/model", f"hf-hub:alice/{name}")
        )
    assert ours.shape == (5, 10) and ours.std() > 0 and torch.equal(ours, theirs)
    print(name, "equal")
"""


def test_timm_loads_from_the_hub_what_the_runs_hold(server: HubServer, copied: Path, pushed: Push) -> None:
    """`plain` by a process; `cifar` is verified by push. timm then loads both in a fresh process."""
    done = command("-m", "resnet_cifar", "push", "plain", "alice/plain")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"pushed to {server.url}/alice/plain\n" in done.stdout and "loaded by timm" not in done.stdout
    code, out, _ = pushed("cifar", "alice/cifar")
    assert code == 0 and "cifar/model, loaded by timm in a process of its own, on 100 test images" in out
    for name, said in {"plain": done.stdout, "cifar": out}.items():
        found, model = repository(server, f"alice/{name}"), copied / name / "model"
        for file in ("config.json", "model.safetensors"):
            assert found[file] == sha256(model / file)
        sizes = [(server.root / "models/alice" / name / file).stat().st_size for file in found]
        assert f"commit       {server.newest(f'alice/{name}')}" in said
        assert f"uploaded     {len(found)} files, {sum(sizes):,} bytes: " in said
        assert len(server.uploads.commits[f"alice/{name}"]) == 2, "the first is the repository's own"
    loaded = command("-c", LOAD)
    assert loaded.stdout == "plain equal\ncifar equal\n", loaded.stderr
    assert len(server.requests_for("GET /alice/.*/resolve/.*/model.safetensors")) == 2


def test_the_card_on_the_hub_loads_the_model_from_there(server: HubServer, copied: Path, pushed: Push) -> None:
    assert pushed("plain", "alice/plain")[0] == 0
    card = (server.root / "models/alice/plain/README.md").read_text()
    metadata = hub_uploads.front_matter(card)
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("timm", "image-classification")
    assert "resnet-cifar" in metadata["tags"] and metadata["metrics"] == ["accuracy"]
    (result,) = metadata["model-index"][0]["results"]
    accuracy = json.loads((copied / "plain/eval-test.json").read_text())["accuracy"]
    assert result["metrics"][0] == {"type": "accuracy", "value": round(accuracy, 6), "name": "accuracy"}
    assert 'timm.create_model("hf-hub:alice/plain", pretrained=True)' in card and "local-dir:" not in card
    assert "`hf download alice/plain --local-dir FOLDER`" in card
    assert "| `model.safetensors` (timm) | 100 of 100 |" in card


def test_a_second_push_makes_no_commit_and_a_smaller_export_leaves_nothing_behind(
    server: HubServer, copied: Path, pushed: Push
) -> None:
    assert pushed("plain", "alice/both")[0] == 0
    before, commit = repository(server, "alice/both"), server.newest("alice/both")
    assert before.keys() == {"README.md", "config.json", "model.safetensors", "model.pt2", "export.json"}
    server.requests.clear()
    code, out, _ = pushed("plain", "alice/both")
    assert (code, out) == (0, f"nothing to push: {server.url}/alice/both has these 5 files, of commit {commit}\n")
    assert not server.requests_for("POST|PUT")
    facts = json.loads((copied / "plain/export/export.json").read_text())
    del facts["files"]["model.pt2"]
    (copied / "plain/export/export.json").write_text(json.dumps(facts))
    code, out, _ = pushed("plain", "alice/both")
    assert code == 0 and "removed       model.pt2: of an earlier export" in out
    assert repository(server, "alice/both").keys() == before.keys() - {"model.pt2"}
    assert server.requests_for("PUT") == []


@pytest.mark.parametrize("after", [0, 100_000])
def test_a_rerun_after_a_lost_connection_sends_only_what_is_missing(
    after: int, server: HubServer, copied: Path, pushed: Push, sentence: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights arrive; of model.pt2 some bytes do, at each of huggingface_hub's own attempts."""
    waited: list[float] = []
    monkeypatch.setattr(_http.time, "sleep", waited.append)
    lost = sha256(copied / "plain/export/model.pt2")
    server.refuse(f"PUT /objects/{lost}", 0, after=after, times=6)
    said = sentence("plain", "alice/plain", "--private")
    assert said.startswith(
        f"error: plain is not pushed to alice/plain, because the connection to the hub ({server.url}"
    )
    assert said.endswith("rerun `resnet-cifar push plain alice/plain --private`, which uploads only what is missing\n")
    assert len(waited) == 5
    assert repository(server, "alice/plain") == {}, "nothing is committed"
    weights = sha256(copied / "plain/model/model.safetensors")
    assert server.uploads.objects.keys() == {weights}
    server.requests.clear()
    code, out, _ = pushed("plain", "alice/plain", "--private")
    assert code == 0
    assert server.requests_for("PUT") == [f"PUT /objects/{lost}"]
    assert len(server.requests_for("POST .*/commit/")) == 1
    assert re.search(r"^already there 1 file, [\d,]+ bytes: model.safetensors$", out, re.MULTILINE)
    assert server.uploads.private == {"alice/plain"} and f"pushed to {server.url}/alice/plain (private)" in out


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("GET /api/whoami", 503, "cannot be used now, it answers 503 (refused): later, rerun `resnet-cifar push"),
        ("POST /api/repos/create", 429, "cannot be used now, it answers 429 (refused): later, rerun"),
        ("POST .*/objects/batch", 413, "refuses the files with status 413 (refused): correct that, then rerun"),
        ("POST .*/commit/", 500, "cannot be used now, it answers 500"),
        ("POST .*/commit/", 403, "does not let this token write there (refused): use a token that may write there"),
        ("POST .*/commit/", 412, "somebody else has changed it at the same time (refused): rerun"),
        ("POST .*/commit/", 0, "the connection to the hub"),
        ("GET /api/models/", 0, "the connection to the hub"),
        ("POST /api/validate-yaml", 400, "refuses the files with status 400 (refused): correct that"),
    ],
)
def test_a_refusal_is_one_sentence_and_commits_nothing(
    path: str, status: int, said: str, server: HubServer, copied: Path, pushed: Push, sentence: Callable
) -> None:
    server.refuse(path, status, times=1)
    assert said in sentence("plain", "alice/plain")
    if (server.root / "models/alice/plain").is_dir():
        assert repository(server, "alice/plain") == {}
    assert pushed("plain", "alice/plain")[0] == 0, "the rerun"


def test_accounts(
    server: HubServer, copied: Path, pushed: Push, sentence: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "does not let this token write there" in sentence("plain", "bob/plain")
    assert pushed("plain", "lab/plain")[0] == 0, "an organization of hers"
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    assert "does not let this token write there" in sentence("plain", "lab/plain2")
    with (copied / "plain/export/README.md").open("a") as card:
        card.write("changed")
    assert "does not let this token write there" in sentence("plain", "lab/plain"), "a name that is taken"
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    said = sentence("plain", "alice/plain")
    assert "does not accept the token of HF_TOKEN: correct or unset HF_TOKEN" in said and "hf_revoked" not in said
    monkeypatch.delenv("HF_TOKEN")
    asked = len(server.requests)
    assert sentence("plain", "alice/plain") == (
        "error: pushing to alice/plain takes a token that may write there: run `hf auth login`, or set HF_TOKEN\n"
    )
    assert len(server.requests) == asked
    Path(constants.HF_TOKEN_PATH).parent.mkdir(parents=True, exist_ok=True)
    Path(constants.HF_TOKEN_PATH).write_text("hf_revoked")
    assert "does not accept the token: run `hf auth login`" in sentence("plain", "alice/plain")
    server.uploads.readers = {TOKEN}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "does not let this token write there" in sentence("plain", "alice/plain")
    Path(constants.HF_TOKEN_PATH).unlink()


def test_what_others_have_made_is_not_changed(
    server: HubServer, copied: Path, pushed: Push, sentence: Callable
) -> None:
    assert pushed("plain", "alice/plain")[0] == 0
    assert sentence("plain", "alice/plain", "--private") == (
        f"error: --private: alice/plain exists and is public: make it private at {server.url}/alice/plain/settings, or "
        "remove --private\n"
    )
    server.uploads.private = {"alice/plain"}
    assert pushed("plain", "alice/plain", "--private")[0] == 0
    other = server.root / "models/alice/bert"
    other.mkdir()
    (other / "README.md").write_text("---\ntags: [text]\n---\n")
    (other / "model.safetensors").write_bytes(b"weights")
    server.uploads.commits["alice/bert"] = ["2" * 40]
    assert "alice/bert is taken by a model that resnet-cifar has not pushed" in sentence("plain", "alice/bert")
    (other / "model.safetensors").unlink()  # made on the page of the hub: it has a card at most
    assert pushed("plain", "alice/bert")[0] == 0


def test_only_what_was_verified_is_pushed(
    server: HubServer, copied: Path, pushed: Push, sentence: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = copied / "plain/export/model.pt2"
    original = program.read_bytes()
    program.write_bytes(original[:-1] + b"x")
    assert "plain/export/model.pt2 is not the file that was verified: export again, or remove" in sentence(
        "plain", "alice/plain"
    )
    program.write_bytes(original)
    shutil.copytree(copied / "plain/export", copied / "cifar/export")
    assert "cifar/export is of other weights than cifar/model: export again, or remove" in sentence(
        "cifar", "alice/cifar"
    )
    shutil.rmtree(copied / "cifar/export")
    (copied / "cifar/export/unverified").mkdir(parents=True)
    (copied / "cifar/export/unverified/model.onnx").write_text("refused")
    config = json.loads((copied / "cifar/model/config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (copied / "cifar/model/config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "argv", ["resnet-cifar", "push", "cifar", "alice/cifar"])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 4
    assert not server.requests_for("POST|PUT")


def test_mistakes_that_need_no_hub_ask_none(
    server: HubServer, copied: Path, sentence: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("plain", "a/b/c", "alice/.x", "alice/a b", "https://huggingface.co/alice/plain", "hf-hub:alice/plain"):
        assert f"{name!r} cannot be a repository of the Hub: use OWNER/NAME" in sentence("plain", name)
    with monkeypatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        assert sentence("plain", "alice/plain") == "error: HF_HUB_OFFLINE=1 forbids uploads: unset HF_HUB_OFFLINE\n"
    with monkeypatch.context() as patch:
        for variable, value in {
            "RANK": 0,
            "LOCAL_RANK": 0,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "h",
            "MASTER_PORT": 1,
        }.items():
            patch.setenv(variable, str(value))
        with pytest.raises(UserError, match="push runs in one process: run it without a launcher"):
            push.parse_arguments(["plain", "alice/plain"])
    assert server.requests == []
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    assert "the connection to the hub (http://127.0.0.1:9, from HF_ENDPOINT) failed" in sentence("plain", "alice/plain")


TRANSFORMERS = """
import sys
import torch, timm
if sys.argv[1] == "cifar":
    import resnet_cifar
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(f"alice/{sys.argv[1]}").eval()
images = torch.rand(5, 3, 48, 48, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    found = model(pixel_values=images).logits
    assert torch.equal(found, timm.create_model(f"local-dir:{sys.argv[1]}/model", pretrained=True).eval()(images))
print(type(model).__name__, model.config.id2label[3])
"""


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("name", ["plain", "cifar"])
def test_transformers_loads_it_with_equal_logits(name: str, server: HubServer, copied: Path, pushed: Push) -> None:
    assert pushed(name, f"alice/{name}")[0] == 0
    done = command("-c", TRANSFORMERS, name)
    labels = json.loads((copied / name / "model/config.json").read_text())["label_names"]
    assert done.stdout == f"TimmWrapperForImageClassification {labels[3]}\n", done.stderr
