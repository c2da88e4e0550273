"""Evaluation: did the edit work, and what else moved."""

from tl_edit.evaluate.compare import Comparison, compare
from tl_edit.evaluate.fluency import TfIdf, generation_entropy
from tl_edit.evaluate.generation import Generation, generate_texts
from tl_edit.evaluate.measures import MEASURES, Measure
from tl_edit.evaluate.metric import Metric, PairedTest, paired_test
from tl_edit.evaluate.questions import Opinion, Question, batches, opinions
from tl_edit.evaluate.result import Evaluation
from tl_edit.evaluate.run import evaluate
from tl_edit.evaluate.scores import FactScore, Group, PromptScore, RecordScores, TextScores
from tl_edit.evaluate.sheet import Sheet
from tl_edit.evaluate.texts import Drift

__all__ = [
    "MEASURES",
    "Comparison",
    "Drift",
    "Evaluation",
    "FactScore",
    "Generation",
    "Group",
    "Measure",
    "Metric",
    "Opinion",
    "PairedTest",
    "PromptScore",
    "Question",
    "RecordScores",
    "Sheet",
    "TextScores",
    "TfIdf",
    "batches",
    "compare",
    "evaluate",
    "generate_texts",
    "generation_entropy",
    "opinions",
    "paired_test",
]
