"""
Prints versions and machine as a block to paste into a bug report.

    python scripts/env.py
    accelerate launch scripts/env.py        # as training sees it
"""

import os

from hf_mt.environment import environment


if __name__ == "__main__":
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("```")
        for key, value in environment().items():
            print(f"{key:<20}{value}")
        print("```")
