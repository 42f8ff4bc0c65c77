"""What may be asked of a search: refused before any work, whether a script asks or a program.

A beam costs memory for each step and word, so that a slip of the keyboard would end with a killed program.
"""

from collections.abc import Mapping
from typing import Any

from hf_mt.errors import InputError


MOST_BEAMS = 1000
MOST_TOKENS = 10**7
# least and most of each; whole numbers where these are
LIMITS: Mapping[str, tuple[float, float]] = {
    "num_beams": (1, MOST_BEAMS),
    "num_return_sequences": (1, MOST_BEAMS),
    "nbest": (0, MOST_BEAMS),
    "max_new_tokens": (1, MOST_TOKENS),
    "max_source_tokens": (1, MOST_TOKENS),
    "shard_size": (1, 2**31),
    "max_length_a": (0.0, 1000.0),
    "max_length_b": (0, MOST_TOKENS),
    "length_penalty": (-5.0, 5.0),
    "tokens_per_batch": (1, 2**31),
    "block_size": (1, 2**31),
    "encoder_no_repeat_ngram_size": (0, MOST_BEAMS),  # `generate` copies the source so many times
}


def check_limits(**settings: Any) -> None:
    """Compares settings with `LIMITS`; None asks for the model's own, and other names are not looked at.

    Raises:
        InputError: One is of another type, not a number, or outside.
    """
    for name, value in settings.items():
        if value is None or name not in LIMITS:
            continue
        least, most = LIMITS[name]
        kind = int | float if isinstance(least, float) else int
        if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:  # NaN is nowhere
            number = "a number" if isinstance(least, float) else "a whole number"
            raise InputError(f"{name} is {str(value)[:50]}; it must be {number} from {least:,} to {most:,}")
    if settings.get("max_length_a") == settings.get("max_length_b") == 0:
        raise InputError("max_length_a and max_length_b are both 0, but a translation needs a token at least")


def model_setting(settings: Any, name: str, default: Any) -> Any:
    """What a model's own generation configuration says of the search; `default` if it says nothing.

    Raises:
        InputError: It is of another type, or outside `LIMITS`: the file may be anybody's.
    """
    value = getattr(settings, name, None)
    try:
        check_limits(**{name: value})
    except InputError as error:
        raise InputError(f"generation_config.json of the model: {error}; correct the file, or give {name}") from error
    return default if value is None else value
