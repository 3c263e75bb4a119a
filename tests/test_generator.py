from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import (
    LANGUAGE_TOKENS,
    LANGUAGES,
    LONGEST_PROMPT,
    NEW_TOKENS,
    SUPPRESSED,
    T5_END,
    exported_generator,
    generator_checkpoint,
    passages,
)
from scipy import stats

from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.errors import InputError
from xqg_qdrant.generation import Generation
from xqg_qdrant.generation.checks import Dropped
from xqg_qdrant.generation.onnx import QueryGenerator, Sampling
from xqg_qdrant.inference.decoding import Noise, gumbel_noise
from xqg_qdrant.inference.seq2seq import DecoderStep, Graphs, Memory
from xqg_qdrant.inference.session import Buffer, Session
from xqg_qdrant.records import GeneratedQuery, Passage

SAMPLING = Sampling(top_k=8, temperature=0.9, max_new_tokens=NEW_TOKENS)
COUNT = 4
FORMS = [
    ("t5", "float32"),
    ("t5", "int8"),
    ("t5-1.1", "float32"),
    ("mt5", "float32"),
    ("mt5", "int8"),
    ("bert2bert", "float32"),
    ("bert2bert", "int8"),
]
Rows = dict[tuple[str, int], list[int]]


def open_generator(form: str, dtype: str = "float32", threads: int = 1) -> QueryGenerator:
    return QueryGenerator(exported_generator(form, dtype), device="cpu", threads=threads)


def sample(
    generator: QueryGenerator, passage: Passage, languages: tuple[str, ...] = (), count: int = COUNT, seed: int = 0
) -> Rows:
    """Return the ids of each query by language and number, with the noise that `generate` draws for it."""
    languages = languages or generator.languages
    drawn: list[Noise] = []
    rows: list[list[int]] = []
    generate_ids = generator.generate_ids

    def record(passages: Any, languages: Any, noise: Noise, *settings: Any) -> list[list[int]]:  # noqa: ANN401
        drawn.append(noise)
        rows.extend(generate_ids(passages, languages, noise, *settings))
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "generate_ids", record)
        generator.generate([passage], languages, count, seed, SAMPLING)
    assert drawn[0].shape == (len(languages) * count, NEW_TOKENS, SAMPLING.top_k)
    return dict(zip(itertools.product(languages, range(count)), rows, strict=True))


def draw_noise(rows: int, steps: int, top_k: int) -> Noise:
    return gumbel_noise([sha256(b"%d" % number).digest() for number in range(rows)], steps, top_k)


@pytest.mark.parametrize(("form", "dtype"), FORMS)
def test_a_passage_gets_the_same_queries_in_any_order_and_with_any_number_of_threads(form: str, dtype: str) -> None:
    generator = open_generator(form, dtype)
    first = {passage.passage_id: sample(generator, passage) for passage in passages()[::2]}
    assert len({tuple(row) for rows in first.values() for row in rows.values()}) > 100
    assert len({len(row) for rows in first.values() for row in rows.values()}) >= 5

    other = open_generator(form, dtype, threads=2)
    for passage in reversed(passages()[::2]):
        assert sample(other, passage, other.languages[::-1]) == first[passage.passage_id]


@pytest.mark.parametrize(("form", "dtype"), FORMS)
def test_a_query_is_the_same_to_the_last_bit_whatever_is_generated_beside_it(form: str, dtype: str) -> None:
    generator = open_generator(form, dtype)
    chosen = passages()[1::3]
    languages = generator.languages
    noise = draw_noise(len(chosen) * len(languages) * COUNT, NEW_TOKENS, SAMPLING.top_k)
    together = generator.generate_ids(chosen, languages, noise)
    assert len({len(row) for row in together}) >= 3  # rows end, and leave the batch, at different steps

    by_place = noise.reshape(len(chosen), len(languages), COUNT, NEW_TOKENS, -1)
    expected = iter(together)
    for number, passage in enumerate(chosen):
        for place, language in enumerate(languages):
            rows = [next(expected) for _ in range(COUNT)]
            assert generator.generate_ids([passage], (language,), by_place[number, place]) == rows
            assert generator.generate_ids([passage], (language,), by_place[number, place, :1]) == rows[:1]


def assert_fewer_are_a_part_of_more(generator: QueryGenerator, passages: Sequence[Passage], sampling: Sampling) -> None:
    languages = sorted(generator.languages)
    more = generator.generate(passages, languages, COUNT, 0, sampling)
    assert any(len(generation.queries) < COUNT * len(languages) for generation in more)  # some repeat others
    for fewer, count in ((languages, 1), (languages[:1], 1), (languages[1:], 2), (languages[1:2], COUNT)):
        found = generator.generate(passages, fewer, count, 0, sampling)
        assert [generation.queries for generation in found] == [
            tuple(query for query in generation.queries if query.language in fewer and query.number < count)
            for generation in more
        ]


@pytest.mark.parametrize(("form", "dtype"), FORMS)
def test_fewer_queries_and_languages_are_those_of_more_with_lower_numbers(
    form: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The random models write no language's script.
    monkeypatch.setattr("xqg_qdrant.generation.checks.is_written_in", lambda text, language: True)
    generator = open_generator(form, dtype)
    # So near to greedy that a query is often drawn twice, and the one with the higher number dropped.
    assert_fewer_are_a_part_of_more(generator, passages(), SAMPLING._replace(top_k=2, temperature=0.01))
    assert_fewer_are_a_part_of_more(generator, passages()[:1], SAMPLING._replace(top_k=2, temperature=0.01))


def test_queries_in_another_script_are_dropped_and_counted_by_language(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = open_generator("t5")
    first, second = generator.languages[:2]
    monkeypatch.setattr("xqg_qdrant.generation.checks.is_written_in", lambda text, language: language != first)
    for generation in generator.generate(passages(), (first, second), COUNT, 0, SAMPLING):
        assert generation.dropped[Dropped(first, "wrong_script")] == COUNT
        assert {query.language for query in generation.queries} == {second}


def test_the_shipped_generator_writes_fewer_queries_as_a_part_of_more(demo_generator: QueryGenerator) -> None:
    assert_fewer_are_a_part_of_more(demo_generator, read_demo_passages()[:20], demo_generator.sampling)


@pytest.mark.parametrize(("form", "beginnings"), [("t5", 12), ("mt5", 9), ("mt5-prompted", 6)])
def test_the_first_step_is_computed_once_for_all_samples_of_a_passage_in_a_language(
    form: str, beginnings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    bind = Session.bind

    def record(session: Session, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[[], None]:
        if "ids" in inputs:
            computed.append(len(inputs["ids"].array))
        return bind(session, inputs, outputs)

    generator = open_generator(form)
    monkeypatch.setattr(Session, "bind", record)
    assert beginnings == 3 * len(generator.languages)
    generator.generate_ids(passages()[:3], generator.languages, draw_noise(beginnings * COUNT, 2, 8))
    assert computed[:2] == [beginnings, beginnings * COUNT]


@pytest.mark.parametrize(("rows", "size"), [(1, 1 << 40), (COUNT * 3 + 1, 1 << 40), (1000, 1)])
def test_batches_of_any_size_give_the_same_queries(rows: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = open_generator("mt5", "int8")
    expected = generator.generate(passages(), LANGUAGES, COUNT, 0, SAMPLING)
    monkeypatch.setattr("xqg_qdrant.inference.batching.BATCH_ROWS", rows)
    monkeypatch.setattr("xqg_qdrant.generation.onnx.BATCH_BYTES", size)
    generator = QueryGenerator(generator.folder.path, "cpu", threads=1)
    batches: list[int] = []

    class Step(DecoderStep):
        def __init__(self, graphs: Graphs, memory: Memory, prompts: Sequence[Sequence[int]], *given: Any) -> None:
            batches.append(len(prompts))
            super().__init__(graphs, memory, prompts, *given)

    monkeypatch.setattr("xqg_qdrant.inference.seq2seq.DecoderStep", Step)
    assert generator.generate(passages(), LANGUAGES, COUNT, 0, SAMPLING) == expected
    assert batches == [1] * len(passages())


@pytest.mark.parametrize("form", ["t5", "mt5"])
def test_threads_can_share_a_generator(form: str) -> None:
    generator = open_generator(form, "int8")
    expected = [generator.generate([passage], generator.languages, COUNT, 0, SAMPLING)[0] for passage in passages()]
    with ThreadPoolExecutor(4) as pool:
        halves = [passages()[start : start + 5] for start in range(0, len(passages()), 5)] * 4
        found = pool.map(lambda half: generator.generate(half, generator.languages, COUNT, 0, SAMPLING), halves)
        assert [generation for half in found for generation in half] == expected * 4


def test_no_passages_give_no_queries() -> None:
    assert open_generator("t5").generate([], LANGUAGES, COUNT, 0, SAMPLING) == []


IN_A_NEW_PROCESS = """
import json, sys
from pathlib import Path
from xqg_qdrant.generation.onnx import QueryGenerator, Sampling
from xqg_qdrant.records import Passage
folder, passage, languages, sampling = json.loads(sys.argv[1])
generator = QueryGenerator(Path(folder), "cpu", 1)
generator.generate([Passage("another", "before it")], languages, 2, 5, Sampling(*sampling))
generation = generator.generate([Passage(*passage)], languages, 20, 3, Sampling(*sampling))[0]
print(json.dumps([generation.queries, generation.asked, sorted(generation.dropped.items())]))
"""


def test_a_new_process_writes_the_same_queries() -> None:
    passage = passages()[12]
    folder = str(exported_generator("t5", "int8"))
    about = json.dumps([folder, [passage.passage_id, passage.text, passage.title], LANGUAGES, SAMPLING])
    output = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, about],
        capture_output=True, check=True, encoding="utf-8", cwd=Path(__file__).parents[1], timeout=120,
    ).stdout  # fmt: skip
    queries, asked, dropped = json.loads(output)
    [expected] = open_generator("t5", "int8").generate([passage], LANGUAGES, 20, 3, SAMPLING)
    assert (asked, dropped) == (20, json.loads(json.dumps(sorted(expected.dropped.items()))))
    assert [GeneratedQuery(*query) for query in queries] == list(expected.queries)
    assert len(queries) > 2


def test_seed_passage_language_and_number_each_give_other_queries() -> None:
    generator = open_generator("mt5")
    passage = passages()[9]
    seen = [sample(generator, passage), sample(generator, passage, seed=1)]
    seen.append(sample(generator, Passage("another id", passage.text, passage.title)))
    rows = [tuple(row) for rows in seen for row in rows.values()]
    assert len(set(rows)) > 0.9 * len(rows)


def test_the_noise_of_a_query_has_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []

    def record(asked: list[bytes], steps: int, top_k: int) -> Noise:
        keys.extend(asked)
        return gumbel_noise(asked, steps, top_k)

    monkeypatch.setattr("xqg_qdrant.generation.onnx.gumbel_noise", record)
    generator = open_generator("t5")
    for passage_id, seed in (("a", 0), ("a", 1), ("b", 0), ("a1", 0)):
        generator.generate([Passage(passage_id, "text")], LANGUAGES, 11, seed, SAMPLING)
    assert len({key[:16] for key in keys}) == len(keys) == 4 * 3 * 11


def test_a_prompt_is_filled_in_one_pass_so_that_a_title_cannot_ask_for_the_text() -> None:
    generator = QueryGenerator(exported_generator("t5"), device="cpu", threads=1)
    passage = Passage("1", "the text, {title}", title="On {text} and {language}")
    filled = generator.fill_prompt(passage, "fi")
    assert filled == "Finnish, Finnish, Finnish: On {text} and {language} the text, {title}"


def read_probabilities(passage: Passage, top_k: int, temperature: float) -> dict[tuple[int, ...], float]:
    """Return the probability of every pair of first ids that top-k sampling can draw, in float64 from transformers."""
    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(generator_checkpoint("mt5")).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(generator_checkpoint("mt5"))
    prompt = f"{passage.title} {passage.text}".strip()
    batch = tokenizer(prompt, truncation=True, max_length=LONGEST_PROMPT, return_tensors="pt")

    def next_ids(*before: int) -> list[tuple[int, float]]:
        decoder_ids = torch.tensor([[LANGUAGE_TOKENS["fi"], *before]])
        with torch.no_grad():
            logits = model(**batch, decoder_input_ids=decoder_ids).logits[0, -1].numpy().astype(np.float64)
        best = np.argsort(-logits)[:top_k]
        weights = np.exp((logits[best] - logits[best[0]]) / temperature)
        return list(zip(best.tolist(), (weights / weights.sum()).tolist(), strict=True))

    pairs: dict[tuple[int, ...], float] = {}
    for first, probability in next_ids():
        if first == T5_END:
            pairs[()] = probability
            continue
        for second, conditional in next_ids(first):
            ids = (first,) if second == T5_END else (first, second)
            pairs[ids] = probability * conditional
    return pairs


@pytest.mark.parametrize("temperature", [0.4, 2.0])
def test_sampling_follows_the_softmax_of_the_top_k(temperature: float) -> None:
    passage, draws, top_k = passages()[4], 3000, 4
    expected = read_probabilities(passage, top_k, temperature)
    noise = draw_noise(draws, 2, top_k)
    rows = open_generator("mt5").generate_ids([passage], ("fi",), noise, temperature)
    found = Counter(map(tuple, rows))
    assert found.keys() <= expected.keys()

    firsts = Counter(row[:1] for row in found.elements())
    expected_firsts = {first: sum(expected[ids] for ids in expected if ids[:1] == first) for first in firsts}
    for counts, wanted in ((firsts, expected_firsts), (found, expected)):
        # cells with fewer than five expected draws are joined, as the chi-square test needs
        cells = [(counts[ids], draws * probability) for ids, probability in wanted.items()]
        large = [cell for cell in cells if cell[1] >= 5]
        rest = [sum(column) for column in zip(*(cell for cell in cells if cell[1] < 5), strict=True)]
        observed, predicted = zip(*large, *([rest] if rest else []), strict=True)
        assert len(observed) >= 3
        assert stats.chisquare(observed, predicted).pvalue > 0.01


def test_a_low_temperature_comes_near_greedy_and_a_high_one_does_not() -> None:
    generator = open_generator("t5")
    passage = passages()[8]
    [greedy] = generator.generate_ids([passage], ("fi",), np.zeros((1, NEW_TOKENS, 1), dtype=np.float32))
    noise = draw_noise(20, NEW_TOKENS, 8)
    assert generator.generate_ids([passage], ("fi",), noise, 1e-4) == [greedy] * 20
    assert generator.generate_ids([passage], ("fi",), noise, 5.0).count(greedy) <= 2


def test_suppressed_ids_are_never_drawn() -> None:
    generator = open_generator("mt5-prompted", "int8")
    noise = draw_noise(30, NEW_TOKENS, 200)
    rows = [row for passage in passages()[:4] for row in generator.generate_ids([passage], ("ru", "fi"), noise, 50.0)]
    drawn = {token for row in rows for token in row}
    assert len(drawn) > 500
    assert not drawn & set(SUPPRESSED)


def test_languages_in_the_prompt_are_padded_beside_each_other_without_effect() -> None:
    generator = open_generator("t5")
    languages = generator.languages
    noise = np.zeros((1, NEW_TOKENS, 1), dtype=np.float32)
    for passage in passages()[:5]:
        lengths = {len(generator._tokenizer.encode(generator.fill_prompt(passage, code)).ids) for code in languages}
        assert len(lengths) > 1
        alone = [generator.generate_ids([passage], (code,), noise)[0] for code in languages]
        assert generator.generate_ids([passage], languages, noise.repeat(len(languages), axis=0)) == alone


@pytest.mark.parametrize(
    ("form", "passage", "prompt"),
    [
        ("t5", Passage("1", "A text.", "A title"), "Japanese, Japanese, Japanese: A title A text."),
        ("t5", Passage("1", "A {title}."), "Japanese, Japanese, Japanese:  A {title}."),
        ("mt5", Passage("1", "A {text} of {language}.", "T"), "T A {text} of {language}."),
        ("mt5", Passage("1", "A text. "), "A text."),
    ],
)
def test_a_prompt_is_the_template_with_the_passages_own_words(form: str, passage: Passage, prompt: str) -> None:
    assert open_generator(form).fill_prompt(passage, "ja") == prompt


def write(generator: QueryGenerator, monkeypatch: pytest.MonkeyPatch, *texts: str, count: int) -> Generation:
    """Return what `generate` makes of these outputs of the model, `count` for each of ja, ru."""
    tokenizer = generator._tokenizer
    rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    monkeypatch.setattr(generator, "generate_ids", lambda *_: rows)
    return generator.generate(passages()[:1], ("ja", "ru"), count, 0, SAMPLING)[0]


def test_empty_repeated_and_wrongly_written_queries_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = write(
        open_generator("t5"), monkeypatch,
        "ドナウ川はどこですか", "川は何ですか", "Where is it", "", "ドナウ川はどこですか",
        "Где  начинается Дунай", "где начинается дунай", " ", "ドナウ川はどこですか", "Кто это",
        count=5,
    )  # fmt: skip
    assert found.asked == 5
    assert [(query.language, query.text) for query in found.queries] == [
        ("ja", "ドナウ川はどこですか"),
        ("ja", "川は何ですか"),
        ("ru", "Где  начинается Дунай"),
        ("ru", "Кто это"),
    ]


def test_the_same_text_counts_once_for_each_language(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = open_generator("t5")
    monkeypatch.setattr("xqg_qdrant.generation.checks.is_written_in", lambda text, language: True)
    found = write(generator, monkeypatch, "Кто это", "Кто это", "Кто это", "кто это", count=2)
    assert found.queries == (GeneratedQuery("ja", "Кто это"), GeneratedQuery("ru", "Кто это"))


def test_special_tokens_are_no_part_of_a_query(monkeypatch: pytest.MonkeyPatch) -> None:
    found = write(open_generator("t5"), monkeypatch, "<pad>川は何ですか<unk></s>", "Кто это<pad>", count=1)
    assert [query.text for query in found.queries] == ["川は何ですか", "Кто это"]


def test_a_language_that_the_model_does_not_write_is_refused() -> None:
    with pytest.raises(InputError, match=r"does not write the language 'ja'\. Cure: choose from ru, fi"):
        open_generator("mt5-prompted").generate(passages()[:1], ("ru", "ja"), 1, 0, SAMPLING)


def test_a_query_that_may_be_longer_than_the_model_can_take_is_refused() -> None:
    generator = open_generator("t5")
    longest = generator.max_output_tokens
    assert longest == 256
    with pytest.raises(
        InputError, match=r"max_new_tokens is 257, more than the 256 of .* Cure: set --max-new-tokens to at most 256"
    ):
        generator.generate(passages()[:1], ("fi",), 1, 0, SAMPLING._replace(max_new_tokens=longest + 1))


def test_the_longest_passage_is_cut_to_the_models_length() -> None:
    generator = open_generator("mt5")
    long = Passage("long", "Tonava " * 500)
    cut = Passage("cut", "Tonava " * 100)
    noise = np.zeros((1, NEW_TOKENS, 1), dtype=np.float32)
    assert generator.generate_ids([long], ("fi",), noise) == generator.generate_ids([cut], ("fi",), noise)


def test_an_empty_passage_gets_queries_too() -> None:
    noise = np.zeros((len(LANGUAGES), NEW_TOKENS, 1), dtype=np.float32)
    for form in ("t5", "mt5"):
        assert len(open_generator(form).generate_ids([Passage("empty", "")], LANGUAGES, noise)) == len(LANGUAGES)


def test_a_generator_describes_what_decides_its_queries() -> None:
    generator = open_generator("t5", "int8")
    described = generator.describe()
    assert described["sha256"] == generator.folder.sha256()
    assert described["dtype"] == "int8"
    assert described["prompt"] == "{language}, {language}, {language}: {title} {text}"
    assert described["max_input_tokens"] == LONGEST_PROMPT
    assert generator.sampling == Sampling(top_k=4, temperature=1.0, max_new_tokens=NEW_TOKENS)
    assert generator.device == "cpu"
