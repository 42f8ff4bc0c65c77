"""Random encoder-decoder models, ours and others, that are small, quick, and end some sentences by themselves."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import ModelOutput

from hf_mt import HfMtConfig, HfMtForConditionalGeneration


VOCABULARY, EOS, POSITIONS = 40, 2, 24
SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "init_std": 0.6,
}
M2M100_SIZES = {**SIZES, "scale_embedding": False}
T5_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "initializer_factor": 3.0,
}
MODELS: dict[str, tuple[int, float, Callable[[], PreTrainedModel]]] = {  # seed, addition to the logit of </s>, builder
    "marian": (34, 3, lambda: MarianMTModel(MarianConfig(**SIZES, decoder_start_token_id=0, forced_eos_token_id=EOS))),
    "bart": (4, 3, lambda: BartForConditionalGeneration(BartConfig(**SIZES, decoder_start_token_id=EOS))),
    "m2m100": (4, 2, lambda: M2M100ForConditionalGeneration(M2M100Config(**M2M100_SIZES, decoder_start_token_id=EOS))),
    "t5": (5, 2, lambda: T5ForConditionalGeneration(T5Config(**T5_SIZES, pad_token_id=0, eos_token_id=EOS))),
    "rope": (3, 5, lambda: HfMtForConditionalGeneration(HfMtConfig(**SIZES, position_encoding="rope"))),
    "learned": (3, 3, lambda: HfMtForConditionalGeneration(HfMtConfig(**SIZES, position_encoding="learned"))),
}
SENTENCES = ["w4 w9 w7", "w5", "w8 w6 w30 w31 w12 w13 w5", "w6 w6", "w17 w9 w25 w4 w10", "w11 w12 w39 w20"]


def build(name: str) -> PreTrainedModel:
    """A random model that ends some sentences, not all, in float64, where batches of other shapes round alike."""
    seed, boost, construct = MODELS[name]
    torch.manual_seed(seed)
    model = construct().eval().double()

    def raise_end(module: PreTrainedModel, args: object, output: ModelOutput) -> None:
        output.logits[..., EOS] += boost

    model.register_forward_hook(raise_end)
    return model


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Ids of `w4` to `w39` are their numbers; `</s>` ends a sentence."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(4, VOCABULARY))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@contextmanager
def logged() -> Iterator[list[str]]:
    """What transformers and hf_mt log from warnings up."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    for name in ("transformers", "hf_mt"):
        logging.getLogger(name).addHandler(handler)
    yield found
    for name in ("transformers", "hf_mt"):
        logging.getLogger(name).removeHandler(handler)
