"""The data of an experiment: pairs that are held, or streamed, their tokenizer, and what it makes of them."""

import logging
from dataclasses import replace
from itertools import islice

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from hf_mt.arguments import DataArguments
from hf_mt.corpora import load_corpus, stream_pairs
from hf_mt.data import PreparedData, filter_corpus, filter_pairs, prepare_data
from hf_mt.experiment import Experiment
from hf_mt.pair_files import pairs_to_dataset
from hf_mt.pair_stream import PairStream
from hf_mt.tokenization import get_tokenizer


logger = logging.getLogger(__name__)

TOKENIZER_PAIRS = 200_000  # of the beginning of a stream, on which a tokenizer is trained
HELD = ("validation", "test")  # the splits that are not streamed


def load_data(experiment: Experiment) -> tuple[DatasetDict, PreTrainedTokenizerBase, PreparedData]:
    """The filtered pairs that are held, the tokenizer, and what it makes of them.

    With `streaming` the training pairs are not held: `train` of the last is a `PairStream`. A tokenizer that has to be
    trained is then trained on the first `TOKENIZER_PAIRS` of them, and that is logged.

    Raises:
        InputError: as `hf_mt.corpora`, `get_tokenizer` and `prepare_data`.
    """
    data, vocab_size = experiment.data, experiment.resolved.get("vocab_size", 0)
    if data.streaming:
        return _load_streamed(experiment, vocab_size)
    corpus, counts = filter_corpus(load_corpus(data), data)
    tokenizer = get_tokenizer(corpus, data, experiment.model, vocab_size)
    return corpus, tokenizer, prepare_data(corpus, tokenizer, data, counts=counts)


def _load_streamed(
    experiment: Experiment, vocab_size: int
) -> tuple[DatasetDict, PreTrainedTokenizerBase, PreparedData]:
    data, model = experiment.data, experiment.model
    files = data.dataset_name or data.validation_file or data.test_file
    corpus, counts = filter_corpus(load_corpus(data, splits=HELD, required=False) if files else DatasetDict(), data)
    trained = not (model.tokenizer_name or model.model_name_or_path)
    texts = DatasetDict(train=_first_pairs(data)) if trained else corpus
    tokenizer = get_tokenizer(texts, data, model, vocab_size)
    prepared = prepare_data(corpus, tokenizer, data, counts=counts)
    stream = PairStream(data, tokenizer)
    return corpus, tokenizer, replace(prepared, train=stream, tokens={**prepared.tokens, "train": stream.tokens()})


def _first_pairs(data: DataArguments) -> Dataset:
    pairs = list(islice(stream_pairs(data), TOKENIZER_PAIRS))
    logger.warning("The tokenizer is trained on the first %d pairs of the stream.", len(pairs))
    return filter_pairs(pairs_to_dataset(pairs, (data.source_lang, data.target_lang)), data, split="train")[0]
