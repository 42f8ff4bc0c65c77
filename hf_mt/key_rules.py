"""
Rules about single keys that no type can state: which may change when a run goes on, are secret, or are refused.

- A run is the same run as long as every key outside `FREE_KEYS` has its old value; a key that nobody thought of is
  therefore part of a run's identity, which errs on the safe side.
- Many fields of `TrainingArguments` never reach our batches or our loss. To accept them in silence would be to lie.
"""

# May change when a run goes on: how long it trains, what it writes and shows, what machine it runs on.
_FREE = """
output_dir run_name project token trust_remote_code attn_implementation preprocessing_num_workers dry_run
num_train_epochs max_steps early_stopping_patience non_finite_steps num_processes
eval_strategy eval_steps eval_delay eval_on_start eval_tokens_per_batch num_samples_shown
save_strategy save_steps save_total_limit save_only_model
logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_on_each_node log_level
log_level_replica report_to disable_tqdm cpu_threads card_license card_samples
include_num_input_tokens_seen skip_memory_metrics debug
trackio_space_id trackio_bucket_id trackio_static_space_id
push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_revision
ignore_data_skip restore_callback_states_from_checkpoint
dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
dataloader_multiprocessing_context
ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
fsdp fsdp_config deepspeed accelerator_config use_cpu torch_empty_cache_steps
activation_checkpointing activation_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
"""
FREE_KEYS = frozenset(_FREE.split())
# May change when a run goes on, but not between runs that are compared.
_LENGTH = "max_steps num_train_epochs eval_strategy eval_steps early_stopping_patience load_best_model_at_end"
LENGTH_KEYS = frozenset(_LENGTH.split())
# With the number of processes they make one number, which is what a step sees.
EFFECTIVE_BATCH_KEYS = frozenset({"tokens_per_batch", "per_device_train_batch_size", "gradient_accumulation_steps"})
# Where texts lie, which are compared themselves.
FILE_KEYS = frozenset({"train_file", "validation_file", "test_file"})
# Never written to a file.
SECRET_KEYS = frozenset({"token", "hub_token"})
# What a pretrained model lets one change: nothing that has a size.
FINE_TUNING_KEYS = frozenset({"dropout", "attention_dropout", "activation_dropout", "label_smoothing", "r_drop"})

_OURS = "batches are formed by tokens_per_batch, of sentences of like length"
_EVALUATION = "evaluation translates and scores the whole development set, each sentence once"
_ALWAYS = "training, evaluation and the final test always run; to only evaluate, use scripts/evaluate.py"
# Keys that would be accepted and do nothing, or that older versions had, and what to write today.
REPLACED = {
    "label_smoothing_factor": "use label_smoothing, which acts in the model's own loss",
    "per_device_eval_batch_size": "use eval_tokens_per_batch",
    "per_gpu_train_batch_size": "use tokens_per_batch or per_device_train_batch_size",
    "group_by_length": _OURS,
    "train_sampling_strategy": _OURS,
    "length_column_name": _OURS,
    "sortish_sampler": _OURS,
    "auto_find_batch_size": _OURS + "; --dry_run shows the memory that they need",
    "dataloader_drop_last": _OURS + " and none is dropped",
    "average_tokens_across_devices": "labels are always counted over all processes",
    "bf16_full_eval": "use bf16, which evaluation follows",
    "fp16_full_eval": "use fp16, which evaluation follows",
    "hub_always_push": "every checkpoint is pushed, one after another",
    "save_on_each_node": "machines need one shared output_dir",
    "enable_jit_checkpoint": "SIGTERM always saves, within the step that it comes in",
    "dataloader_in_order": _OURS + " and must keep their order",
    "remove_unused_columns": "the data has no column but those in use",
    "prediction_loss_only": _EVALUATION + "; use predict_with_generate",
    "eval_accumulation_steps": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "generation_max_length": "each translation may have 2 x source + 20 tokens",
    "generation_config": "use num_beams, generation_num_beams and length_penalty",
    "label_names": "the labels are the target sentences",
    "include_for_metrics": _EVALUATION,
    "warmup_ratio": "use warmup_steps with a number below 1",
    "evaluation_strategy": "use eval_strategy",
    "overwrite_output_dir": "choose another output_dir, or delete the folder",
    "resume_from_checkpoint": "the same command resumes from its last checkpoint by itself",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "gradient_checkpointing": "use activation_checkpointing",
    "gradient_checkpointing_kwargs": "use activation_checkpointing_kwargs",
    "push_to_hub_token": "use hub_token",
    "push_to_hub_model_id": "use hub_model_id",
    "no_cuda": "use use_cpu",
    "parallelism_config": "write it with `accelerate config`",
    "local_rank": "the launcher sets it",
    "do_train": _ALWAYS,
    "do_eval": _ALWAYS,
    "do_predict": _ALWAYS,
}
# What numbers of transformers' may be, which itself does not say: at least, and below.
BOUNDS = {
    "data_seed": {"least": 0, "below": 2**32},
    "dataloader_num_workers": {"least": 0, "below": 1025},
    "dataloader_prefetch_factor": {"least": 1, "below": 1025},
}
# What a tokenizer that is given has decided.
TOKENIZER_KEYS = ("vocab_size", "tokenizer_type", "split_digits")
# Schedules of transformers that know no warm-up, and those that read no arguments.
WITHOUT_WARMUP = frozenset({"constant", "reduce_lr_on_plateau", "greedy"})
WITHOUT_KWARGS = frozenset({"constant", "constant_with_warmup"})
# Options of `accelerate launch` that are often put after the script, where they would be ours.
_LAUNCH = """
config_file num_processes num_machines machine_rank main_process_ip main_process_port mixed_precision multi_gpu gpu_ids
cpu use_fsdp use_deepspeed dynamo_backend num_cpu_threads_per_process
"""
LAUNCH_OPTIONS = frozenset(_LAUNCH.split())
