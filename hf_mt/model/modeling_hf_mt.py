"""The encoder-decoder Transformer of hf_mt.

- Encoder and decoder own a `PositionEncoding` each and never ask which one; what depends on positions alone is
  prepared once a stack and handed to the layers.
- Masks are built once a stack by transformers and passed on untouched.
- The loss never holds the scores of a batch: see `loss_hf_mt.py`. In training a call with labels returns no logits.
- This folder travels with the weights to the Hub: it imports only torch, transformers and its own files.

Shapes: B batch, S source length, T target length, Q query length, K key length, D d_model, V vocabulary size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs
from transformers.utils.versions import require_version

from .configuration_hf_mt import HfMtConfig
from .dropout_hf_mt import Dropout
from .layers_hf_mt import NORMS, HfMtCrossAttention, HfMtDecoderLayer, HfMtEncoderLayer, HfMtSelfAttention
from .linear_hf_mt import Linear
from .loss_hf_mt import IGNORE_INDEX, linear_cross_entropy
from .position_encoding_base import PositionEncoding
from .position_encodings import POSITION_ENCODINGS
from .r_drop_hf_mt import linear_r_drop


require_version("transformers>=5.15", "Kernels of older versions leave out the position bias without a word.")
logger = logging.get_logger(__name__)


class HfMtPreTrainedModel(PreTrainedModel):
    """Initial weights, and what transformers needs to know about all models of this file."""

    config: HfMtConfig
    config_class = HfMtConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HfMtEncoder", "HfMtDecoder"]  # over devices: layers share their stack's position encoding
    _repeated_blocks = ["HfMtEncoderLayer", "HfMtDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_attention_backend = True
    _supports_flash_attn = False  # of transformers, which has no place for a bias, and masks queries by their keys

    @property
    def _schemes(self) -> list[type[PositionEncoding]]:
        return [POSITION_ENCODINGS[name] for name in self.config.position_encodings]

    @property
    def _supports_sdpa(self) -> bool:  # type: ignore[override]
        """Its kernels keep attention weights to themselves."""
        return not any(scheme.uses_weights for scheme in self._schemes)

    @property
    def can_search_beams(self) -> bool:
        """Whether several continuations may lie side by side in one cache, told apart by mask and positions alone."""
        return not any(scheme.counts_words for scheme in self._schemes)

    def _resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """transformers resizes the source embeddings and what is tied to them; the decoder may have its own."""
        if self.config.tie_embeddings != "all":
            decoder = self.get_decoder()
            decoder.embed_tokens = self._get_resized_embeddings(decoder.embed_tokens, *args, **kwargs)
        return super()._resize_token_embeddings(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Linear weights: Xavier uniform, or normal of `init_std`; their biases: zero; norms: one and zero;
        embeddings: normal of d_model**-0.5 (or `init_std`), so that they have unit variance once scaled; position
        encodings: their own `reset`."""
        embedding_std = self.config.init_std or self.config.d_model**-0.5
        if isinstance(module, PositionEncoding):
            module.reset(embedding_std)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=embedding_std)
        elif isinstance(module, nn.Linear) and self.config.init_std is None:
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class HfMtStack(HfMtPreTrainedModel):
    """Embeddings, position encoding and final norm that encoder and decoder have."""

    def __init__(self, config: HfMtConfig, *, num_heads: int, bidirectional: bool):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embed_scale = config.d_model**0.5 if config.scale_embedding else 1.0
        encoding = POSITION_ENCODINGS[config.position_encodings[0 if bidirectional else 1]]
        self.position_encoding = encoding(config, num_heads=num_heads, bidirectional=bidirectional)
        self.dropout = Dropout(config.dropout)
        # a pre-norm residual stream ends unnormalised; a post-norm one does not
        self.norm = NORMS[config.norm_type](config.d_model) if config.norm_position == "pre" else nn.Identity()
        self.gradient_checkpointing = False

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, positions: Tensor) -> Tensor:
        """(B, Q) ids, or what `embed_tokens` makes of them, (B, Q, D), to (B, Q, D)."""
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        return self.dropout(self.position_encoding.embed(inputs_embeds * self.embed_scale, positions))

    def check_length(self, length: int | Tensor) -> None:
        """Raises ValueError if a sequence is longer than the position encoding can take."""
        limit = self.position_encoding.max_length
        if limit is not None and int(length) > limit:
            raise ValueError(
                f"a sequence of {int(length)} tokens is longer than max_position_embeddings ({limit}) of "
                f"{type(self.position_encoding).__name__}; shorten it, or train with a larger table "
                "or with an encoding that has no limit"
            )

    def reach(self, length: int) -> int:
        """One more than the last of `positions(length)` can be."""
        if not self.training:
            return length
        return max(length, self.config.randomized_positions) + self.config.position_shift

    def positions(self, length: int, device: torch.device) -> Tensor:
        """(Q,) of a sequence: 0, 1, 2, ...; in training moved or spread at random, if the configuration says so.

        Source: Kiyono et al. 2021 (https://arxiv.org/abs/2109.05644) for `position_shift`, Ruoss et al. 2023
        (https://arxiv.org/abs/2305.16843) for `randomized_positions`; one draw a batch, where the former's code
        draws for each sentence. In evaluation we count 0, 1, 2; there the former count from the largest shift, and
        the latter draw, too. So that counting is nothing new to a model, its positions are spread over the first n,
        and log n is uniform from the length up to all of them; the paper's n is always all.

        Raises:
            ValueError: The sequence is longer than `randomized_positions`.
        """
        positions = torch.arange(length, device=device)
        if not self.training:
            return positions
        farthest, shift = self.config.randomized_positions, self.config.position_shift
        if farthest:
            if length > farthest:
                raise ValueError(f"a sequence of {length} tokens does not fit in randomized_positions ({farthest})")
            positions = _spread_positions(length, farthest, device)
        return positions + torch.randint(shift + 1, (1,), device=device) if shift else positions


def _spread_positions(length: int, farthest: int, device: torch.device) -> Tensor:
    """(length,) ascending numbers below n, chosen at random, as n is: log n is uniform from `length` to `farthest`."""
    n = length * (farthest / length) ** torch.rand(1, device=device)  # not read here, which would wait for a GPU
    order = torch.rand(farthest, device=device).masked_fill(torch.arange(farthest, device=device) >= n.ceil(), 1.0)
    return order.argsort(stable=True)[:length].sort().values


def _require_one(ids: Tensor | None, embeds: Tensor | None) -> Tensor:
    if (ids is None) == (embeds is None):
        raise ValueError("pass exactly one of token ids and embeddings to each of encoder and decoder")
    return ids if embeds is None else embeds  # type: ignore[return-value]


class HfMtEncoder(HfMtStack):
    _can_record_outputs = {
        "attentions": OutputRecorder(HfMtSelfAttention, index=1),
        "hidden_states": HfMtEncoderLayer,
    }

    def __init__(self, config: HfMtConfig):
        super().__init__(config, num_heads=config.encoder_attention_heads, bidirectional=True)
        self.layers = nn.ModuleList(HfMtEncoderLayer(config, index) for index in range(config.encoder_layers))
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """(B, S) ids and mask (1 word, 0 padding) to `last_hidden_state` (B, S, D)."""
        inputs = _require_one(input_ids, inputs_embeds)
        positions = self.positions(inputs.shape[1], inputs.device)
        self.check_length(self.reach(inputs.shape[1]))
        hidden_states = self.embed(input_ids, inputs_embeds, positions)
        mask = create_bidirectional_mask(self.config, hidden_states, attention_mask)
        state = self.position_encoding.prepare(positions, positions)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, self.position_encoding, state)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class HfMtDecoder(HfMtStack):
    _can_record_outputs = {
        "attentions": OutputRecorder(HfMtSelfAttention, index=1),
        "cross_attentions": OutputRecorder(HfMtCrossAttention, index=1),
        "hidden_states": OutputRecorder(HfMtDecoderLayer),
    }

    # of which a negative `output_hidden_states` counts; no argument of older versions
    _can_record_outputs["hidden_states"].num_hidden_layers_key = "decoder_layers"  # type: ignore[attr-defined]

    def __init__(self, config: HfMtConfig):
        super().__init__(config, num_heads=config.decoder_attention_heads, bidirectional=False)
        self.layers = nn.ModuleList(HfMtDecoderLayer(config, index) for index in range(config.decoder_layers))
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        positions: Tensor | None = None,
        key_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """(B, Q) new ids, the source (B, S, D) and its mask (B, S) to `last_hidden_state` (B, Q, D).

        `positions` (Q,) of the new ids and `key_positions` (K,) of all keys differ from their places in the cache
        where it holds several continuations side by side; `attention_mask` (B, 1, Q, K) then tells which sees which.
        """
        inputs = _require_one(input_ids, inputs_embeds)
        if encoder_hidden_states is None:
            raise ValueError("the decoder needs encoder_hidden_states")
        if use_cache and past_key_values is None and not self.training:
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        self_cache = None if past_key_values is None else past_key_values.self_attention_cache
        past, length = _past_and_key_length(self_cache, inputs.shape[1])
        if positions is None and self_cache is None:
            self.check_length(self.reach(inputs.shape[1]))
            positions = self.positions(inputs.shape[1], inputs.device)
        elif positions is None:  # never at random: each call would move them in another way than the cached ones
            self.check_length(past + inputs.shape[1])
            positions = torch.arange(inputs.shape[1], device=inputs.device) + past
        if key_positions is None:
            key_positions = positions if self_cache is None else torch.arange(length, device=inputs.device)
        hidden_states = self.embed(input_ids, inputs_embeds, positions)
        mask = create_causal_mask(self.config, hidden_states, attention_mask, self_cache)
        cross_mask = create_bidirectional_mask(
            self.config, hidden_states, encoder_attention_mask, encoder_hidden_states=encoder_hidden_states
        )
        state = self.position_encoding.prepare(positions, key_positions)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                mask,
                self.position_encoding,
                state,
                encoder_hidden_states,
                cross_mask,
                past_key_values=past_key_values,  # by keyword: gradient checkpointing looks for it there
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )


def _past_and_key_length(cache: Cache | None, query_length: int) -> tuple[int | Tensor, int]:
    """Number of cached positions, and of keys that attention will see (all slots of a static cache)."""
    if cache is None:
        return 0, query_length
    past = cache.get_seq_length()
    return past, cache.get_mask_sizes(query_length, 0)[0]


class HfMtModel(HfMtPreTrainedModel):
    """Encoder and decoder without a head: what `AutoModel` loads."""

    _keys_to_ignore_on_load_unexpected = ["lm_head"]

    def __init__(self, config: HfMtConfig):
        super().__init__(config)
        if config.tie_embeddings == "all":
            self._tied_weights_keys = {"encoder.embed_tokens.weight": "decoder.embed_tokens.weight"}
        self.encoder = HfMtEncoder(config)
        self.decoder = HfMtDecoder(config)
        self.post_init()

    @property
    def max_length(self) -> int | None:
        """Longest source or target in tokens; None if the position encodings have no limit."""
        limits = (self.encoder.position_encoding.max_length, self.decoder.position_encoding.max_length)
        return min((limit for limit in limits if limit is not None), default=None)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.embed_tokens = value
        if self.config.tie_embeddings == "all":
            self.decoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput:
        """Runs both stacks; give the encoder ids or embeddings, or its outputs from an earlier call.

        Args:
            input_ids: (B, S) source tokens.
            attention_mask: (B, S), 1 where a token counts and 0 at padding; None if there is no padding. Padding takes
                positions: put it at the end, where sinusoidal, learned and fire do not notice it either.
            decoder_input_ids: (B, Q) target tokens; with a cache only those that it does not hold yet.
            decoder_attention_mask: (B, K); needed only for padding that is not at the end.
            encoder_outputs: What the encoder returned.
            past_key_values: Keys and values of earlier calls; extended in place.
            inputs_embeds, decoder_inputs_embeds: (B, S, D) and (B, Q, D) in place of ids, as `get_input_embeddings()`
                and the decoder's embeddings give them: not scaled yet.
            use_cache: Whether to return a cache; by default in evaluation mode.

        Returns:
            `last_hidden_state` (B, Q, D), the cache, and hidden states and attentions where asked for.

        Raises:
            ValueError: If a sequence is longer than the position encoding can take.
        """
        if kwargs.get("output_attentions") and self.config._attn_implementation != "eager":
            logger.warning_once(
                "Only the kernel eager returns attention weights: model.set_attn_implementation('eager')"
            )
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds, **kwargs)
        encoded = BaseModelOutput(*encoder_outputs) if isinstance(encoder_outputs, tuple) else encoder_outputs
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            past_key_values=decoder_outputs.past_key_values,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


@dataclass
class HfMtOutput(Seq2SeqLMOutput):
    """`Seq2SeqLMOutput` and sums over the labels of the batch, each a scalar.

    Args:
        nll: Unsmoothed negative log-likelihood in nats.
        num_correct: Labels to which the model gives the highest score.
        num_tokens: Labels that are not -100.
    """

    nll: Tensor | None = None
    num_correct: Tensor | None = None
    num_tokens: Tensor | None = None


class HfMtForConditionalGeneration(HfMtPreTrainedModel, GenerationMixin):
    """The translation model: what `AutoModelForSeq2SeqLM` loads."""

    def __init__(self, config: HfMtConfig):
        super().__init__(config)
        if config.tie_embeddings != "none":
            self._tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
        self.model = HfMtModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.r_drop = config.r_drop  # whoever trains may leave it out of some steps
        self.loss_dtype: torch.dtype | None = None  # of products with the vocabulary, in training
        self.generation_config.max_length = config.max_position_embeddings  # else generation stops at 20 tokens
        self.post_init()

    @property
    def max_length(self) -> int | None:
        """Longest source or target in tokens; None if the position encoding has no limit."""
        return self.model.max_length

    def round_products(self, layers: bool) -> None:
        """From now on products with the vocabulary round factors and scores to bfloat16, in training alone.

        Args:
            layers: Whether those of linear layers round their factors, too.
        """
        self.loss_dtype = torch.bfloat16
        for module in self.modules():
            if isinstance(module, Linear):
                module.rounded = layers

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels (B, T) moved right behind the start token; -100 becomes padding."""
        shifted = labels.roll(1, dims=-1)
        shifted[:, 0] = self.config.decoder_start_token_id
        return shifted.masked_fill(shifted == IGNORE_INDEX, self.config.pad_token_id)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> HfMtOutput:
        """Scores or losses of target tokens; arguments as of `HfMtModel.forward`, and:

        Args:
            labels: (B, T) target tokens, -100 where there is none; the decoder reads them moved right by one.
            num_items_in_batch: What the summed loss is divided by: the labels of all micro-batches and processes that
                make up one optimizer step. By default the labels of this call.
            skip_logits: Whether to return no logits (B, Q, V). By default they are skipped in training with labels,
                where nobody needs them and they are the largest tensor of all.

        Returns:
            `loss` (smoothed as the configuration says), `nll`, `num_correct`, `num_tokens` if there are labels;
            `logits`; and what `HfMtModel` returns.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "encoder_outputs": encoder_outputs,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "decoder_inputs_embeds": decoder_inputs_embeds,
            "use_cache": use_cache if labels is None else False,
            **kwargs,
        }
        outputs = self.model(**inputs)
        losses = {} if labels is None else self.losses(outputs.last_hidden_state, labels, num_items_in_batch, inputs)
        if skip_logits is None:
            skip_logits = self.training and labels is not None
        logits = None if skip_logits else self.lm_head(outputs.last_hidden_state)
        kept = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return HfMtOutput(logits=logits, **losses, **kept)

    def output_weight(self) -> Tensor:
        """(V, D); of a head that an adapter wraps or that lies elsewhere, what it makes of each dimension."""
        weight = self.lm_head.weight
        if not hasattr(self.lm_head, "base_layer") and not weight.is_meta:  # PEFT's name for what it wraps
            return weight
        return self.lm_head(torch.eye(self.config.d_model, dtype=weight.dtype, device=self.device)).T

    def losses(
        self, hidden_states: Tensor, labels: Tensor, num_items: Tensor | int | None, inputs: dict[str, Any]
    ) -> dict[str, Tensor]:
        """The part of `HfMtOutput` that labels (B, T) add, from decoder states (B, T, D) and their inputs."""
        weight, smoothing = self.output_weight().to(hidden_states.device), self.config.label_smoothing
        labels = labels.to(hidden_states.device)
        dtype = self.loss_dtype if self.training else None
        if self.training and self.r_drop:
            twice = torch.stack((hidden_states, self.model(**inputs).last_hidden_state))  # (2, B, T, D)
            sums = linear_r_drop(twice, weight, labels, alpha=self.r_drop, label_smoothing=smoothing, dtype=dtype)
        else:
            sums = linear_cross_entropy(hidden_states, weight, labels, label_smoothing=smoothing, dtype=dtype)
        loss = sums.loss / (sums.num_tokens.clamp(min=1) if num_items is None else num_items)
        return sums._asdict() | {"loss": loss}


HfMtConfig.register_for_auto_class()
HfMtModel.register_for_auto_class("AutoModel")
HfMtForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")

__all__ = ["HfMtForConditionalGeneration", "HfMtModel", "HfMtPreTrainedModel"]
