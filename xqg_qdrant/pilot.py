"""Questions for a trial where nobody has any: generated ones that are held back, and what they are worth.

Knows generated queries and differences. Knows nothing of stores and models.
"""

from __future__ import annotations

from collections.abc import Sequence

from xqg_qdrant.evaluation.comparison import Difference
from xqg_qdrant.records import GeneratedQuery, Passage, Qrel, Query
from xqg_qdrant.sweep.telling import describe_gain, is_sure

HELD_BACK = """\
No questions were given, so generated ones are asked: of each passage and language the last query is left out of the
vectors and asked as a question, whose one right answer is its passage. Such questions flatter the augmentation: who
wrote them wrote the queries in the vectors, too, in the same words and with the same mistakes. People ask otherwise. So
a gain here shows little, and the best alpha here is likely too large for people; that nothing is gained shows more."""

SMALL = (
    "In a sample a passage is found more easily than in the whole corpus, so all figures are higher here than there."
)


def hold_back(
    passages: Sequence[Passage], queries: Sequence[Sequence[GeneratedQuery]], number: int
) -> tuple[list[Query], list[Qrel]]:
    """Return the queries of this number as questions, each with its own passage as the one that is relevant."""
    questions, qrels = [], []
    for passage, generated in zip(passages, queries, strict=True):
        for query in generated:
            if query.number == number:
                question = Query(f"{passage.passage_id}-{query.language}", query.text, query.language)
                questions.append(question)
                qrels.append(Qrel(question.query_id, passage.passage_id, 1))
    return questions, qrels


def judge_held_back(measure: str, gained: Difference, found_plain: float) -> str:
    """Say what a gain on held-back questions is worth, of which the plain vectors find so many percent."""
    told = describe_gain(measure, gained)
    own = (
        f"The plain vectors find the passage of {found_plain:.0f}% of these questions among the first ten: the less it "
        "is, the less the generator writes what its passages answer."
    )
    if is_sure(gained) and gained.points > 0:
        return (
            f"Held-back questions gain: {told}. Whether people's questions do, only those can tell: give some hundred "
            f"with --questions and --qrels. {own}"
        )
    return f"Not even held-back questions gain: {told}. xQG is hardly worth it here. {own}"
