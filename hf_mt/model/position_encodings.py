"""Where a Transformer learns the order of words: the list of schemes.

- `position_encoding_base.py` has the interface, and the files named here one class for each scheme, by the place where
  position enters.
- A new scheme is a class there, a line here and a word in `PositionEncodingName`.
"""

from .position_encoding_base import PositionEncoding
from .position_encodings_added import LearnedPositionEncoding, SinusoidalPositionEncoding
from .position_encodings_bias import (
    AlibiPositionEncoding,
    FirePositionEncoding,
    KerplePositionEncoding,
    T5PositionEncoding,
)
from .position_encodings_content import CopePositionEncoding, DebertaPositionEncoding, ShawPositionEncoding
from .position_encodings_rotary import PolarPositionEncoding, RotaryPositionEncoding, XposPositionEncoding


POSITION_ENCODINGS: dict[str, type[PositionEncoding]] = {
    "sinusoidal": SinusoidalPositionEncoding,
    "learned": LearnedPositionEncoding,
    "none": PositionEncoding,
    "shaw": ShawPositionEncoding,
    "t5": T5PositionEncoding,
    "rope": RotaryPositionEncoding,
    "alibi": AlibiPositionEncoding,
    "kerple": KerplePositionEncoding,
    "fire": FirePositionEncoding,
    "xpos": XposPositionEncoding,
    "pope": PolarPositionEncoding,
    "deberta": DebertaPositionEncoding,
    "cope": CopePositionEncoding,
}

__all__ = ["POSITION_ENCODINGS", "PositionEncoding"]
