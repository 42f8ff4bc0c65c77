"""Train, fine-tune, compare and publish machine translation models with Hugging Face.

Importing this package makes `AutoConfig`, `AutoModel` and `AutoModelForSeq2SeqLM` know the model type `hf_mt`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from hf_mt.errors import InputError
from hf_mt.model import HfMtConfig, HfMtForConditionalGeneration, HfMtModel
from hf_mt.translation import Translator


__version__ = "0.1.0"

AutoConfig.register("hf_mt", HfMtConfig)
AutoModel.register(HfMtConfig, HfMtModel)
AutoModelForSeq2SeqLM.register(HfMtConfig, HfMtForConditionalGeneration)

__all__ = ["HfMtConfig", "HfMtForConditionalGeneration", "HfMtModel", "InputError", "Translator", "__version__"]
