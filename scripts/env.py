"""
Prints versions and machine as a block to paste into a bug report.

    python scripts/env.py
    accelerate launch scripts/env.py        # as training sees it
"""

import argparse
import os

from hf_mt.command_line import run_script
from hf_mt.environment import environment


def main() -> None:
    argparse.ArgumentParser(description="Prints versions and machine.", allow_abbrev=False).parse_args()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("```")
        for key, value in environment().items():
            print(f"{key:<20}{value}")
        print("```")


if __name__ == "__main__":
    run_script(main)
