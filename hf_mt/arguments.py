"""
Everything a run can be told: three dataclasses, whose fields are the keys of a config and of the command line.

Keys are flat and keep Hugging Face's names. Besides these fields, every architecture field of `HfMtConfig` is a key.
`tokens_per_batch` replaces the batch sizes of transformers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType


def _key(default: Any, help: str, *, repr: bool = True, **bounds: float) -> Any:
    """A field with its help text and, for numbers, `least` (allowed) and `below` (not allowed)."""
    return field(default=default, repr=repr, metadata={"help": help, **bounds})


# What may decide which checkpoint is kept; all but loss, perplexity and accuracy need translations.
HIGHER_IS_BETTER = frozenset({"bleu", "bleu_lc_tok", "chrf", "chrf_pp", "accuracy"})
# BLEU for languages that sacrebleu's 13a does not cut into words, by the tokenizer that does
BLEU_OF_TOKENIZER = {
    "zh": "bleu_zh",
    "ja-mecab": "bleu_ja-mecab",
    "ko-mecab": "bleu_ko-mecab",
    "char": "bleu_char",
    "flores200": "spbleu",
}
HIGHER_IS_BETTER |= set(BLEU_OF_TOKENIZER.values())
# The key and value that a BLEU of another flavour needs.
NEEDED_FOR_BLEU: dict[str, tuple[str, Any]] = {"bleu_lc_tok": ("tokenized_scores", True)}
NEEDED_FOR_BLEU |= {name: ("bleu_tokenize", tokenizer) for tokenizer, name in BLEU_OF_TOKENIZER.items()}
_SIGNS_OF_FAILURE = {"cut_off", "empty_hypotheses", "repeated", "copied_source", "copied_words", "numbers_lost"}
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "ter"} | _SIGNS_OF_FAILURE)
NEED_NO_TRANSLATIONS = frozenset({"loss", "perplexity", "accuracy"})


def bleu_of(scores: Iterable[str]) -> str:
    """The one of these names that is the BLEU which suits the target language, perhaps behind `eval_` or `test_`."""
    found = {name.removeprefix("eval_").removeprefix("test_") for name in scores}
    return next((name for name in BLEU_OF_TOKENIZER.values() if name in found), "bleu")


@dataclass
class ModelArguments:
    """The pretrained model to start from. Leave all of it out to train from scratch."""

    model_name_or_path: str | None = _key(None, "fine-tune this model (folder or Hub name)")
    model_revision: str = _key("main", "its branch, tag or commit")
    tokenizer_name: str | None = _key(None, "use this tokenizer; default: the model's, or one trained on the corpus")
    tokenizer_revision: str | None = _key(None, "branch, tag or commit of what tokenizer_name names")
    trust_remote_code: bool = _key(False, "allow the model's own Python code from the Hub to run here")
    attn_implementation: str | None = _key(None, "attention kernel: sdpa, eager; by default the faster one")
    token: str | None = _key(
        None,
        "Hub token for private models; safer: `hf auth login` or HF_TOKEN, which no failed command shows",
        repr=False,
    )


@dataclass
class DataArguments:
    """Which sentence pairs to read, which to keep, and how they are cut into tokens."""

    source_lang: str = field(metadata={"help": "language code of the source, such as en"})
    target_lang: str = field(metadata={"help": "language code of the target, such as de"})
    dataset_name: str | None = _key(None, "cldr (built in), toy_copy, toy_reverse, toy_sort, or a data set on the Hub")
    dataset_config_name: str | None = _key(None, "its configuration")
    dataset_revision: str | None = _key(None, "its branch, tag or commit")
    train_file: str | None = _key(None, "a .tsv, .jsonl or .parquet file, or the prefix of text pairs (data/train)")
    validation_file: str | None = _key(None, "the same for development; beside a dataset_name, in place of its split")
    test_file: str | None = _key(None, "the same for the final test")
    source_column: str | None = _key(
        None, "where the source is not named by its language: a column, a key of `translation`, or a file's ending"
    )
    target_column: str | None = _key(None, "the same for the target")
    source_prefix: str = _key("", "text before every source sentence (T5)")
    max_source_length: int = _key(256, "tokens with end of sentence; longer pairs are dropped and counted", least=1)
    max_target_length: int = _key(256, "the same for targets", least=1)
    max_length_ratio: float = _key(9.0, "drop pairs of which one side has this many times more characters", least=1)
    drop_duplicates: bool = _key(True, "drop repeated training pairs")
    drop_metadata: bool = _key(True, "drop lines of markup such as <url>")
    streaming: bool = _key(False, "read training pairs while training and hold few of them; needs max_steps")
    streaming_buffer: int = _key(
        50_000, "pairs read at a time when streaming: shuffled, and searched for duplicates, among themselves", least=2
    )
    max_train_samples: int | None = _key(None, "use only so many training pairs", least=1)
    max_eval_samples: int | None = _key(None, "use only so many development pairs", least=1)
    max_predict_samples: int | None = _key(None, "use only so many test pairs", least=1)
    tokenizer_type: Literal["bpe", "unigram", "byte_bpe"] = _key("bpe", "the kind of tokenizer to train")
    split_digits: bool = _key(True, "every digit is a token")
    bpe_dropout: float = _key(0.0, "share of merges skipped at random in training", least=0, below=1)
    bpe_dropout_samples: int = _key(16, "ways in which BPE dropout cuts each pair; an epoch reads one", least=1)
    preprocessing_num_workers: int = _key(1, "processes that prepare the data", least=1, below=1025)
    cldr_train_size: int = _key(20000, "training pairs of the built-in corpus", least=1)
    cldr_validation_size: int = _key(500, "its development pairs", least=1)
    cldr_test_size: int = _key(500, "its test pairs", least=1)
    cldr_seed: int = _key(0, "its random seed")
    cldr_max_phrases: int = _key(3, "phrases joined into one sentence, at most", least=1)


@dataclass
class TranslationTrainingArguments(Seq2SeqTrainingArguments):
    """
    transformers' training arguments with the defaults of translation, and our own.

    Batches are counted in padded tokens, max(source, target) a pair; with `tokens_per_batch=0` in sentences, by
    `per_device_train_batch_size`. The parser sets that 0 itself when only the latter is given.
    """

    tokens_per_batch: int = _key(
        4096, "padded tokens a device and micro-batch (accumulated ones and processes add up); 0: sentences", least=0
    )
    per_device_train_batch_size: int = _key(8, "sentences a micro-batch, instead of tokens_per_batch", least=1)
    eval_tokens_per_batch: int = _key(16384, "padded tokens times beams a device in evaluation", least=1)
    gradient_accumulation_steps: int = _key(1, "micro-batches a step", least=1)
    num_processes: int | None = _key(None, "YAML only: refuse to start on another number of processes", least=1)
    num_beams: int = _key(5, "beam size in the final test", least=1, below=1001)
    generation_num_beams: int | None = _key(1, "beam size on development data", least=1, below=1001)
    length_penalty: float = _key(1.0, "above 1 favours longer translations in beam search", least=-5, below=5)
    ema_decay: float = _key(0.0, "moving average of the weights, such as 0.999; 0: none", least=0, below=1)
    average_checkpoints: int = _key(
        0, "at the end also try the mean of so many last checkpoints, kept where better; 0: none", least=0
    )
    early_stopping_patience: int = _key(0, "stop after so many evaluations without a better score; 0: never", least=0)
    non_finite_steps: Literal["stop", "skip"] = _key("stop", "what to do when a gradient is NaN or infinite")
    num_samples_shown: int = _key(3, "development sentences shown at each evaluation", least=0)
    tokenized_scores: bool = _key(False, "report bleu_lc_tok too, for corpora that are tokenised and lower-cased")
    bleu_tokenize: Literal["13a", "zh", "ja-mecab", "ko-mecab", "char", "flores200"] = _key(
        "13a", "sacrebleu's tokenizer for the target language; with zh, bleu_zh is reported beside bleu"
    )
    dry_run: bool = _key(False, "build everything, take three steps, report, and stop")
    cpu_threads: int | None = _key(None, "threads a process; default: all cores, shared by the processes", least=1)
    float32_matmul_precision: Literal["highest", "high", "medium"] = _key(
        "highest",
        "of products: high rounds their factors to TF32 (GPU), medium to bfloat16 (GPU, processors that multiply it)",
    )
    card_license: str | None = _key(None, "licence of the weights, by its name on the Hub, for the model card")
    card_samples: bool = _key(True, "False where the corpus must not be handed on: no sentences in the model card")
    num_train_epochs: float = _key(3.0, "length of training; max_steps overrides it", least=0)
    learning_rate: float = _key(5e-4, "peak learning rate", least=0)
    lr_scheduler_type: SchedulerType | str = _key("inverse_sqrt", "learning rate after warm-up")
    warmup_steps: float = _key(1000, "steps of warm-up, or below 1 their share of all; constant has none", least=0)
    r_drop_start: float = _key(0.0, "share of the steps before r_drop begins", least=0, below=1)
    muon: bool = _key(False, "the optimizer Muon for the matrices of the layers, AdamW for the rest")
    adam_beta2: float = _key(0.98, "decay of AdamW's second moment", least=0, below=1)
    max_grad_norm: float = _key(1.0, "clip gradients at this norm", least=0)
    eval_strategy: IntervalStrategy | str = _key("epoch", "when to evaluate")
    save_strategy: SaveStrategy | str = _key("epoch", "when to save a checkpoint")
    ddp_timeout: int = _key(
        86_400, "seconds that a process waits for the others, such as for data to be prepared", least=1, below=2**31
    )
    save_total_limit: int | None = _key(3, "checkpoints kept", least=1)
    load_best_model_at_end: bool = _key(True, "test the best checkpoint, not the last")
    metric_for_best_model: str | None = _key("bleu", "what best means")
    greater_is_better: bool | None = _key(None, "whether more of it is better; default: what the metric's name tells")
    predict_with_generate: bool = _key(True, "translate the development set at each evaluation")
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = _key(False, "True would hide a NaN loss behind the average of the steps before it")
    logging_steps: float = _key(50, "steps between two lines of the log", least=0)
    seed: int = _key(42, "of weights, dropout and the order of the data", least=0, below=2**32)
    report_to: None | str | list[str] = _key("none", "trackers, such as wandb")
    disable_tqdm: bool | None = _key(False, "True hides the progress bar, which only terminals get")

    def __post_init__(self) -> None:
        if self.greater_is_better is None and self.metric_for_best_model is not None:  # transformers knows only loss
            self.greater_is_better = self.metric_for_best_model.removeprefix("eval_") not in LOWER_IS_BETTER
        name = (self.metric_for_best_model or "").removeprefix("eval_")
        key, wanted = NEEDED_FOR_BLEU.get(name, ("", None))
        if key and getattr(self, key) != wanted:
            raise ValueError(f"metric_for_best_model {name} needs {key}: {str(wanted).lower()}")
        self.report_to = self.report_to or "none"
        if self.dry_run:  # a rehearsal is nobody's run
            self.report_to, self.push_to_hub = "none", False
        if not torch.accelerator.is_available() and os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
            self.use_cpu = True  # else transformers takes each of several processes for the only one
        super().__post_init__()
        if self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):  # which take any metric for a loss
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode, **(vars(self)["lr_scheduler_kwargs"] or {})}

    def __repr__(self) -> str:  # the one that `dataclass` would write shows tokens
        return str(self)

    @property
    def sentences_per_batch(self) -> int | None:
        """Sentences a device and micro-batch; None while batches are counted in tokens."""
        return None if self.tokens_per_batch else self.per_device_train_batch_size
