"""Initial weights from the exported model of a finished run (`model.init_from`)."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from resnet_cifar.config.errors import UserError
from resnet_cifar.models import mlp_head
from resnet_cifar.models.mlp_head import head_module


def load_init_weights(model: nn.Module, run: str) -> None:
    """Loads the weights of RUN/model; if the heads differ, the model keeps its own. Raises UserError."""
    names = check_init_weights(model, run)
    weights = load_file(Path(run) / "model" / "model.safetensors")
    model.load_state_dict({name: weights[name] for name in names}, strict=False)


def check_init_weights(model: nn.Module, run: str) -> list[str]:
    """The names of the weights in RUN/model that `model` can load, by their shapes.

    Raises UserError if there are none, or if the architecture differs.
    """
    file = Path(run) / "model" / "model.safetensors"
    if not file.is_file():
        raise UserError(f"model.init_from {run!r} has no {file.relative_to(run)}: name the folder of a finished run")
    try:
        with safe_open(file, "pt") as saved:
            theirs = {name: tuple(saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"model.init_from {run!r}: {file} cannot be read ({error}): name the folder of a finished run"
        ) from None
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stock = model.pretrained_cfg.get("classifier") or ()
    stock = (stock,) if isinstance(stock, str) else tuple(stock)
    own = (name for name, module in model.named_modules() if module is head_module(model))
    heads = tuple(f"{name}." for name in (*stock, *own, mlp_head.NAME))

    def body(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in shapes.items() if not name.startswith(heads)}

    if body(theirs) != body(ours):
        raise UserError(f"model.init_from {run!r} holds another architecture than model.name: use the run's own model")
    return list(ours if theirs == ours else body(ours))
