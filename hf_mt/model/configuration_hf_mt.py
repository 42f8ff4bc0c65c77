"""Configuration of hf_mt models.

- Field names are Marian's where Marian has the field, T5's and Llama's for their position encodings, and ours for the
  rest, so that a reader of one reads the other.
- `@strict` checks types and choices when a configuration is made or loaded; `validate_architecture` checks what spans
  fields. What only one position encoding can know (an even rotary width, say) is checked by its class.
- Generation settings never live here: transformers 5 refuses to save them in `config.json`.
"""

import copy
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig


PositionEncodingName = Literal[
    "sinusoidal",
    "learned",
    "none",
    "shaw",
    "t5",
    "rope",
    "alibi",
    "kerple",
    "fire",
    "xpos",
    "pope",
    "deberta",
    "cope",
]


@strict
class HfMtConfig(PreTrainedConfig):
    r"""An encoder-decoder Transformer (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) with one vocabulary for
    both languages and a choice of position encodings.

    Args:
        vocab_size: Number of subwords, shared by source and target.
        d_model: Width of the residual stream; a multiple of both numbers of heads.
        encoder_layers, decoder_layers: Depths.
        encoder_attention_heads, decoder_attention_heads: Heads of each attention.
        encoder_ffn_dim, decoder_ffn_dim: Inner widths of the feed-forward blocks.
        gated_ffn: Multiply the activation by a second projection (GLU variants, https://arxiv.org/abs/2002.05202).
        activation_function: A name of `transformers.activations.ACT2FN`, such as relu, gelu or silu.
        dropout: On embeddings and on the output of every block, before it joins the residual stream.
        attention_dropout: On attention weights.
        activation_dropout: Inside the feed-forward blocks.
        norm_position: pre (before each block) or post (after the residual sum, as published in 2017).
        norm_type: layernorm or rmsnorm (https://arxiv.org/abs/1910.07467).
        tie_embeddings: none; decoder (target embeddings and output projection); all (source embeddings as well).
        scale_embedding: Multiply embeddings by sqrt(d_model).
        init_std: Standard deviation of initial weights of projections and embeddings; None takes Xavier uniform for
            the former and d_model**-0.5 for the latter, which fits narrow and wide models alike. Position encodings
            with weights of their own begin as their classes say.
        label_smoothing: Share of the probability mass spread over the vocabulary in the loss.
        r_drop: Weight of R-Drop (https://arxiv.org/abs/2106.14448): in training each batch is read twice, under
            different dropout, and disagreement costs. 0 reads it once; the paper's translation models have 5.
        position_encoding: A key of `POSITION_ENCODINGS`.
        encoder_position_encoding, decoder_position_encoding: Likewise, for one side, where the sides differ.
        position_shift: In training all positions of a batch move by a random number up to this (SHAPE,
            https://arxiv.org/abs/2109.05644), so that absolute positions mean little. 0 moves none.
        randomized_positions: In training positions are a random ascending choice of up to this many
            (https://arxiv.org/abs/2305.16843), so that longer input brings no unseen position. 0 counts 0, 1, 2, ...,
            as translating always does, where the paper draws at random too, always of all.
        max_position_embeddings: Longest sequence of the learned table; for the other encodings the default
            maximum length of generation. Eight times the unit of the threshold that `fire` learns: a trained model of
            it needs the value that it was trained with.
        relative_attention_num_buckets, relative_attention_max_distance: As in T5.
        max_relative_position: Distance at which the relative positions of shaw, deberta and cope are clipped.
        rope_parameters: As in transformers 5: `rope_type` (default, linear, ntk, yarn), `rope_theta`, `factor`,
            `partial_rotary_factor`, `original_max_position_embeddings` (yarn).
        pad_token_id, bos_token_id, eos_token_id, decoder_start_token_id: Special tokens of the tokenizer.
        use_cache: Whether a decoder returns a cache outside of training.

    Raises:
        huggingface_hub.errors.StrictDataclassError: When a value has the wrong type, is not among the choices, or does
            not fit the others. What only a position encoding can refuse is a ValueError when a model is made.
    """

    model_type = "hf_mt"
    keys_to_ignore_at_inference = ["past_key_values", "nll", "num_correct", "num_tokens"]  # the latter of a batch
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
    }

    vocab_size: int = 8000
    d_model: int = 256
    encoder_layers: int = 4
    decoder_layers: int = 4
    encoder_attention_heads: int = 4
    decoder_attention_heads: int = 4
    encoder_ffn_dim: int = 1024
    decoder_ffn_dim: int = 1024
    gated_ffn: bool = False
    activation_function: str = "relu"
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    norm_position: Literal["pre", "post"] = "pre"
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    tie_embeddings: Literal["none", "decoder", "all"] = "all"
    scale_embedding: bool = True
    init_std: float | None = None
    label_smoothing: float | int = 0.0
    r_drop: float | int = 0.0
    position_encoding: PositionEncodingName = "rope"
    encoder_position_encoding: PositionEncodingName | None = None
    decoder_position_encoding: PositionEncodingName | None = None
    position_shift: int = 0
    randomized_positions: int = 0
    max_position_embeddings: int = 512
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    max_relative_position: int = 16
    rope_parameters: dict | None = None
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 1
    is_encoder_decoder: bool = True
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        tied = kwargs.pop("tie_word_embeddings", None)
        super().__post_init__(**kwargs)
        if tied is False and self.tie_embeddings == "all":  # its default; of the two, it tells more
            self.tie_embeddings = "none"
        # `register_for_auto_class` would name only the class that is saved, and users load with all three; after a
        # load from the Hub these would stand there with the name of its repository, but the code is saved again
        given = getattr(self, "auto_map", None) or {}
        own = {
            "AutoConfig": "configuration_hf_mt.HfMtConfig",
            "AutoModel": "modeling_hf_mt.HfMtModel",
            "AutoModelForSeq2SeqLM": "modeling_hf_mt.HfMtForConditionalGeneration",
        }
        others = {name: value for name, value in given.items() if str(value).rpartition("--")[2] != own.get(name)}
        self.auto_map = own | others

    @property
    def tie_word_embeddings(self) -> bool:
        """What transformers asks for before it ties the weights that the model names."""
        return self.tie_embeddings != "none"

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool) -> None:
        if value != self.tie_word_embeddings:
            self.tie_embeddings = "all" if value else "none"

    def to_dict(self) -> dict[str, Any]:
        """With `tie_word_embeddings` where weights are tied, which PEFT looks for there."""
        return super().to_dict() | ({"tie_word_embeddings": True} if self.tie_word_embeddings else {})

    @property
    def position_encodings(self) -> tuple[PositionEncodingName, PositionEncodingName]:
        """Schemes of encoder and decoder."""
        return (
            self.encoder_position_encoding or self.position_encoding,
            self.decoder_position_encoding or self.position_encoding,
        )

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """As in transformers, which for one side takes that side's fields for those of the whole, even where None."""
        if decoder == encoder:
            return self
        sided = copy.deepcopy(self)
        sided.encoder_position_encoding, sided.decoder_position_encoding = self.position_encodings
        return super(HfMtConfig, sided).get_text_config(decoder=decoder, encoder=encoder)

    def validate_architecture(self) -> None:
        """Checks that span fields; called by `@strict`."""
        sizes = "vocab_size d_model encoder_layers decoder_layers encoder_attention_heads decoder_attention_heads"
        for name in f"{sizes} encoder_ffn_dim decoder_ffn_dim max_position_embeddings".split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise ValueError(
                    f"d_model ({self.d_model}) is not a multiple of {name} ({getattr(self, name)}): "
                    "every head needs the same width; change one of the two"
                )
        for name in ("dropout", "attention_dropout", "activation_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 0 and less than 1")
        for name in ("r_drop", "position_shift", "randomized_positions"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 0 (none) or more")
        if self.init_std is not None and not self.init_std > 0:
            raise ValueError(f"init_std is {self.init_std}, but must be positive, or None for the default")
        if self.activation_function not in ACT2FN:
            raise ValueError(
                f"activation_function is {self.activation_function!r}, but must be one of {', '.join(sorted(ACT2FN))}"
            )

    def _validate_ntk_rope_parameters(self, rope_parameters: dict, ignore_keys: set | None = None) -> None:
        """transformers looks this name up for each `rope_type`; it has none for static NTK scaling."""
        self._check_received_keys(
            "ntk",
            set(rope_parameters),
            {"rope_type", "rope_theta", "factor"},
            {"partial_rotary_factor"},
            ignore_keys=ignore_keys,
        )


__all__ = ["HfMtConfig"]
