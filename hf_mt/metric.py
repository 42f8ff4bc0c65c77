"""The scores of `hf_mt.scores` as a metric of `evaluate`: the same numbers, to the last digit.

It works offline and keeps its data in memory: no locks, and no files that processes share.
"""

import uuid
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from hf_mt.scores import References, corpus_scores, reference_sets


class TranslationMetric(evaluate.Metric):
    """`corpus_scores` behind the interface of `evaluate`: `compute(predictions=..., references=...)`.

    It never touches the network, nor files of other processes. In distributed runs let one process compute it.
    """

    def __init__(self, **options: Any):
        super().__init__(experiment_id=uuid.uuid4().hex, keep_in_memory=True, **options)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="BLEU, chrF and TER with signatures, computed by sacrebleu.",
            citation="Post 2018, A Call for Clarity in Reporting BLEU Scores, https://aclanthology.org/W18-6319",
            inputs_description=(
                "predictions: list of texts; references: a text, or a list of texts, for each prediction; "
                "lowercase, tokenize, metrics: as hf_mt.scores.corpus_scores"
            ),
            features=[
                datasets.Features({"predictions": text, "references": text}),
                datasets.Features({"predictions": text, "references": datasets.List(text)}),
            ],
            reference_urls=["https://github.com/mjpost/sacrebleu"],
        )

    def compute(
        self, *, predictions: Sequence[str] | None = None, references: References | None = None, **options: Any
    ) -> dict[str, float | str]:
        """Scores what is given here, or what was added before; `evaluate` alone would score the letters of a text."""
        if predictions is not None and references is not None:
            reference_sets(predictions, references)
        return super().compute(predictions=predictions, references=references, **options)

    def _compute(self, predictions: Sequence[str], references: References, **options: Any) -> dict[str, float | str]:
        return corpus_scores(predictions, references, **options)
