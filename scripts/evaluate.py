"""Scores a model on test data with BLEU, chrF and TER, as sacrebleu computes them.

    python scripts/evaluate.py runs/quickstart
    python scripts/evaluate.py Helsinki-NLP/opus-mt-en-de --test_file data/test --source_lang en --target_lang de

Options are the keys of the data (dataset_name, test_file, source_lang, max_predict_samples, ...), for which a run
folder has defaults, and
    --split validation|test        --output_dir DIR            (MODEL/evaluation/NAME of the test file)
    --num_beams N                  --length_penalty X          (the model's own)
    --tokens_per_batch N           --device D                  --revision R     --trust_remote_code
    --tokenized_scores true        also BLEU of lower-cased tokens       (the run's own)
    --bleu_tokenize zh             also BLEU by another tokenizer        (the run's own)
    --lowercase  --tokenize none   no other scores than of lower-cased or tokenised text: they get other names
    --more_references FILE         further references; '["FILE", "FILE"]' for several
    --comet MODEL                  also COMET, by the program --comet_program (comet-score)
    --hypotheses FILE              scores these translations, with or without MODEL
"""

import sys

from hf_mt.command_line import run_script
from hf_mt.evaluation import evaluate_model, parse_evaluation
from hf_mt.progress import quiet_libraries
from hf_mt.scores import PREFIXES
from hf_mt.tables import print_scores


def main() -> None:
    quiet_libraries()
    if {"-h", "--help"} & set(sys.argv[1:]):
        return print(__doc__)
    args, data = parse_evaluation(sys.argv[1:])
    results = evaluate_model(args, data, show_progress=sys.stderr.isatty())
    print_scores(results)
    folder = results["output_dir"]
    if folder is not None:
        prefix = PREFIXES[args.split]
        print(f"written to {folder}: results.json, predictions.txt, {prefix}_scores.tsv, {prefix}_analysis.json")


if __name__ == "__main__":
    run_script(main)
