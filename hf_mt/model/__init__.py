"""The folder that travels with the weights: configuration, position encodings, model and loss."""

from .configuration_hf_mt import HfMtConfig
from .modeling_hf_mt import HfMtForConditionalGeneration, HfMtModel, HfMtOutput, HfMtPreTrainedModel
from .position_encodings import POSITION_ENCODINGS, PositionEncoding


__all__ = [
    "POSITION_ENCODINGS",
    "HfMtConfig",
    "HfMtForConditionalGeneration",
    "HfMtModel",
    "HfMtOutput",
    "HfMtPreTrainedModel",
    "PositionEncoding",
]
