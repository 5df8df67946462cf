"""The fields of a recipe: frozen dataclasses, one documented line per field.

The recipe determines the result of a run; processes and machines (accelerate_configs/) only determine its speed. Nothing
heavy is imported here, so that an invalid recipe is reported immediately.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

# What `track.trackers` accepts: the class of each tracker, imported when it is used. Register a new tracker here.
TRACKERS = {
    "wandb": "resnet_cifar.tracking.wandb:WandbTracker",
    "trackio": "resnet_cifar.tracking.trackio:TrackioTracker",
    "tensorboard": "resnet_cifar.tracking.tensorboard:TensorBoardTracker",
}


def _word_no(value: Any) -> Any:
    return "no" if value is False else value  # YAML 1.1 reads a bare `no` as False


def _word_null(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() in ("null", "none") else value


def _trackers(value: Any) -> str:
    """`wandb,tensorboard` of a YAML list or a word of the command line; what YAML reads as no or null is `none`."""
    words = value if isinstance(value, list | tuple) else [value] if value is None else str(value).split(",")
    names = ["none" if word in (None, False) else str(word).strip() for word in words]
    names = ["none" if name.lower() in ("no", "false", "null", "none") else name for name in names]
    for name in names:
        if name not in (*TRACKERS, "none"):
            raise ValueError(f"{name!r} is none of {', '.join(TRACKERS)} and none")
        if names.count(name) > 1:
            raise ValueError(f"{name} stands there twice: name it once")
    if not names or ("none" in names and len(names) > 1):
        raise ValueError("name trackers, or none alone")
    return ",".join(names)


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("it should be a number")
    return value


def _no_empty(value: Any) -> Any:
    if value == "":
        raise ValueError("it should not be empty")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Name = Annotated[str, BeforeValidator(_no_empty)]
_ROWS = TypeAdapter(Annotated[Whole, Field(ge=0)])


def _rows_or_auto(value: Any) -> Any:
    if value == "auto":
        return value
    try:
        return _ROWS.validate_python(value)
    except ValidationError:
        raise ValueError("it should be `auto` or a whole number, 0 or more") from None


def _dims(value: Any) -> Any:
    """`128,64` of a YAML list, a number or a command-line word; nothing, or `none`, is the empty list."""
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    if len(words) == 1 and str(words[0]).strip().lower() in ("", "none", "null"):
        words = []
    try:
        return _DIMS.validate_python(words)
    except ValidationError:
        raise ValueError("it should be whole numbers from 1 to 65536, such as `128,64`, or none") from None


_DIMS = TypeAdapter(tuple[Annotated[Whole, Field(ge=1, le=65536)], ...])
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class SplitNames:
    """What a source calls its splits, where that is not found."""

    __pydantic_config__ = _STRICT

    train: str = ""
    """The split to train on [found: train, or the only one there is]."""
    test: str = ""
    """The split to test on [found: test or validation, the first with labels; else data.test_fraction cuts one]."""


@dataclass(frozen=True)
class Columns:
    """What a source calls its images and labels, where that is not found."""

    __pydantic_config__ = _STRICT

    image: str = ""
    """The column (or array of an .npz file, or ids of a CSV) that holds the images [found: the only image column]."""
    label: str = ""
    """The column that holds the labels: numbers or names [found: the one with most classes]."""


@dataclass(frozen=True)
class Data:
    """The images: where they come from and how large the network sees them."""

    __pydantic_config__ = _STRICT

    source: Name = "uoft-cs/cifar10"
    """The hub's OWNER/NAME; a folder of pictures, tables or CIFAR's batches; .npz, .zip, .7z, .tar.gz; `synthetic`."""
    config_name: str = ""
    """The hub set's configuration [its default one]."""
    splits: SplitNames = field(default_factory=SplitNames)
    columns: Columns = field(default_factory=Columns)
    skip_broken: bool = False
    """Leave out, and name, images that do not decode or have no valid label, instead of ending there."""
    decode_size: Annotated[Whole, Field(ge=0, le=1024)] = 0
    """Side of the stored images, pixels; 0: their own where all have one size, else image_size (resized, cropped)."""
    storage: Literal["auto", "device", "host"] = "auto"
    """Images in the device's memory, or read ahead from disk; `auto`: the device, up to half of its free memory."""
    test_fraction: Annotated[Number, Field(gt=0, le=1)] = 0.1
    """Fraction cut off as test split where the source has none with labels, stratified; 1: all, to be scored on."""
    limit: Annotated[Whole, Field(ge=0)] = 0
    """Images kept of each split, stratified by class, before the validation cut; 0 keeps all."""
    validation_fraction: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    """Fraction of the training images held out, stratified, to choose the best checkpoint; 0: the last one counts."""
    overfit_images: Annotated[Whole, Field(ge=0)] = 0
    """N > 0: train on N images without augmentation and validate on the same N, to prove that the model can learn."""
    image_size: Annotated[Whole, Field(ge=8, le=1024)] = 224
    """Side of the square the network sees, pixels; images are resized on the device."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bicubic"
    """How images are resized."""
    normalize: Literal["model", "none"] = "model"
    """`model`: the mean and standard deviation of the model's pretraining; `none`: pixels stay in 0..1."""


@dataclass(frozen=True)
class Augment:
    """Random changes of training images, drawn from (seed, step, row) on every device alike."""

    __pydantic_config__ = _STRICT

    crop_padding: Annotated[Whole, Field(ge=0, le=64)] = 4
    """Random crop after reflect-padding by this many pixels (at the stored size); 0 is off."""
    flip: Literal["none", "random", "alternating"] = "random"
    """Horizontal flip: in half of the cases, or alternating from epoch to epoch (airbench)."""
    trivial_augment: bool = False
    """TrivialAugment Wide (Mueller & Hutter 2021): one random operation an image, after the flip, before cutout."""
    cutout: Annotated[Whole, Field(ge=0)] = 0
    """Side of the square that is blanked, pixels at the stored size (DeVries & Taylor 2017); 0 is off."""
    random_erasing: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Probability of random erasing (Zhong et al. 2017); 0 is off."""
    mixup_alpha: Annotated[Number, Field(ge=0)] = 0.0
    """Beta's alpha of Mixup (Zhang et al. 2017), 0 is off; with CutMix on too, each pair draws one of the two."""
    cutmix_alpha: Annotated[Number, Field(ge=0)] = 0.0
    """Beta's alpha of CutMix (Yun et al. 2019), 0 is off."""


@dataclass(frozen=True)
class Head:
    """What makes classes of the model's last features."""

    __pydantic_config__ = _STRICT

    pool: Literal["model", "avg", "max", "flatten"] = "model"
    """`model`: as timm's model pools (the mean of the last feature map, a ViT's class token); `flatten`: not at all."""
    hidden_dims: Annotated[tuple[int, ...], PlainValidator(_dims)] = ()
    """Units of dense layers with ReLU before the classifier, such as `128,64` [none: the classifier alone]."""
    norm: bool = False
    """BatchNorm before each of these layers and the classifier, with Keras's momentum (0.99) and epsilon (1e-3)."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Dropout probability after each ReLU (of the features where there are no hidden layers); keyed by row."""
    init: Literal["auto", "glorot"] = "auto"
    """`glorot`: Keras's uniform weights and zero biases; `auto`: timm's, or a zero classifier on pretrained weights."""

    @property
    def is_deep(self) -> bool:
        """Whether it is more than the classifier that timm gives its model."""
        return dataclasses.replace(self, init="auto") != Head()


@dataclass(frozen=True)
class Model:
    """The network."""

    __pydantic_config__ = _STRICT

    name: Name = "resnet50.a1_in1k"
    """Any timm classifier, with or without a weight tag (`timm.list_models()`)."""
    pretrained: bool = True
    """Start from timm's pretrained weights, with a new head that starts at zero."""
    init_from: str = ""
    """Start from the model of this run folder, whatever `pretrained` says; a head of other classes starts anew."""
    stem: Literal["imagenet", "cifar", "auto"] = "imagenet"
    """`cifar`: a 3x3 first convolution of stride 1 and no max-pool, for ResNets on small images; `auto`: for them."""
    head: Head = field(default_factory=Head)
    ghost_batch_size: Annotated[Annotated[Whole, Field(ge=2)] | None, BeforeValidator(_word_null)] = 32
    """BatchNorm sees groups of exactly this many rows, on any number of devices; null: the device's share."""
    drop_path: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Highest probability of dropping a residual branch (stochastic depth, Huang et al. 2016), timm's; 0 is off."""
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Decay of the weights' moving average, which is then what is scored and exported; 0 is off."""


@dataclass(frozen=True)
class Optimizer:
    """How weights are updated."""

    __pydantic_config__ = _STRICT

    name: Name = "sgd"
    """One of `timm.optim.list_optimizers()` (`sgd` is Nesterov with momentum 0.9), or `rmsprop_keras`."""
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-5
    """Weight decay; norms and biases have none."""
    clip_grad_norm: Annotated[Number, Field(ge=0)] = 0.0
    """Largest global gradient norm; 0 is off."""
    head_lr_multiplier: Annotated[Number, Field(gt=0)] = 1.0
    """The head learns at this multiple of the rate."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Each layer learns at this multiple of the rate of the one after it (ELECTRA, BEiT); 1 is off."""


@dataclass(frozen=True)
class Loss:
    """Cross-entropy."""

    __pydantic_config__ = _STRICT

    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the label spread over all classes."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with a rate of its own."""

    __pydantic_config__ = _STRICT

    epochs: Annotated[Number, Field(gt=0)]
    """Passes over the training images; steps are rounded and printed."""
    lr: Annotated[Number, Field(gt=0)]
    """Peak learning rate."""
    warmup_epochs: Annotated[Number, Field(ge=0)] = 0.0
    """Epochs of linear warm-up from 0 to the peak."""
    schedule: Literal["cosine", "linear", "step", "one-cycle", "constant"] = "cosine"
    """From the peak over the rest of the phase; `step`: a tenth at 1/2 and 3/4; `one-cycle` has its own warm-up."""
    trainable: Literal["all", "head"] = "all"
    """What learns; `head`: the head alone, and the rest, its BatchNorm too, stays as it is."""
    image_size: Annotated[Annotated[Whole, Field(ge=8, le=1024)] | None, BeforeValidator(_word_null)] = None
    """Side of the square in this phase's training; null: data.image_size, at which scores are always taken."""


@dataclass(frozen=True)
class Evaluate:
    """When the model is scored on the validation split."""

    __pydantic_config__ = _STRICT

    every_epochs: Annotated[Number, Field(ge=0.01)] = 1.0
    """Epochs between scores; the end of training is always scored."""


@dataclass(frozen=True)
class EarlyStopping:
    """Ending training when the validation split no longer gains."""

    __pydantic_config__ = _STRICT

    patience: Annotated[Whole, Field(ge=0)] = 0
    """Scores in a row without an improvement after which training ends; 0: it never ends early."""
    metric: Literal["accuracy", "loss"] = "accuracy"
    """What should improve on the validation split."""
    min_delta: Annotated[Number, Field(ge=0)] = 0.0
    """An improvement is more than this, in the metric's unit (accuracy is 0..1)."""


@dataclass(frozen=True)
class Checkpoint:
    """What is kept on disk while training."""

    __pydantic_config__ = _STRICT

    every_steps: Annotated[Whole, Field(ge=0)] = 0
    """Steps between checkpoints, besides those at every score; 0 is off."""
    every_minutes: Annotated[Number, Field(ge=0)] = 10.0
    """Minutes between checkpoints, at the next row of metrics.jsonl; 0 is off."""
    every_epochs: Annotated[Number, Field(ge=0)] = 0.0
    """Epochs between checkpoints; 0 is off."""
    keep_last: Annotated[Whole, Field(ge=1)] = 2
    """Newest checkpoints kept; the best one is kept besides. Two, so that a damaged one has one before it."""


@dataclass(frozen=True)
class Track:
    """Where curves are drawn."""

    __pydantic_config__ = _STRICT

    trackers: Annotated[str, BeforeValidator(_trackers)] = "wandb"
    """`wandb` (offline in the run folder where there is no account), `trackio`, `tensorboard`, several, or `none`."""
    project: Name = "resnet-cifar"
    """The trackers' project."""
    report: bool = True
    """Write RUN/report/index.html when training is over; `resnet-cifar report RUN` does so at any time."""


@dataclass(frozen=True)
class Recipe:
    """What a run is. Everything but `track`, `checkpoint`, `evaluate`, `rank_timeout` and `data.storage` decides how it
    trains."""

    __pydantic_config__ = _STRICT

    seed: Annotated[Whole, Field(ge=0)] = 0
    """Of everything random: weights, order, augmentation, splits."""
    precision: Annotated[Literal["auto", "no", "bf16", "fp16", "fp64"], BeforeValidator(_word_no)] = "auto"
    """`auto`: what the launcher asks for, else bf16 on GPUs that have it; `no` is float32; `fp64` is for proofs."""
    batch_size: Annotated[Whole, Field(ge=2)] = 256
    """The global batch: images one optimiser step learns from, on any number of devices."""
    micro_batch: Annotated[int | Literal["auto"], PlainValidator(_rows_or_auto)] = 0
    """Images of one backward pass on one device, to fit its memory; 0: the device's whole share; `auto`: what fits."""
    deterministic: bool = False
    """Only operations that repeat to the bit, on GPUs too (slower; an operation that has no such form is refused)."""
    rank_timeout: Annotated[Number, Field(ge=2)] = 300.0
    """Seconds without a sign of life, or without progress in training, after which other processes give a rank up."""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    loss: Loss = field(default_factory=Loss)
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)] = (Phase(epochs=20.0, lr=0.02),)
    """Trained one after the other."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    track: Track = field(default_factory=Track)
