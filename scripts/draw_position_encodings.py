"""Draws what each position encoding adds, turns or biases, for model_cards/positional_encodings.md.

python scripts/draw_position_encodings.py --output model_cards/positional_encodings
"""

import argparse

from hf_mt.command_line import path_name, run_script
from hf_mt.encoding_pictures import encoding_figure
from hf_mt.figures import save_png
from hf_mt.model import POSITION_ENCODINGS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--output", type=path_name, required=True, help="folder of the pictures, one for each encoding"
    )
    parser.add_argument("--encodings", nargs="+", choices=list(POSITION_ENCODINGS), default=list(POSITION_ENCODINGS))
    args = parser.parse_args()
    for name in args.encodings:
        print(save_png(encoding_figure(name), args.output / f"{name}.png"))


if __name__ == "__main__":
    run_script(main)
