"""The fields of a recipe: frozen dataclasses, one documented line per field.

The recipe determines the result of a run; processes and machines (accelerate_configs/) only determine its speed.
Nothing heavy is imported here, so that an invalid recipe is reported immediately.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

# What `track.trackers` accepts: the class of each tracker, imported when it is used. Register a new tracker here.
TRACKERS = {
    "wandb": "resnet_cifar.tracking.wandb:WandbTracker",
    "trackio": "resnet_cifar.tracking.trackio:TrackioTracker",
    "tensorboard": "resnet_cifar.tracking.tensorboard:TensorBoardTracker",
    "mlflow": "resnet_cifar.tracking.mlflow:MlflowTracker",
}

# The validation metrics that can select the best checkpoint and stop training early, by their names in text.
Metric = Literal["accuracy", "loss", "balanced_accuracy", "macro_f1"]
METRIC_NAMES = {
    "accuracy": "accuracy",
    "loss": "loss",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
}


def metric_score(row: Mapping[str, float], metric: str) -> float:
    """The validation metric `metric` of a row of metrics.jsonl, with a sign that makes larger better; NaN is worst."""
    value = row[f"val/{metric}"]
    return -math.inf if math.isnan(value) else -value if metric == "loss" else value


def selection_key(row: Mapping[str, float], metric: str) -> tuple[float, float]:
    """What is largest in the evaluation that is selected: the metric, and among equals the negative loss."""
    return metric_score(row, metric), metric_score(row, "loss")


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
            raise ValueError(f"{name} is listed twice: name it once")
    if not names or ("none" in names and len(names) > 1):
        raise ValueError("name trackers, or none alone")
    return ",".join(names)


def is_web_address(word: str) -> bool:
    """Whether the word is http://HOST or https://HOST, with or without more."""
    try:
        address = urllib.parse.urlsplit(word)
    except ValueError:  # a bracket of an IPv6 address is missing
        return False
    return address.scheme in ("http", "https") and bool(address.hostname)


def _notify(value: Any) -> str:
    word = "" if value in (None, False) else str(value).strip()
    kind, _, rest = word.partition(":")
    if word in ("", "wandb") or (kind in ("env", "slack") and rest.isidentifier()):
        return word
    if not is_web_address(word):
        raise ValueError("it should be https://HOST/PATH, env:VARIABLE, slack:VARIABLE or wandb")
    return word


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


def _items(value: Any) -> list[Any]:
    """The items of a YAML list, a number or a comma-separated word of the command line."""
    return value.split(",") if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [value]


def _words(value: Any) -> list[Any]:
    """Like `_items`, of a word also in brackets; those of `none` are none."""
    words = _items(value.strip().removeprefix("[").removesuffix("]") if isinstance(value, str) else value)
    return [] if len(words) == 1 and str(words[0]).strip().lower() in ("", "none", "null") else words


def _dims(value: Any) -> Any:
    """`128,64` or `[128, 64]` of a YAML list, a number or a word; nothing, or `none`, is the empty list."""
    try:
        return _DIMS.validate_python(_words(value))
    except ValidationError:
        raise ValueError("it should be whole numbers from 1 to 65536, such as `128,64`, or none") from None


def _value_range(value: Any) -> Any:
    """`0,4095` of a YAML list or a command-line word; nothing, or `none`, is the empty list."""
    with contextlib.suppress(ValidationError):
        numbers = _NUMBERS.validate_python(_words(value))
        if not numbers or (len(numbers) == 2 and numbers[0] < numbers[1]):
            return numbers
    raise ValueError("it should be two numbers, the smaller one first, such as `0,4095`, or none")


def _betas(value: Any) -> Any:
    """`0.9,0.95` of a YAML list or a command-line word; nothing, or `none`, is the empty list."""
    try:
        return _BETAS.validate_python(_words(value))
    except ValidationError:
        raise ValueError("it should be numbers from 0 to below 1, such as `0.9,0.95`, or none") from None


def _normalize(value: Any) -> Any:
    """`model`, `none`, or six numbers of a YAML list or a command-line word."""
    if value in ("model", "none"):
        return value
    with contextlib.suppress(ValidationError):
        numbers = _NUMBERS.validate_python(_words(value))
        if len(numbers) == _MEAN_AND_STD and min(numbers[3:]) > 0:
            return numbers
    raise ValueError(
        "it should be model, none, or mean and std of red, green and blue: six numbers, such as 0.5,0.5,"
        "0.5,0.25,0.25,0.25"
    )


_MEAN_AND_STD = 6
_NUMBERS = TypeAdapter(tuple[Number, ...])
_BETAS = TypeAdapter(tuple[Annotated[Number, Field(ge=0, lt=1)], ...])
_DIMS = TypeAdapter(tuple[Annotated[Whole, Field(ge=1, le=65536)], ...])


def _class_weights(value: Any) -> Any:
    """`none`, `balanced`, or the weights of a YAML list or of a command-line word such as `1,2.5`."""
    words = _items(value)
    if len(words) == 1 and str(words[0]).strip().lower() in ("none", "null", "no", "false", "balanced"):
        return "balanced" if str(words[0]).strip().lower() == "balanced" else "none"
    try:
        return _WEIGHTS.validate_python(words)
    except ValidationError:
        raise ValueError("it should be none, balanced, or one number above 0 per class, such as `1,2.5`") from None


_WEIGHTS = TypeAdapter(Annotated[tuple[Annotated[Number, Field(gt=0)], ...], Field(min_length=1)])
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class SplitNames:
    """The names of a source's splits, where they are not detected."""

    __pydantic_config__ = _STRICT

    train: str = ""
    """Training split [detected: train, or the only split]."""
    validation: str = ""
    """Validation split [detected: validation, valid, val, dev or eval; else data.validation_fraction cuts one off]."""
    test: str = ""
    """Test split [detected: test, if it has labels; else data.test_fraction cuts one off]."""


@dataclass(frozen=True)
class Columns:
    """The names of a source's image and label columns, where they are not detected."""

    __pydantic_config__ = _STRICT

    image: str = ""
    """Column (array of an .npz file, id column of a CSV file) of images [detected: the only image column]."""
    label: str = ""
    """Column of labels, numbers or names [detected: the one with the most classes]."""


@dataclass(frozen=True)
class Data:
    """The dataset, and the size at which the network sees it."""

    __pydantic_config__ = _STRICT

    source: Name = "uoft-cs/cifar10"
    """Hub id OWNER/NAME; a folder of images, tables or CIFAR's batches; .npz, .zip, .7z, .tar.gz; or `synthetic`."""
    config_name: str = ""
    """Configuration of a hub dataset [its default]."""
    revision: str = ""
    """Commit, tag or branch of a hub dataset [its newest commit]; a commit of 40 digits pins the images."""
    splits: SplitNames = field(default_factory=SplitNames)
    columns: Columns = field(default_factory=Columns)
    skip_broken: bool = False
    """Skip (and name) images that cannot be decoded or have no valid label, instead of stopping."""
    decode_size: Annotated[Whole, Field(ge=0, le=1024)] = 0
    """Side of the stored images, pixels; 0: their own if all have one size, at most four times the pixels that the
    network sees, else image_size (resized, cropped)."""
    decode_mode: Literal["crop", "pad"] = "crop"
    """How stored images become square: `crop` their center, or `pad` the whole image with ImageNet's mean color."""
    value_range: Annotated[tuple[float, ...], PlainValidator(_value_range)] = ()
    """Values that become black and white in images with more than 8 bits, such as 0,4095 [the training images' own]."""
    storage: Literal["auto", "device", "host"] = "auto"
    """Keep images in device memory, or read them ahead from disk; `auto`: device, up to half of its free memory."""
    test_fraction: Annotated[Number, Field(gt=0, le=1)] = 0.1
    """Stratified fraction cut off as the test split where the source has none with labels; 1: all, evaluation only."""
    limit: Annotated[Whole, Field(ge=0)] = 0
    """Images per split of the source, stratified by class, before a validation split is cut off; 0: all."""
    validation_fraction: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    """Stratified fraction of training images held out to select the best checkpoint; 0: none, the last one is used.
    Unused where the source has a validation split."""
    overfit_images: Annotated[Whole, Field(ge=0)] = 0
    """N > 0: train on N images without augmentation and validate on the same N, to check that the model can learn."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """`uniform`: every training image once per epoch; `balanced`: every class equally often, small ones repeatedly."""
    image_size: Annotated[Whole, Field(ge=8, le=1024)] = 224
    """Side of the square that the network sees, pixels; images are resized on the device."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bicubic"
    """Interpolation for resizing."""
    normalize: Annotated[Literal["model", "none"] | tuple[float, ...], PlainValidator(_normalize)] = "model"
    """`model`: mean and std of the model's pretraining; `none`: pixels stay in 0..1; or six numbers, three of each."""


@dataclass(frozen=True)
class Augment:
    """Random augmentations of training images, drawn from (seed, step, row), the same on every device."""

    __pydantic_config__ = _STRICT

    crop_padding: Annotated[Whole, Field(ge=0, le=64)] = 4
    """Random crop after reflect padding by this many pixels (at the stored size); 0: off."""
    random_resized_crop: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Smallest area of a random crop that is resized to the image size (0.35; ImageNet: 0.08); 0: off."""
    flip: Literal["none", "random", "alternating"] = "random"
    """Horizontal flip: at random, or alternating from epoch to epoch (airbench)."""
    trivial_augment: bool = False
    """TrivialAugment Wide (Mueller & Hutter 2021): one random operation per image."""
    rand_augment: Annotated[Whole, Field(ge=0, le=30)] = 0
    """RandAugment (Cubuk et al. 2020): two random operations per image of this magnitude, 1 to 30 (9); 0: off."""
    color_jitter: Annotated[Number, Field(ge=0)] = 0.0
    """Strength s of random brightness, contrast and saturation: factors of 1-s to 1+s (0.4); 0: off."""
    grayscale: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Probability of converting an image to gray; 0: off."""
    cutout: Annotated[Whole, Field(ge=0)] = 0
    """Side of the square that is blanked, pixels at the stored size (DeVries & Taylor 2017); 0: off."""
    random_erasing: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Probability of random erasing (Zhong et al. 2017); 0: off."""
    mixup_alpha: Annotated[Number, Field(ge=0)] = 0.0
    """Alpha of Mixup's Beta distribution (Zhang et al. 2017); 0: off. With CutMix, each pair uses one of the two."""
    cutmix_alpha: Annotated[Number, Field(ge=0)] = 0.0
    """Alpha of CutMix's Beta distribution (Yun et al. 2019); 0: off."""

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


@dataclass(frozen=True)
class Head:
    """The layers between the features and the classes."""

    __pydantic_config__ = _STRICT

    pool: Literal["model", "avg", "max", "flatten"] = "model"
    """`model`: as the timm model pools (mean of the last feature map, class token of a ViT); `flatten`: no pooling."""
    hidden_dims: Annotated[tuple[int, ...], PlainValidator(_dims)] = ()
    """Units of dense layers with ReLU before the classifier, such as `128,64` [none: the classifier alone]."""
    norm: bool = False
    """BatchNorm before each of these layers and the classifier, with Keras's momentum (0.99) and epsilon (1e-3)."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Dropout probability after each ReLU (of the features where there are no hidden layers); keyed by row."""
    init: Literal["auto", "glorot", "probe"] = "auto"
    """`auto`: timm's, or a zero classifier on pretrained weights; `probe`: logistic regression on pretrained features,
    evaluated as step 0; `glorot`: Keras's uniform weights and zero biases."""

    @property
    def is_deep(self) -> bool:
        """Whether it is more than timm's classifier."""
        return dataclasses.replace(self, init="auto") != Head()


@dataclass(frozen=True)
class Model:
    """The network."""

    __pydantic_config__ = _STRICT

    name: Name = "resnet50.a1_in1k"
    """Any timm classifier, with or without a weight tag (`timm.list_models()`); hf-hub:OWNER/NAME or local-dir:PATH."""
    pretrained: bool = True
    """Start from timm's pretrained weights, with a new zero-initialized head."""
    init_from: str = ""
    """Start from these weights instead: a run, a timm folder, a .safetensors file, hf-hub:OWNER/NAME or
    wandb:ENTITY/PROJECT/NAME:ALIAS."""
    stem: Literal["imagenet", "cifar", "auto"] = "imagenet"
    """`cifar`: 3x3 first convolution, stride 1, no max-pool (ResNets only); `auto`: `cifar` for ResNets."""
    head: Head = field(default_factory=Head)
    batchnorm: Literal["batch", "frozen"] = "batch"
    """Statistics that BatchNorm uses in training: the `batch`'s, or those of the pretrained weights (`frozen`)."""
    ghost_batch_size: Annotated[Annotated[Whole, Field(ge=2)] | None, BeforeValidator(_word_null)] = 32
    """BatchNorm statistics cover groups of this many rows on any number of devices; null: the device's share."""
    drop_path: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Largest probability of dropping a residual branch (stochastic depth, Huang et al. 2016); 0: off."""
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average of the weights, which is then evaluated and exported; 0: off."""

    @property
    def has_pretrained_features(self) -> bool:
        """Whether its body starts from trained weights, the first convolution included."""
        return bool(self.init_from) or (self.pretrained and self.stem != "cifar")

    @property
    def norm_rows(self) -> int | None:
        """`ghost_batch_size`; None if no layer normalizes by the statistics of a batch either."""
        return self.ghost_batch_size if self.batchnorm == "batch" or self.head.norm else None


@dataclass(frozen=True)
class Optimizer:
    """The optimizer."""

    __pydantic_config__ = _STRICT

    name: Name = "sgd"
    """One of `timm.optim.list_optimizers()` (`sgd` is Nesterov), or `rmsprop_keras`."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """Momentum, for optimizers that take one (SGD, LARS, Muon, RMSprop)."""
    betas: Annotated[tuple[float, ...], PlainValidator(_betas)] = ()
    """Decay rates of the moments of Adam and its relatives, such as `0.9,0.95` [the optimizer's own]."""
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-5
    """Weight decay; not applied to norms and biases."""
    clip_grad_norm: Annotated[Number, Field(ge=0)] = 0.0
    """Largest norm of the global gradient; 0: off."""
    head_lr_multiplier: Annotated[Number, Field(gt=0)] = 1.0
    """Multiplier of the learning rate of the head."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Multiplier of the learning rate from one layer to the layer before it (ELECTRA, BEiT); 1: off."""


@dataclass(frozen=True)
class Loss:
    """Cross-entropy."""

    __pydantic_config__ = _STRICT

    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Share of the label that is spread over all classes."""
    class_weights: Annotated[Literal["none", "balanced"] | tuple[float, ...], PlainValidator(_class_weights)] = "none"
    """`balanced`: inversely proportional to class sizes; or one weight per class, `1,2.5`; scaled to a mean of 1."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own learning rate schedule."""

    __pydantic_config__ = _STRICT

    epochs: Annotated[Number, Field(gt=0)]
    """Epochs; rounded to whole steps, which are printed."""
    lr: Annotated[Number, Field(gt=0)]
    """Peak learning rate."""
    min_steps: Annotated[Whole, Field(ge=0)] = 0
    """Fewest updates of the phase: a small dataset is repeated beyond `epochs` until there are as many."""
    warmup_epochs: Annotated[Number, Field(ge=0)] = 0.0
    """Epochs of linear warm-up from 0 to the peak."""
    schedule: Literal["cosine", "linear", "polynomial", "step", "one-cycle", "constant"] = "cosine"
    """Learning rate after the warm-up; `step`: a tenth at 1/2 and 3/4; `one-cycle` has its own warm-up."""
    power: Annotated[Number, Field(gt=0)] = 1.0
    """Power of the `polynomial` schedule: (1 - progress) ** power; 1 is linear."""
    trainable: Literal["all", "head"] = "all"
    """`all` weights, or the `head` alone; the rest, including its BatchNorm, is frozen."""
    image_size: Annotated[Annotated[Whole, Field(ge=8, le=1024)] | None, BeforeValidator(_word_null)] = None
    """Image size of this phase's training, pixels; null: data.image_size, which evaluations always use."""


@dataclass(frozen=True)
class Evaluate:
    """When the model is evaluated on the validation split."""

    __pydantic_config__ = _STRICT

    every_epochs: Annotated[Number, Field(ge=0.01)] = 1.0
    """Epochs between evaluations; the end of every phase is evaluated, too."""
    select_by: Metric = "accuracy"
    """The validation metric that selects the best checkpoint, and by which `tune` compares trials."""


@dataclass(frozen=True)
class EarlyStopping:
    """Stopping when the validation metric no longer improves."""

    __pydantic_config__ = _STRICT

    patience: Annotated[Whole, Field(ge=0)] = 0
    """Consecutive evaluations without improvement after which training stops; 0: never."""
    metric: Metric = "accuracy"
    """The validation metric that should improve."""
    min_delta: Annotated[Number, Field(ge=0)] = 0.0
    """The smallest improvement that counts, in the metric's unit (accuracy is 0..1)."""


@dataclass(frozen=True)
class Checkpoint:
    """When checkpoints are written."""

    __pydantic_config__ = _STRICT

    every_steps: Annotated[Whole, Field(ge=0)] = 0
    """Steps between checkpoints, in addition to those at every evaluation; 0: off."""
    every_minutes: Annotated[Number, Field(ge=0)] = 10.0
    """Minutes between checkpoints, at the next row of metrics.jsonl; 0: off."""
    every_epochs: Annotated[Number, Field(ge=0)] = 0.0
    """Epochs between checkpoints; 0: off."""
    keep_last: Annotated[Whole, Field(ge=1)] = 2
    """Latest checkpoints to keep, in addition to the best. With two, a damaged one has a predecessor."""


@dataclass(frozen=True)
class Track:
    """Experiment tracking and the report."""

    __pydantic_config__ = _STRICT

    trackers: Annotated[str, BeforeValidator(_trackers)] = "wandb"
    """`wandb` (offline in the run directory without an account), `trackio`, `tensorboard`, `mlflow`, several, or
    `none`."""
    project: Name = "resnet-cifar"
    """The trackers' project; MLflow's experiment."""
    log_model: bool = False
    """Store the exported model, too, at the end of the run, as an artifact of W&B (with versions) or MLflow."""
    notify: Annotated[str, BeforeValidator(_notify)] = ""
    """Who is told how each attempt ends: https://HOST/PATH (a POST of JSON), the address in env:VARIABLE or
    slack:VARIABLE, or `wandb` (an alert)."""
    notify_accuracy: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Tell track.notify, too, when the validation accuracy first reaches this; 0: never."""
    report: bool = True
    """Write RUN/report/index.html when training ends; `resnet-cifar report RUN` does so at any time."""


@dataclass(frozen=True)
class Recipe:
    """A run. All fields decide its result, except `track`, `checkpoint`, `evaluate.every_epochs`, `rank_timeout`,
    `data.storage` and `refit_of`."""

    __pydantic_config__ = _STRICT

    seed: Annotated[Whole, Field(ge=0)] = 0
    """Seed of everything random: weights, order, augmentation, splits."""
    precision: Annotated[Literal["auto", "no", "bf16", "fp16", "fp64"], BeforeValidator(_word_no)] = "auto"
    """`auto`: the launcher's, else bf16 on GPUs that support it; `no`: float32; `fp64`: for exactness tests."""
    batch_size: Annotated[Whole, Field(ge=2)] = 256
    """The global batch: images per optimizer step, on any number of devices."""
    micro_batch: Annotated[int | Literal["auto"], PlainValidator(_rows_or_auto)] = 0
    """Images per backward pass on one device; 0: the whole share of a device; `auto`: the most that fit a GPU's memory,
    and about 32 on CPUs."""
    deterministic: bool = False
    """Use only operations that repeat bit for bit, on GPUs too (slower; others are refused)."""
    rank_timeout: Annotated[Number, Field(ge=2, le=1e9)] = 300.0
    """Seconds without a heartbeat or progress after which the other processes give up on a rank."""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    loss: Loss = field(default_factory=Loss)
    phases: tuple[Phase, ...] = (Phase(epochs=20.0, lr=0.02),)
    """Trained one after another; none: the model is evaluated and exported as model.head.init probe leaves it."""
    refit_steps: Annotated[Whole, Field(ge=0)] = 0
    """N > 0: train on training and validation images together for N updates of the phases; `--refit RUN` sets it."""
    refit_of: str = ""
    """The run whose validation split selected `refit_steps`, for the report."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    track: Track = field(default_factory=Track)

    @property
    def refit_remark(self) -> str:
        """On which images and how long a refit trains, for the plan and reports; empty for other runs."""
        updates = f"{self.refit_steps:,} update{'s' * (self.refit_steps > 1)}"
        selected = f", as selected in {self.refit_of}" * bool(self.refit_of)
        return f"on training and validation images together for {updates}{selected}" if self.refit_steps else ""
