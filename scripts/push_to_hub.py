"""Write the model card of a finished run and push the run to the Hugging Face Hub.

    python scripts/push_to_hub.py runs/quickstart --repo_id user/name --private
    python scripts/push_to_hub.py runs/quickstart --dry_run

Only what is needed to load the model is sent, with its card and curves; --dry_run writes the card, lists the files and
sends nothing.
"""

import argparse

from hf_mt.command_line import path_name, run_script, word
from hf_mt.hub import files_to_push, push
from hf_mt.model_card import write_model_card


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", type=path_name, help="folder of the run, or of a checkpoint in it")
    parser.add_argument(
        "--repo_id", type=word, help="user/name or organisation/name; default: the folder's name, yours"
    )
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument("--revision", type=word, help="branch to push to; default: main")
    parser.add_argument("--commit_message", type=word, help="what the history of the repository says")
    parser.add_argument("--license", type=word, help="licence of the weights for the card, such as apache-2.0")
    parser.add_argument("--no_samples", action="store_true", help="show no sentences of the data in the card")
    parser.add_argument("--dry_run", action="store_true", help="write the card, list the files and stop")
    return parser.parse_args()


def main() -> None:
    args = parse()
    repo_id = args.repo_id or args.run.resolve().name
    files_to_push(args.run)  # refuses what would not load, before anything is written
    write_model_card(args.run, repo_id=repo_id, license=args.license, show_samples=not args.no_samples)
    if args.dry_run:
        print("\n".join(files_to_push(args.run)))
        return
    private = True if args.private else None
    print(push(args.run, repo_id, private=private, revision=args.revision, commit_message=args.commit_message))


if __name__ == "__main__":
    run_script(main)
