"""What the names of other tools (timm, transformers, Lightning, ultralytics, torchvision, Keras) are called here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

# A field of a recipe or an option of a command (`run|out`: the one that the command has): what others call it.
_FIELDS = {
    "seed": "random_seed manual_seed rng_seed random_state seed_everything data_seed",
    "batch_size": """bs b batch batchsize train_batch_size global_batch_size total_batch_size effective_batch_size
        per_device_train_batch_size per_device_batch_size per_gpu_train_batch_size per_gpu_batch_size
        train_micro_batch_size_per_gpu batch_size_per_gpu batch_size_per_device auto_scale_batch_size
        gradient_accumulation_steps accumulate_grad_batches grad_accum_steps grad_accum accumulation_steps accum_steps
        accum_iter accumulate""",
    "precision": "mixed_precision amp_dtype dtype torch_dtype model_dtype half_precision_backend amp_level",
    "micro_batch": "micro_batch_size microbatch mini_batch_size auto_find_batch_size",
    "deterministic": "full_determinism cudnn_deterministic use_deterministic_algorithms",
    "data.source": """data dataset d data_dir data_path data_root dataset_dir dataset_path dataset_name dataset_id root
        image_folder image_dir images_dir img_dir root_dir input_dir train train_dir train_data train_data_dir
        train_data_path train_path train_folder train_file folder""",
    "data.config_name": "dataset_config dataset_config_name subset",
    "data.splits.train": "train_split train_split_name",
    "data.splits.validation": "val_split valid_split validation_split",
    "data.splits.test": "test_split eval_split",
    "data.columns.image": "image_column image_column_name image_key input_key input_img_mode",
    "data.columns.label": "label_column label_column_name label_key target_key target_column label_col",
    "data.validation_fraction": """val_fraction val_size val_ratio valid_ratio validation_ratio validation_size
        val_pct train_val_split""",
    "data.test_fraction": "test_size test_ratio test_pct",
    "data.limit": """max_samples max_train_samples max_eval_samples num_samples n_samples subset_size train_num_samples
        limit_train_batches fraction""",
    "data.overfit_images": "overfit overfit_batches",
    "data.image_size": """img_size imgsz imsz input_size image_dim im_size resolution size img_dim crop_size
        train_crop_size val_crop_size val_resize_size resize target_size image_resolution input_resolution""",
    "data.interpolation": "train_interpolation resample",
    "data.decode_mode": "crop_mode",
    "augment.crop_padding": "random_crop pad padding",
    "augment.random_resized_crop": "rrc rrc_scale min_crop_area train_crop_area",
    "augment.rand_augment": "ra_magnitude",
    "augment.color_jitter": "jitter brightness contrast saturation",
    "augment.grayscale": "grayscale_prob random_grayscale gray",
    "augment.flip": "hflip fliplr horizontal_flip random_flip hflip_prob train_hflip",
    "augment.random_erasing": "reprob erasing random_erase erase_prob",
    "augment.mixup_alpha": "mixup",
    "augment.cutmix_alpha": "cutmix",
    "model.name": """model arch a architecture model_name model_name_or_path model_type backbone network net encoder
        timm_model""",
    "model.pretrained": "pretrained use_pretrained imagenet_pretrained",
    "model.init_from": """checkpoint ckpt weights initial_checkpoint checkpoint_path ckpt_path load_from load_checkpoint
        finetune_from pretrained_weights pretrained_path pretrained_model init_checkpoint load_weights""",
    "model.head.dropout": "drop dropout drop_rate head_dropout classifier_dropout",
    "model.head.hidden_dims": "hidden_dim hidden_size mlp_dims hidden_sizes",
    "model.head.pool": "gp global_pool pooling",
    "model.drop_path": "drop_path_rate drop_connect drop_connect_rate stochastic_depth stochastic_depth_prob droppath",
    "model.ema_decay": "model_ema_decay ema_rate",
    "optimizer.name": "opt optim optimizer optimizer_name optimizer_type optim_name",
    "optimizer.momentum": "opt_momentum sgd_momentum",
    "optimizer.betas": "opt_betas adam_betas",
    "optimizer.weight_decay": "wd l2 l2_reg l2_regularization weightdecay decay norm_weight_decay",
    "optimizer.clip_grad_norm": """clip_grad max_grad_norm gradient_clip_val grad_clip clip_norm gradient_clipping
        grad_clip_norm grad_norm_clip clip max_norm""",
    "optimizer.head_lr_multiplier": "head_lr head_lr_mult classifier_lr lr_head",
    "optimizer.layer_decay": "layer_wise_lr_decay llrd layerwise_decay layer_lr_decay",
    "loss.label_smoothing": "smoothing label_smoothing_factor ls smooth",
    "loss.class_weights": "class_weight cls_pw loss_weights label_weights",
    "phases.0.epochs": "epochs epoch num_epochs n_epochs num_train_epochs max_epochs total_epochs nb_epoch max_epoch",
    "phases.0.lr": "lr learning_rate base_lr init_lr initial_lr lr0 max_lr peak_lr blr lr_base learn_rate",
    "phases.0.warmup_epochs": """warmup warmup_epoch lr_warmup_epochs num_warmup_epochs warmup_steps num_warmup_steps
        lr_warmup_steps warmup_ratio warmup_iters""",
    "phases.0.schedule": """sched scheduler lr_scheduler lr_schedule lr_scheduler_type lr_policy schedule
        scheduler_type lr_decay_type""",
    "phases.0.power": "poly_power lr_power poly_lr_power",
    "phases.0.trainable": "trainable_layers",
    "evaluate.every_epochs": """eval_every val_interval eval_interval check_val_every_n_epoch eval_steps eval_strategy
        evaluation_strategy val_check_interval eval_freq validate_every""",
    "early_stopping.patience": "patience early_stopping_patience early_stop es_patience",
    "early_stopping.metric": "monitor",
    "evaluate.select_by": "eval_metric metric_for_best_model best_metric checkpoint_metric",
    "early_stopping.min_delta": "early_stopping_threshold",
    "checkpoint.every_steps": "save_steps recovery_interval checkpoint_every checkpointing_steps save_every",
    "checkpoint.every_epochs": "save_period save_freq save_interval checkpoint_interval save_strategy",
    "checkpoint.keep_last": "save_total_limit checkpoint_hist save_top_k max_checkpoints keep_checkpoints",
    "track.trackers": "report_to logger loggers log_with tracker log_to",
    "track.project": "wandb_project project_name project tracker_project_name mlflow_experiment",
    "rank_timeout": "ddp_timeout timeout",
    "recipe": "config c cfg config_file config_path yaml conf hparams hyp hparams_file",
    "run|out": """output output_dir out_dir o save_dir log_dir logging_dir default_root_dir work_dir
        exp_dir results_dir run_dir run_name experiment experiment_name exp_name exp name save_path output_path
        checkpoint_dir ckpt_dir""",
    "max-minutes": "max_time time time_limit max_hours",
    "extend-epochs": "extra_epochs additional_epochs",
    "profile-steps": "profiler",
    "compile": "torch_compile torch_compile_mode compile_mode dynamo",
    "images": "image img input_images files",
    "split": "eval_on",
}
# A field and the value that a switch of others means (True: an option without a value).
_SWITCHES: dict[tuple[str, Any], str] = {
    ("precision", "bf16"): "bf16 amp native_amp apex_amp use_amp autocast bfloat16 bf16_full_eval",
    ("precision", "fp16"): "fp16 half float16 use_fp16",
    ("precision", "no"): "fp32 float32 no_amp full_precision",
    ("data.source", "synthetic"): "fake_data dummy",
    ("data.skip_broken", True): "skip_bad skip_errors ignore_errors",
    ("data.decode_mode", "pad"): "letterbox pad_to_square",
    ("data.sampling", "balanced"): "weighted_sampler balanced_sampler weighted_sampling balanced_sampling oversample",
    ("augment.trivial_augment", True): "aa auto_augment augmix auto_augment_policy ta_wide",
    ("augment.rand_augment", 9): "rand_augment randaug",
    ("augment.flip", "none"): "no_hflip no_flip",
    ("model.ema_decay", 0.9998): "model_ema ema use_ema",
    ("model.pretrained", False): "no_pretrained from_scratch scratch random_init",
    ("model.ghost_batch_size", "null"): "no_ghost_bn",
    ("model.batchnorm", "frozen"): "freeze_bn freeze_batchnorm freeze_bn_stats frozen_bn bn_eval",
    ("model.head.init", "probe"): "linear_probe linear_probing lp_ft",
    ("phases.0.trainable", "head"): """freeze freeze_backbone freeze_base freeze_encoder freeze_features
        freeze_layers feature_extract feature_extraction""",
    ("phases.0.schedule", "cosine"): "cos_lr cosine_annealing",
    ("phases.0.schedule", "one-cycle"): "one_cycle",
    ("phases.0.schedule", "polynomial"): "poly polynomial_decay",
    ("deterministic", True): "reproducible",
    ("track.trackers", "wandb"): "log_wandb wandb use_wandb with_wandb enable_wandb",
    ("track.trackers", "tensorboard"): "tensorboard log_tensorboard use_tensorboard",
    ("track.trackers", "mlflow"): "mlflow log_mlflow",
    ("track.trackers", "none"): "no_wandb no_log disable_wandb",
    ("track.log_model", True): "wandb_log_model log_model_checkpoint",
    ("restart", True): "overwrite_output_dir exist_ok overwrite force no_resume fresh_start",
    ("dry-run", True): "fast_dev_run dryrun plan",
    ("download-only", True): "download dataset_download prepare_only",
    ("tta", "flip"): "test_time_augmentation",
    ("verify-export", True): "check_export",
}
# What a field of ours does not do in the way that the name suggests.
_NOTES = {
    "batch_size": {
        ", the images of one step on all devices together": """per_device_train_batch_size per_device_batch_size
            per_gpu_train_batch_size per_gpu_batch_size batch_size_per_gpu batch_size_per_device
            train_micro_batch_size_per_gpu""",
        " for the images of one step, and micro_batch for those of one backward pass": """gradient_accumulation_steps
            accumulate_grad_batches grad_accum_steps grad_accum accumulation_steps accum_steps accum_iter accumulate
            auto_scale_batch_size""",
    },
    "phases.0.warmup_epochs": {
        ", in epochs": """warmup_steps num_warmup_steps lr_warmup_steps warmup_ratio warmup_iters"""
    },
    "data.limit": {", a number of images": "limit_train_batches fraction"},
    "evaluate.every_epochs": {", in epochs": "eval_steps eval_strategy evaluation_strategy val_check_interval"},
    "optimizer.head_lr_multiplier": {", a multiple of phases.0.lr": "head_lr classifier_lr lr_head"},
    "max-minutes": {", in minutes": "max_time time time_limit max_hours"},
    "augment.trivial_augment": {", which needs no policy": "aa auto_augment"},
}
# Names whose values mean something else here, so that they are not repeated.
_OTHER_VALUES = """gradient_accumulation_steps accumulate_grad_batches grad_accum_steps grad_accum accumulation_steps
    accum_steps accum_iter accumulate auto_scale_batch_size auto_find_batch_size warmup_steps num_warmup_steps
    lr_warmup_steps warmup_ratio warmup_iters limit_train_batches fraction overfit_batches eval_steps eval_strategy
    evaluation_strategy val_check_interval head_lr classifier_lr lr_head max_time time time_limit max_hours hflip fliplr
    horizontal_flip random_flip hflip_prob train_hflip random_crop early_stop save_strategy save_freq
    train_val_split monitor checkpoint_metric cls_pw eval_metric metric_for_best_model best_metric torch_compile timeout
    ddp_timeout crop_mode opt_betas adam_betas"""
# What has no field, and what to do instead.
_ANSWERS = {
    "rerun the same command: it resumes from the latest checkpoint of its run directory (--run)": """resume
        resume_from_checkpoint resume_from resume_path resume_training auto_resume continue continue_training
        start_epoch initial_epoch recover""",
    "remove it; there are no data loader workers, the images are in memory (data.storage)": """workers num_workers j
        n_workers dataloader_num_workers loader_workers num_data_workers worker cpu_workers train_num_workers
        dataloader_workers prefetch_factor prefetch no_prefetcher pin_memory pin_mem dataloader_pin_memory
        persistent_workers dataloader_persistent_workers worker_seeding use_multi_epochs_loader cache cache_dataset
        preprocessing_num_workers""",
    "remove it; the launcher chooses devices and processes, as in `CUDA_VISIBLE_DEVICES=1 python train.py` or "
    "`accelerate launch --num_processes 4 train.py` (in Python: processes=4)": """device devices gpu gpus n_gpu n_gpus
        num_gpus gpu_id gpu_ids device_ids cuda use_cuda no_cuda cpu use_cpu no_gpu accelerator nproc_per_node
        num_processes num_nodes nnodes nodes num_machines strategy local_rank rank world_size distributed ddp dp
        multi_gpu multiprocessing_distributed dist_url dist_backend ddp_backend tpu mps use_mps dist gpus_per_node
        gpu_list""",
    "put train, val and test into one folder instead, and name it with data.source": """val_dir valid_dir val_data_dir
        validation_dir validation_data_dir test_dir test_data_dir val_path test_path validation_file test_file""",
    "remove it; the classes are those of the images": """num_classes n_classes nb_classes num_labels classes
        num_class class_num nc class_names""",
    "set optimizer.betas instead, such as `0.9,0.95`": "beta1 beta2 adam_beta1 adam_beta2",
    "remove it; it is not a setting here (`sgd` is Nesterov, epsilons are those of timm)": """nesterov opt_eps eps
        epsilon adam_epsilon dampening""",
    "remove it; the settings of phases.N.schedule are warmup_epochs and, if it is polynomial, power": """min_lr
        warmup_lr cooldown_epochs decay_rate decay_epochs lr_decay lr_gamma gamma lr_step_size step_size milestones
        decay_milestones lr_steps lrf eta_min t_max lr_cycle_mul lr_cycle_limit lr_scheduler_kwargs final_lr
        warmup_prefix patience_epochs""",
    "remove it; training metrics are written at regular steps to RUN/metrics.jsonl": """log_interval logging_steps
        log_every_n_steps print_freq log_freq log_every p logging_strategy verbose logging_first_step""",
    "remove it; training ends with the evaluation of the test split, and resnet-cifar evaluate RUN repeats it": """eval
        do_eval evaluate do_predict do_train evaluate_only test test_only validate e do_test""",
    "remove it; BatchNorm's groups are set by model.ghost_batch_size": """sync_bn sync_batchnorm split_bn dist_bn
        bn_momentum bn_eps bn_tf no_ddp_bb""",
    "remove it; mean and deviation are the model's, see data.normalize": """mean std img_mean image_mean image_std
        normalization""",
    "remove it; channels-last and TF32 are used wherever they help": """channels_last tf32 torchscript fuser
        cudnn_benchmark benchmark allow_tf32""",
    "choose a `micro_batch` that fits the memory instead, or `auto`": """grad_checkpointing gradient_checkpointing
        activation_checkpointing""",
    "set the fields of `augment` to 0, `none` or False instead": "no_aug no_augment no_augmentation",
    "choose among the fields of `augment` instead: this augmentation is not offered": """vflip flipud vertical_flip
        rotation degrees hsv_h hsv_s hsv_v translate shear perspective mosaic copy_paste hue blur gaussian_blur
        crop_pct scale ratio remode recount resplit aug_repeats aug_splits jsd_loss ra_sampler
        mixup_prob mixup_switch_prob mixup_mode mixup_off_epoch cutmix_minmax augment augmentation augmentations
        drop_block""",
    "remove it; the loss is cross-entropy, see the fields of `loss`": """loss_fn criterion bce_loss loss_function
        bce_target_thresh focal_loss loss loss_type""",
    "remove it; batches of evaluations are chosen to fit, and do not change the result": """val_batch_size
        eval_batch_size test_batch_size validation_batch_size per_device_eval_batch_size vb per_gpu_eval_batch_size
        eval_accumulation_steps""",
    "remove it; every finished run has its exported model in RUN/model": """export save_model save_best save_last
        save_best_only export_model load_best_model_at_end""",
    "push RUN/model of the finished run instead (`hf upload`)": "push_to_hub hub_model_id hub_token hub_strategy",
    "set phases.N.epochs instead: the length of training is counted in epochs": """max_steps max_iters total_steps
        num_steps iterations num_iterations max_train_steps iters steps n_iters""",
}
# Targets that are options of a command, not fields of a recipe.
OPTIONS = ("recipe", "run", "out", "max-minutes", "extend-epochs", "profile-steps", "compile", "images", "split")
OPTIONS += ("restart", "refit", "dry-run", "download-only", "tta", "verify-export")
# A positional argument of a command: what others call it.
_POSITIONALS = {
    "target": """target run model checkpoint ckpt weights checkpoint_path ckpt_path model_path model_name model_dir
        model_name_or_path run_dir resume load_from""",
    "paths": "images image input source file files path paths img data data_dir folder input_dir",
    "source": "source data dataset data_dir data_path dataset_name root path",
    "recipe": "recipe config cfg c config_file config_path",
    "run": "run run_dir target dir path",
    "runs": "runs run run_dir",
}


@dataclass(frozen=True)
class Meaning:
    """What a name means here: a `target` (field or option) with a `note` on it, or an `answer` instead of one.

    `value`: what a switch sets; `keeps_value`: whether the value that was given means the same here.
    """

    target: str = ""
    value: Any = None
    note: str = ""
    keeps_value: bool = True
    answer: str = ""


def _index(table: dict[Any, str]) -> dict[str, Any]:
    return {_plain(word): key for key, words in table.items() for word in words.split()}


def _plain(name: str) -> str:
    """The name without dashes, underscores and capitals: `learningRate` and `learning_rate` are the same."""
    return re.sub("[-_]", "", name).lower()


_TARGETS, _SWITCHED, _ANSWERED = _index(_FIELDS), _index(_SWITCHES), _index(_ANSWERS)
_NOTED = {word: note for notes in _NOTES.values() for word, note in _index(notes).items()}
_CHANGED = {_plain(word) for word in _OTHER_VALUES.split()}


def is_positional(name: str, positional: str) -> bool:
    """Whether others give a command's `positional` argument with the flag `name`."""
    return _plain(name) in map(_plain, _POSITIONALS.get(positional, positional).split())


def meaning(name: str, known: Collection[str]) -> Meaning | None:
    """What `name`, a flag or the path of a field, means among the `known` fields and options; None if unknown.

    The last part of a path is enough: `optimizer.lr` is `phases.0.lr`, and `phases.1.learning_rate` is `phases.1.lr`.
    """
    word = _plain(name.rsplit(".", 1)[-1])
    if word in _ANSWERED:
        return Meaning(answer=_ANSWERED[word])
    targets, value = _SWITCHED.get(word, (_TARGETS.get(word, ""), None))
    target = next((each for each in targets.split("|") if each in known), targets.split("|")[0])
    if "." in name and target in OPTIONS:  # the last part of a path is a field
        target = ""
    if not target:
        same = [each for each in known if _plain(each.rsplit(".", 1)[-1]) == word]
        target = same[0] if len(same) == 1 else ""
    if phase := re.match(r"phases\.\d+", name):
        target = target.replace("phases.0", phase[0])
    return Meaning(target, value, _NOTED.get(word, ""), word not in _CHANGED) if target else None


def as_flag(target: str, value: Any) -> str:
    """`--phases.0.lr 0.1`; without a value, the flag alone."""
    is_switch = value is None or (value is True and target in OPTIONS)
    return f"--{target}" + ("" if is_switch else f" {shlex.quote(str(value))}")


def as_python(target: str, value: Any) -> str:
    """The argument of `resnet_cifar.train`: `seed=1`, or `**{"phases.0.lr": 0.1}`."""
    written = "..." if value is None else repr(value)
    return f'**{{"{target}": {written}}}' if "." in target else f"{target.replace('-', '_')}={written}"


def as_yaml(target: str, value: Any) -> str:
    """One line of a recipe: `optimizer: {weight_decay: 0.1}`."""
    import yaml

    nested: Any = "..." if value is None else value
    for part in reversed(target.split(".")):
        nested = [nested] if part.isdigit() else {part: nested}
    text = yaml.safe_dump(nested, default_flow_style=True, width=10_000, sort_keys=False)
    return text.strip()[1:-1].replace("'...'", "...")
