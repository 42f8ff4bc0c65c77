"""
Arguments of an experiment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import Seq2SeqTrainingArguments


class InputError(ValueError):
    """What a user can cause and cure: the message says what was found, what is allowed and what to do."""


@dataclass
class ModelArguments:
    """Which pretrained model to start from; none of it is needed to train from scratch."""

    model_name_or_path: str | None = None
    model_revision: str = "main"
    tokenizer_name: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    token: str | None = None


@dataclass
class DataArguments:
    """Which sentence pairs to read and how to cut them into tokens."""

    source_lang: str
    target_lang: str
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None
    source_column: str | None = None
    target_column: str | None = None
    source_prefix: str = ""
    max_source_length: int = 256
    max_target_length: int = 256
    max_length_ratio: float = 9.0
    drop_duplicates: bool = True
    drop_metadata: bool = True
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    max_predict_samples: int | None = None
    tokenizer_type: Literal["bpe", "unigram", "byte_bpe"] = "bpe"
    split_digits: bool = True
    bpe_dropout: float = 0.0
    preprocessing_num_workers: int = 1
    cldr_train_size: int = 20000
    cldr_validation_size: int = 500
    cldr_test_size: int = 500
    cldr_seed: int = 0
    cldr_max_phrases: int = 3


@dataclass
class TranslationTrainingArguments(Seq2SeqTrainingArguments):
    """transformers' training arguments with the defaults of translation, and ours."""

    tokens_per_batch: int = 4096
    eval_tokens_per_batch: int = 16384
    num_beams: int = 5
    length_penalty: float = 1.0
    ema_decay: float = 0.0
    average_checkpoints: int = 0
    early_stopping_patience: int = 0
    num_samples_shown: int = 3
    dry_run: bool = False
    learning_rate: float = 5e-4
    lr_scheduler_type: str = "inverse_sqrt"
    warmup_steps: float = 1000
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 3
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "bleu"
    greater_is_better: bool | None = True
    predict_with_generate: bool = True
    generation_num_beams: int | None = 1
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    report_to: Any = "none"
    disable_tqdm: bool | None = True

    @property
    def sentences_per_batch(self) -> int | None:
        """Sentences a device and micro-batch; None while batches are counted in tokens (`tokens_per_batch` > 0)."""
        return None if self.tokens_per_batch else self.per_device_train_batch_size


@dataclass(frozen=True)
class Experiment:
    """One run: everything `scripts/train.py` was told, sorted by who needs it."""

    name: str
    model: ModelArguments
    architecture: dict[str, Any]
    data: DataArguments
    training: TranslationTrainingArguments
    resolved: dict[str, Any] = field(default_factory=dict)
