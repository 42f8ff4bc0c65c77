"""Writes a page about a run, or about several runs side by side.

python scripts/report.py runs/quickstart                              # runs/quickstart/report/index.html
python scripts/report.py runs/rope runs/alibi                         # runs/report-rope-alibi/index.html
python scripts/report.py runs/rope runs/alibi --output reports/encodings
python scripts/report.py runs/quickstart --sentences 3 17             # whose cross-attention is drawn
"""

import argparse

from hf_mt.command_line import path_name, run_script, whole_number
from hf_mt.progress import quiet_libraries
from hf_mt.report import write_report


def main() -> None:
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", type=path_name, help="run folders; the first is what others are compared with"
    )
    parser.add_argument(
        "--output",
        type=path_name,
        help="folder of the page; default: report in the run folder, report-NAME-NAME beside the first of several",
    )
    parser.add_argument(
        "--sentences",
        nargs="+",
        type=whole_number(1, 10**9),
        default=[],
        help="numbers of sentences of the test set, from 1; of the development set where a run has no other",
    )
    args = parser.parse_args()
    print(write_report(args.runs, folder=args.output, sentences=args.sentences))


if __name__ == "__main__":
    run_script(main)
