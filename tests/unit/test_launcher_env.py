"""The launcher's variables: empty is unset, and a contradiction is one sentence that names where it comes from."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import psutil
import pytest
import torch
from accelerate.commands import launch
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from resnet_cifar.cli import entry
from resnet_cifar.config.errors import NodeError, RankError, UserError
from resnet_cifar.distributed import launch_origin, launcher_env
from resnet_cifar.distributed.launcher_env import Place, check_devices, check_launcher, is_reported_elsewhere, place

TWO = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
ROOT = Path(__file__).parents[2]
LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_MODE": "default"}


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Checks remove variables, which come back after each test."""
    with mock.patch.dict(os.environ):
        yield


def check(**variables: str) -> None:
    os.environ.update(variables)
    check_launcher()


def refused(**variables: str) -> str:
    with pytest.raises(UserError) as error:
        check(**variables)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("blank", ["", " "])
def test_empty_variables_are_unset(blank: str) -> None:
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT", "PMI_SIZE", "OMP_NUM_THREADS", "ACCELERATE_USE_CPU")
    names += ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "HF_HOME", "HF_ENDPOINT", "WANDB_MODE", "TRACKIO_DIR")
    check(**dict.fromkeys(names, blank), CUDA_VISIBLE_DEVICES="")
    assert place() is None
    assert not {*names} & os.environ.keys()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "it hides the GPUs"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "PMI_SIZE": "1", "MASTER_PORT": "none"},
        {"PMI_SIZE": "1", "PMI_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"},  # of a batch script, whose job has more tasks than this one
        {"MASTER_ADDR": "host", "MASTER_PORT": "29500"},
        {"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"},
    ],
)
def test_one_process(variables: dict[str, str]) -> None:
    check(**variables)
    assert place() is None
    assert not {"RANK", "LOCAL_RANK"} & os.environ.keys(), "Accelerate would form a process group"


def test_several_processes() -> None:
    check(**TWO, PMI_SIZE="4", SLURM_STEP_NUM_TASKS="2")  # of the launchers, one per machine
    assert place() == Place(1, 2, "host", 29500)
    assert place().address == "host:29500 (WORLD_SIZE=2)"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3 is set without WORLD_SIZE: unset LOCAL_RANK to use one process"),
        ({"RANK": "1"}, "RANK=1 is set without WORLD_SIZE: unset RANK to use one process"),
        ({"RANK": "0", "LOCAL_RANK": "0"}, "RANK=0 LOCAL_RANK=0 is set without WORLD_SIZE: unset RANK LOCAL_RANK"),
        ({"LOCAL_WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE=2 is set without WORLD_SIZE"),
        ({**TWO, "RANK": "2"}, "RANK=2 LOCAL_RANK=1 WORLD_SIZE=2 contradict each other"),
        ({**TWO, "RANK": "0"}, "RANK=0 LOCAL_RANK=1 WORLD_SIZE=2 contradict each other"),
        ({**TWO, "LOCAL_WORLD_SIZE": "1"}, "LOCAL_WORLD_SIZE=1 contradict each other"),
        ({**TWO, "LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE=4 contradict each other"),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "3", "RANK": "3"}, "contradict each other"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 should be 1 or more"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({**TWO, "MASTER_ADDR": ""}, "is set without MASTER_ADDR"),
        ({**TWO, "MASTER_PORT": "port"}, "MASTER_PORT=port should be a whole number"),
        ({**TWO, "MASTER_PORT": "0"}, "MASTER_PORT=0 is no port"),
        ({**TWO, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
        ({**TWO, "OMP_NUM_THREADS": "4,2"}, "OMP_NUM_THREADS=4,2 should be a whole number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two should be a whole number"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 should be a whole number, 0 or more"),
        ({"RANK": "1.0"}, "RANK=1.0 should be a whole number"),
        ({"MV2_COMM_WORLD_LOCAL_RANK": "x"}, "MV2_COMM_WORLD_LOCAL_RANK=x should be a whole number"),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT=x should be"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "PMI_SIZE=2 says 2 processes, and each believes that it is alone"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "or unset OMPI_COMM_WORLD_SIZE if it is left over"),
        ({"MV2_COMM_WORLD_SIZE": "4"}, "MV2_COMM_WORLD_SIZE=4 says 4 processes"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2 says 2 processes"),
        ({"ACCELERATE_USE_CPU": "maybe"}, "ACCELERATE_USE_CPU=maybe should be true or false"),
        ({"ACCELERATE_DYNAMO_USE_FULLGRAPH": "2"}, "ACCELERATE_DYNAMO_USE_FULLGRAPH=2 should be true or false"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP (ACCELERATE_USE_FSDP=true) is not supported"),
        ({"ACCELERATE_USE_FSDP": "1"}, "unset ACCELERATE_USE_FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed (ACCELERATE_USE_DEEPSPEED=true)"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM (ACCELERATE_USE_MEGATRON_LM=true)"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "tensor, context or sequence parallelism ("),
        ({"ACCELERATE_USE_SAGEMAKER": "true"}, "SageMaker's data parallelism ("),
        ({"ACCELERATE_TORCH_DEVICE": "cuda:1"}, "ACCELERATE_TORCH_DEVICE=cuda:1 is not supported"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "four"}, "gradient_accumulation_steps four ("),
        ({"ACCELERATE_MIXED_PRECISION": "fp32"}, "ACCELERATE_MIXED_PRECISION=fp32) is not supported: use no, bf16"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "ACCELERATE_MIXED_PRECISION=fp8) is not supported"),
        ({"ACCELERATE_DYNAMO_BACKEND": "TENSORRT"}, "backend TENSORRT (ACCELERATE_DYNAMO_BACKEND=TENSORRT) is not one"),
        ({"ACCELERATE_DYNAMO_MODE": "fast"}, "mode fast (ACCELERATE_DYNAMO_MODE=fast) is not one of default"),
    ],
)
def test_contradictions_name_the_variable(variables: dict[str, str], sentence: str) -> None:
    assert sentence in refused(**variables)


def test_what_a_sentence_advises_works() -> None:
    """Every variable that a sentence says to unset is enough."""
    leftover = {**TWO, "MASTER_ADDR": "", "PMI_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}
    os.environ.update(leftover)
    for _ in range(5):
        try:
            check_launcher()
        except UserError as error:
            for name in re.search(r"unset ([A-Z_ ]+)", str(error))[1].split():
                del os.environ[name]
        else:
            return
    pytest.fail("it never works")


class TestOrigin:
    """A parent process that pretends to be `accelerate launch`."""

    def launch(self, monkeypatch: pytest.MonkeyPatch, *words: str, **environment: str) -> None:
        command = [sys.executable, "/bin/accelerate", "launch", *words, "train.py", "--run", "a"]
        parent = SimpleNamespace(cmdline=lambda: command, environ=lambda: environment)
        monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parents=lambda: [parent]))
        os.environ.update(LAUNCHED)

    @pytest.mark.parametrize("home", ["HF_HOME", "XDG_CACHE_HOME", "HOME"])
    def test_the_file_that_accelerate_config_has_written(
        self, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        os.environ.pop("HF_HOME", None)
        os.environ[home] = str(tmp_path)
        places = {"HF_HOME": "", "XDG_CACHE_HOME": "huggingface", "HOME": ".cache/huggingface"}
        file = tmp_path / places[home] / "accelerate" / "default_config.yaml"
        file.parent.mkdir(parents=True)
        file.write_text("distributed_type: FSDP")
        self.launch(monkeypatch)
        sentence = refused(ACCELERATE_USE_FSDP="true")
        assert sentence.startswith(f"FSDP ({file}) is not supported")
        assert "use --config_file accelerate_configs/multi_gpu.yaml" in sentence

    @pytest.mark.parametrize("words", [("--config_file", "my.yaml"), ("--config-file=my.yaml",)])
    def test_a_file_of_the_command(
        self, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("my.yaml").write_text("mixed_precision: fp8")
        self.launch(monkeypatch, *words)
        assert "--mixed_precision fp8 of accelerate launch (my.yaml)" in refused(ACCELERATE_MIXED_PRECISION="fp8")

    def test_a_flag_of_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launch(monkeypatch, "--use_deepspeed")
        sentence = refused(ACCELERATE_USE_DEEPSPEED="true")
        assert "DeepSpeed (accelerate launch --use_deepspeed) is not supported" in sentence
        assert sentence.endswith("remove --use_deepspeed")

    def test_a_variable_that_the_launcher_had_already(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launch(monkeypatch, "--use_fsdp", ACCELERATE_USE_FSDP="true")
        assert "FSDP (ACCELERATE_USE_FSDP=true)" in refused(ACCELERATE_USE_FSDP="true")

    def test_an_address_left_over_is_no_request_for_several_processes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launch(monkeypatch, "--num_processes", "2")
        os.environ["MASTER_ADDR"] = "host"
        with pytest.raises(UserError, match=r"several processes \(accelerate launch --num_processes\) and started one"):
            check_devices(on_cpu=True)
        self.launch(monkeypatch, MASTER_ADDR="host")
        check_devices(on_cpu=True)

    def test_a_file_that_names_gpus_on_a_machine_without_any(self, monkeypatch: pytest.MonkeyPatch) -> None:
        os.environ.update(LAUNCHED)
        self.launch(monkeypatch, "--config_file", str(ROOT / "accelerate_configs/single_gpu.yaml"))
        with pytest.raises(NodeError, match=r"was configured for GPUs .* --config_file accelerate_configs/cpu\.yaml"):
            check_devices(on_cpu=True)
        self.launch(monkeypatch, "--config_file", str(ROOT / "accelerate_configs/cpu.yaml"))
        check_devices(on_cpu=True)

    def test_without_a_launcher_there_is_no_command(self) -> None:
        assert launch_origin.launch_command() is None
        os.environ.update(LAUNCHED)
        assert launch_origin.launch_command() is None


def test_a_process_without_a_gpu_of_its_own_is_refused_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for local in ("0", "3"):
        os.environ.update({**TWO, "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "RANK": local, "LOCAL_RANK": local})
        with pytest.raises(NodeError, match=rf"^LOCAL_RANK={local} of 4 processes on this machine, which has 2 GPUs"):
            check_devices(on_cpu=False)
    check_devices(on_cpu=True)


class TestPrinting:
    """A mistake is printed unless another rank is known to print it."""

    def printed(self, capsys: pytest.CaptureFixture[str], error: BaseException) -> str:
        def fail(arguments: list[str]) -> None:
            raise error

        entry.run(fail)
        return capsys.readouterr().err

    @pytest.mark.parametrize("error", [UserError("bad"), NodeError("bad")])
    @pytest.mark.parametrize("leftover", [{}, {"RANK": "1"}, {"LOCAL_RANK": "1", "RANK": "x"}, TWO])
    def test_by_a_process_that_knows_of_no_other(
        self, error: UserError, leftover: dict[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        os.environ.update(leftover)
        said = self.printed(capsys, error)
        assert said.startswith("error: ") and said.endswith("bad\n")

    @pytest.mark.parametrize("error", [UserError("bad"), NodeError("bad")])
    def test_by_rank_0_of_a_launcher(self, error: UserError, capsys: pytest.CaptureFixture[str]) -> None:
        os.environ.update({**TWO, "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1"})
        assert self.printed(capsys, error) == ""
        os.environ.update(RANK="0", LOCAL_RANK="0")
        assert self.printed(capsys, error) == "error: bad\n"

    def test_by_rank_0_once_they_have_met(self, monkeypatch: pytest.MonkeyPatch) -> None:
        os.environ.update(TWO)
        assert not is_reported_elsewhere()
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        assert is_reported_elsewhere()

    def test_by_itself_while_torch_is_being_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A signal may come then, and its thread must not fail on what is not there yet: the signal would be lost."""
        os.environ.update(TWO)
        monkeypatch.setitem(sys.modules, "torch.distributed", ModuleType("torch.distributed"))
        assert not is_reported_elsewhere()

    def test_another_ranks_failure_by_one_process_of_each_machine(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.printed(capsys, RankError("rank 0 failed", is_told_here=True)) == "error: rank 0 failed\n"
        assert self.printed(capsys, RankError("rank 0 failed", is_told_here=False)) == ""


def test_the_launchers_word_for_yes_is_accelerates(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("1", "true", "YES", "on", "y", "t"):
        monkeypatch.setenv("ACCELERATE_USE_CPU", word)
        assert launcher_env.wants_cpu()


def launched(config: str, **variables: str) -> dict[str, str]:
    """The environment of the process that `accelerate launch --config_file accelerate_configs/CONFIG.yaml` starts."""
    os.environ.update(variables)
    words = ["--config_file", str(ROOT / f"accelerate_configs/{config}.yaml"), "train.py"]
    arguments, *_ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    return prepare_simple_launcher_cmd_env(arguments)[1]


def test_one_process_gets_the_gpu_that_the_user_has_chosen() -> None:
    assert launched("single_gpu", CUDA_VISIBLE_DEVICES="3")["CUDA_VISIBLE_DEVICES"] == "3"


def test_the_advised_way_to_the_cpu_is_one() -> None:
    """accelerate launch replaces ACCELERATE_USE_CPU where it starts one process."""
    (file,) = re.findall(r"accelerate_configs/(\w+)\.yaml", refused(ACCELERATE_TORCH_DEVICE="cpu"))
    os.environ |= launched(file, ACCELERATE_USE_CPU="false")
    assert launcher_env.wants_cpu()
