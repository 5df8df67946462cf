"""world.py on this process alone; several processes are tests/distributed."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from resnet_cifar.config.errors import NodeError, UserError
from resnet_cifar.distributed import context as context_module
from resnet_cifar.distributed import launcher_env
from resnet_cifar.distributed.context import DistributedContext


def test_a_run_is_left_where_what_followed_it_on_this_machine_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launcher_env.FOLLOWER, raising=False)
    assert not launcher_env.follower_is_gone()
    ((name, here),) = launcher_env.follower_env().items()
    host, _, number = here.rpartition(":")
    monkeypatch.setenv(name, here)
    assert int(number) == os.getpid() and not launcher_env.follower_is_gone()
    process = subprocess.Popen([sys.executable, "-c", ""])
    monkeypatch.setenv(name, f"{host}:{process.pid}")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert launcher_env.follower_is_gone(), "a zombie"
    process.wait()
    assert launcher_env.follower_is_gone()
    monkeypatch.setenv(name, f"another-{host}:{process.pid}")
    assert not launcher_env.follower_is_gone(), "nobody here can know"


def test_a_single_gpu_has_its_number(monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    """Accelerate says `cuda` to a process that is alone, and the device's own generator is found by number."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert DistributedContext("no").device == torch.device("cuda", 3)


class TestPrecision:
    """What `precision auto` becomes, on pretended devices."""

    @pytest.fixture(autouse=True)
    def _gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_gpu, self.native = True, True
        monkeypatch.setattr(torch.cuda, "is_available", lambda: self.has_gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: self.native)

    def test_bf16_on_a_gpu_that_has_it(self) -> None:
        assert launcher_env.resolve_precision("auto")[0] == "bf16"

    def test_float32_on_an_older_gpu_and_on_a_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.native = False
        precision, why = launcher_env.resolve_precision("auto")
        assert precision == "no" and "fp16 is faster" in why
        self.native, self.has_gpu = True, False
        assert launcher_env.resolve_precision("auto") == ("no", "auto: float32 on a CPU")
        self.has_gpu = True
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        assert launcher_env.resolve_precision("auto")[0] == "no"

    @pytest.mark.parametrize("asked", ["bf16", "fp16"])
    def test_what_the_launcher_asks_for(self, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.native = False
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        precision, why = launcher_env.resolve_precision("auto")
        assert precision == asked and "accelerate launch" in why

    def test_the_launchers_no_asks_for_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        assert launcher_env.resolve_precision("auto")[0] == "bf16"

    def test_what_the_recipe_says_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
        assert launcher_env.resolve_precision("no") == ("no", "as the recipe says")

    def test_what_the_launcher_cannot_ask_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
        with pytest.raises(
            UserError, match=r"fp8 of accelerate launch \(ACCELERATE_MIXED_PRECISION=fp8\) is not supported"
        ):
            launcher_env.resolve_precision("auto")

    def test_gpus_of_one_run_agree(self, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
        self.has_gpu = False
        context_module = DistributedContext("auto")
        assert context_module.describe_precision() == "float32 (auto: float32 on a CPU)"
        monkeypatch.setattr(context_module, "run_on_main", lambda work: "bf16")
        with pytest.raises(NodeError, match=r"precision auto is bf16 on rank 0 and no on this machine.*--precision"):
            context_module._check_same_precision()


@pytest.mark.parametrize("deterministic", [False, True])
def test_tf32_and_cudnns_search_are_on_unless_results_must_repeat(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(device=torch.device("cuda", 0))
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        context_module._set_up_gpu_arithmetic(deterministic)
        assert [matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark] == [not deterministic] * 3
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        assert DistributedContext.uses_tf32.fget(gpu) is not deterministic
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert not DistributedContext.uses_tf32.fget(gpu), "a GPU that has none"
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


class TestCompilation:
    def test_a_mode_of_ours_wins_and_sizes_are_never_symbolic(
        self, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None
    ) -> None:
        assert context_module._dynamo_plugin("").to_kwargs()["dynamic"] is False
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
        assert DistributedContext("no").describe().endswith("compiled with eager")
        asked = context_module._dynamo_plugin("max-autotune-no-cudagraphs").to_kwargs()
        assert (asked["backend"], asked["mode"], asked["dynamic"]) == ("inductor", "max-autotune-no-cudagraphs", False)

    @pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
    def test_cuda_graphs_and_several_processes_are_refused(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        context_module._dynamo_plugin(mode)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match=rf"mode {mode} uses CUDA graphs.*max-autotune-no-cudagraphs"):
            context_module._dynamo_plugin(mode)


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        # `srun --ntasks 2 python train.py`, without a launcher
        ("SLURM_STEP_NUM_TASKS", "2", "each believes that it is alone"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps 4"),
    ],
)
def test_an_environment_that_would_change_the_run_is_refused(
    variable: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=sentence):
        DistributedContext("no")
