"""Generators that optimum laid out, against transformers and against what `xqg export` makes of the same checkpoint."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from checkpoints import (
    GENERATORS,
    LANGUAGE_TOKENS,
    LONGEST_PROMPT,
    NEW_TOKENS,
    SUPPRESSED,
    T5_END,
    TOKENS,
    edit_json,
    exported_generator,
    generator_checkpoint,
    passages,
)
from click.testing import CliRunner
from foreign_folders import (
    DECODER_GRAPH,
    ENCODER_GRAPH,
    PAST_GRAPH,
    assert_refusal,
    optimum_folder,
    optimum_generator,
    sentence_transformers_folder,
)
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic

from xqg_qdrant.cli import main
from xqg_qdrant.doctor import examine
from xqg_qdrant.errors import InputError, MismatchError, ModelError, OutOfMemoryError
from xqg_qdrant.generation import Generation
from xqg_qdrant.generation.onnx import QueryGenerator, Sampling
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.optimum_decoder import ForeignStep, choose_ids
from xqg_qdrant.inference.session import is_cuda_at_hand
from xqg_qdrant.model_folders import describe_in_place
from xqg_qdrant.records import Passage
from xqg_qdrant.stores import open_store

SAMPLING = Sampling(top_k=8, temperature=0.9, max_new_tokens=NEW_TOKENS)
COUNT = 4
GRAPHS = (ENCODER_GRAPH, DECODER_GRAPH, PAST_GRAPH)
FORMS = tuple(form for form in GENERATORS if not form.startswith("bert2bert"))
PROMPT = "Ask in {language}: {title} {text}"
ASKED: dict[str, Any] = {"prompt": PROMPT, "languages": ("fi", "ja")}


def copy_of(form: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(optimum_generator(form), tmp_path / "model"))


def describe(folder: Path, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["describe", str(folder), *options])
    assert done.exit_code == 0, done.output
    said: dict[str, Any] = json.loads((folder / "xqg.json").read_text(encoding="utf-8"))
    return said


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders that are told what the export of the same checkpoint is told."""
    made: dict[str, Path] = {}

    def find(form: str) -> Path:
        if form not in made:
            made[form] = copy_of(form, tmp_path_factory.mktemp("foreign"))
            told = {"max_new_tokens": NEW_TOKENS, "max_input_tokens": LONGEST_PROMPT, "top_k": 4}
            describe_in_place(made[form], **GENERATORS[form][1], **told)
        return made[form]

    return find


def decode_with_transformers(generator: QueryGenerator, form: str, passages: Sequence[Passage]) -> list[list[int]]:
    """Decode greedily, one prompt after the other."""
    checkpoint = generator_checkpoint(form)
    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    found: list[list[int]] = []
    for passage in passages:
        for language in generator.languages:
            prompt = generator.fill_prompt(passage, language)
            batch = tokenizer(prompt, truncation=True, max_length=LONGEST_PROMPT, return_tensors="pt")
            first = LANGUAGE_TOKENS[language] if form.startswith("mt5") else 0
            with torch.no_grad():
                ids = model.generate(
                    **batch, decoder_start_token_id=first, do_sample=False, num_beams=1, max_new_tokens=NEW_TOKENS
                )
            row: list[int] = ids[0, 1:].tolist()
            found.append(row[: row.index(T5_END)] if T5_END in row else row)
    return found


def write_ids(generator: QueryGenerator, passages: Sequence[Passage]) -> list[list[int]]:
    noise = np.zeros((len(passages) * len(generator.languages), NEW_TOKENS, 1), dtype=np.float32)
    return generator.generate_ids(passages, generator.languages, noise)


def write_all(generator: QueryGenerator, passages: Sequence[Passage], count: int = COUNT) -> list[Generation]:
    return generator.generate(passages, generator.languages, count, 5, SAMPLING)


@pytest.fixture
def any_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the random models write, which is no language's script."""
    monkeypatch.setattr("xqg_qdrant.generation.checks.is_written_in", lambda text, language: True)
    monkeypatch.setattr("xqg_qdrant.generation.checks.is_surely_not", lambda text, language: False)


def test_greedy_ids_are_those_of_transformers(form: str, folders: Callable[[str], Path]) -> None:
    generator = QueryGenerator(folders(form), "cpu", 1)
    asked = passages()[::4]
    found = write_ids(generator, asked)
    assert found == decode_with_transformers(generator, form, asked)
    assert len({tuple(row) for row in found}) > 0.6 * len(found)
    assert len({len(row) for row in found}) >= 2


@pytest.mark.usefixtures("any_script")
def test_the_same_seed_draws_the_same_queries_as_from_the_exported_checkpoint(
    form: str, folders: Callable[[str], Path]
) -> None:
    foreign, exported = QueryGenerator(folders(form), "cpu", 1), QueryGenerator(exported_generator(form), "cpu", 1)
    found = write_all(foreign, passages()[::2])
    assert found == write_all(exported, passages()[::2])
    assert len({query.text for generation in found for query in generation.queries}) > 60
    assert foreign.sampling == exported.sampling
    assert foreign.languages == exported.languages


def test_of_equal_logits_those_with_lower_ids_are_chosen_and_ranked_first() -> None:
    logits = np.array([[1, 3, 2, 3, 2], [2, 2, 2, 2, 2]], dtype=np.float32)

    def choose(*noise: float, temperature: float = 1.0) -> list[int]:
        return list(choose_ids(logits, np.array([noise, noise], dtype=np.float32), temperature))

    assert choose(0.0) == [1, 0]
    # The first of the noise is for the best: 3, 3 and 2 of the first row, and three times 2 of the second.
    assert choose(0.0, 0.0, 1.5) == [2, 2]
    assert choose(0.0, 0.5, 1.25) == [3, 2]
    # Half of the logits is half of their distance: 1.5, 1.5, 1.
    assert choose(0.0, 0.5, 1.25, temperature=2.0) == [2, 2]
    # More than there are: the rest of the noise is of nobody.
    assert choose(0.0, 0.0, 0.0, 0.0, 9.0, 99.0) == [0, 4]


def test_every_rank_among_many_equal_logits_has_its_id() -> None:
    values = np.random.default_rng(7).integers(0, 3, size=500).astype(np.float32)
    ranked = sorted(range(500), key=lambda place: (-values[place], place))
    # Row i has all its noise on the i-th best.
    noise = np.eye(400, dtype=np.float32) * 99
    assert list(choose_ids(np.tile(values, (400, 1)), noise, 1.0)) == ranked[:400]


def test_what_is_no_number_is_not_chosen_but_refused() -> None:
    with pytest.raises(ModelError, match=r"returned NaN as a logit\. Cure: "):
        choose_ids(np.array([[1, np.nan, 2]], dtype=np.float32), np.zeros((1, 1), dtype=np.float32), 1.0)


def test_suppressed_ids_are_never_drawn(folders: Callable[[str], Path]) -> None:
    generator = QueryGenerator(folders("mt5-prompted"), "cpu", 1)
    # More than are left: those that are suppressed are among the best, too, and still never win.
    noise = np.random.default_rng(3).gumbel(size=(60, NEW_TOKENS, TOKENS - len(SUPPRESSED) // 2)).astype(np.float32)
    rows = generator.generate_ids(passages()[:1], ("ru", "fi"), noise, 50.0)
    drawn = {token for row in rows for token in row}
    assert len(drawn) > 250
    assert not drawn & set(SUPPRESSED)


def quantise(folder: Path) -> None:
    """Make graphs whose int8 scales are those of a whole batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in GRAPHS:
            quantize_dynamic(folder / name, folder / f"int8 {name}")
            (folder / f"int8 {name}").replace(folder / name)


@pytest.mark.usefixtures("any_script")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("form", ["t5", "mt5"])
def test_a_passage_gets_the_same_queries_whatever_stands_beside_it(form: str, dtype: str, tmp_path: Path) -> None:
    folder = copy_of(form, tmp_path)
    if dtype == "int8":
        quantise(folder)
    describe_in_place(folder, **GENERATORS[form][1])
    generator = QueryGenerator(folder, "cpu", 1)
    chosen = passages()[1::3]
    together = write_all(generator, chosen)
    assert write_all(generator, chosen[::-1])[::-1] == together
    assert [write_all(generator, [passage])[0] for passage in chosen] == together
    assert write_all(QueryGenerator(folder, "cpu", 2), chosen) == together


@pytest.mark.usefixtures("any_script")
def test_fewer_queries_are_those_of_more_with_lower_numbers(folders: Callable[[str], Path]) -> None:
    generator = QueryGenerator(folders("t5"), "cpu", 1)
    more = write_all(generator, passages()[::2])
    for generation, fewer in zip(more, write_all(generator, passages()[::2], 2), strict=True):
        assert [query for query in generation.queries if query.number < 2] == list(fewer.queries)


def test_only_the_rows_of_one_prompt_share_a_run(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    class Step(ForeignStep):
        def __call__(self, ids: Any, noise: Any) -> Any:  # noqa: ANN401
            ran.append(len(ids))
            return super().__call__(ids, noise)

    monkeypatch.setattr("xqg_qdrant.inference.optimum_decoder.ForeignStep", Step)
    write_all(QueryGenerator(folders("t5"), "cpu", 1), passages())
    assert max(ran) == COUNT  # its prompts name the language
    assert min(ran) < COUNT  # and rows that have ended are dropped
    ran.clear()
    write_all(QueryGenerator(folders("mt5"), "cpu", 1), passages())
    assert max(ran) == COUNT * len(LANGUAGE_TOKENS)


def test_a_prompt_that_finds_no_memory_is_an_error_with_a_cure(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OutOfMemoryError("Failed to allocate memory")

    monkeypatch.setattr("xqg_qdrant.inference.optimum_decoder.ForeignStep", fail)
    generator = QueryGenerator(folders("mt5"), "cpu", 1)
    # 2 layers of keys and values, 3 heads of 8 float32: 384 bytes; for each of 3 rows 12 steps and 2 tokens
    with pytest.raises(
        ModelError, match=rf"out of memory: one run of {384 * 3 * (12 + 2)} bytes does not fit: .* Cure: free"
    ):
        write_ids(generator, [Passage("1", "a")])


def test_what_no_file_tells_is_asked_for_and_said_once(tmp_path: Path) -> None:
    folder = copy_of("t5", tmp_path)
    message = (
        r"does not say how it is prompted, nor which languages it writes\. Cure: .* xqg describe .*/model --prompt"
    )
    with pytest.raises(ModelError, match=message):
        QueryGenerator(folder, "cpu", 1)
    for half in (["--prompt", "{text}"], ["--languages", "fi"]):
        done = CliRunner().invoke(main, ["describe", str(folder), *half])
        assert done.exit_code == ModelError.exit_code
        assert "does not say how it is prompted" in done.stderr
        assert not (folder / "xqg.json").exists()
    said = describe(folder, "--prompt", "Ask in {language}: {text}", "--languages", "fi,ja", "--temperature", "0.5")
    assert said["prompt"] == "Ask in {language}: {text}"
    assert said["sampling"] == {"top_k": 10, "temperature": 0.5, "max_new_tokens": 32, "vocabulary": "full"}
    generator = QueryGenerator(folder, "cpu", 1)
    assert generator.languages == ("fi", "ja")
    assert generator.sampling == Sampling(10, 0.5, 32)
    assert generator.describe() == {
        "sha256": generator.folder.sha256(), "dtype": "as exported", "prompt": "Ask in {language}: {text}",
        "max_input_tokens": 256, "language_tokens": {}, "decoder_start_id": 0, "end_id": T5_END, "suppressed_ids": [],
    }  # fmt: skip
    with (folder / PAST_GRAPH).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ModelError, match=r"decoder_with_past_model\.onnx has sha256 .* but xqg\.json says"):
        QueryGenerator(folder, "cpu", 1)


def test_a_model_whose_settings_name_its_languages_tokens_is_used_as_it_is() -> None:
    generator = QueryGenerator(optimum_generator("mt5"), "cpu", 1)
    assert generator.languages == tuple(LANGUAGE_TOKENS)
    assert [generator.first_id(language) for language in LANGUAGE_TOKENS] == list(LANGUAGE_TOKENS.values())
    assert generator.fill_prompt(Passage("1", "A text.", "A title"), "fi") == "A title A text."
    assert write_ids(generator, passages()[:2])
    assert generator.describe()["language_tokens"] == LANGUAGE_TOKENS


@pytest.mark.parametrize(
    ("changes", "sampling"),
    [
        ({"top_k": 3, "temperature": 0.7, "max_new_tokens": 9}, Sampling(3, 0.7, 9)),
        # None of these means that there is no limit, or one that no query comes near.
        ({"top_k": 0, "max_new_tokens": 1000}, Sampling(10, 1.0, 256)),
    ],
)
def test_sampling_is_read_where_it_is_not_told(changes: dict[str, Any], sampling: Sampling, tmp_path: Path) -> None:
    folder = copy_of("t5", tmp_path)
    edit_json(folder / "generation_config.json", changes)
    describe_in_place(folder, **ASKED)
    assert QueryGenerator(folder, "cpu", 1).sampling == sampling


def test_a_preset_tells_all_and_what_is_given_wins(tmp_path: Path) -> None:
    said = describe(copy_of("t5", tmp_path), "--preset", "xqg-paper", "--languages", "ja,ru")
    assert said["prompt"] == "Generate a {language} question for this passage: {title} {text}"
    assert said["languages"] == ["ja", "ru"]
    assert (said["max_input_tokens"], said["sampling"]["top_k"]) == (256, 10)
    encoder = Path(shutil.copytree(optimum_folder("bert"), tmp_path / "encoder"))
    said = describe(encoder, "--preset", "e5-large-instruct", "--max-query-tokens", "20")
    assert said["query_prefix"].startswith("Instruct: Given a web search query")
    assert "{task}" not in said["query_prefix"]
    assert (said["pooling"], said["normalise"], said["max_query_tokens"]) == ("mean", True, 20)


def test_ids_are_read_from_either_file(tmp_path: Path) -> None:
    folder = copy_of("t5", tmp_path)
    edit_json(folder / "generation_config.json", {"decoder_start_token_id": None, "eos_token_id": [7]})
    edit_json(folder / "config.json", {"decoder_start_token_id": 5})
    describe_in_place(folder, **ASKED)
    described = QueryGenerator(folder, "cpu", 1).describe()
    assert (described["decoder_start_id"], described["end_id"]) == (5, 7)


IDS = ("decoder_start_token_id", "eos_token_id")
WRONG_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    **{f"no {name}": ({name: None}, f"has {name} = None; it must be one id.\nCure: ") for name in IDS},
    "two ends": ({"eos_token_id": [1, 2]}, "has eos_token_id = [1, 2]; it must be one id.\nCure: "),
    "end as a text": ({"eos_token_id": "1"}, "has eos_token_id = '1'; it must be one id"),
    "end as true": ({"eos_token_id": True}, "has eos_token_id = True; it must be one id"),
    "negative end": ({"eos_token_id": -1}, "has end_id = -1; it must be a whole number from 0"),
    "tokens as a list": ({"lang_to_id": ["fi"]}, "has lang_to_id = ['fi']; it must be"),
    "token as a text": ({"lang_to_id": {"fi": "7"}}, "has lang_to_id = {'fi': '7'}; it must be"),
    "unknown language": ({"lang_to_id": {"fi": 7, "xx": 9}}, "has tokens only for the languages fi, xx"),
    "suppressed as a number": ({"suppress_tokens": 5}, "has suppress_tokens = 5; it must be a list of ids"),
    "suppressed texts": ({"suppress_tokens": ["a"]}, "has suppress_tokens = ['a']; it must be a list of ids"),
    "top_k as a text": ({"top_k": "9"}, "has top_k = '9'; it must be a whole number"),
    "temperature below zero": ({"temperature": -1}, "has temperature = -1; it must be a number from"),
    "length of half": ({"max_new_tokens": 1.5}, "has max_new_tokens = 1.5; it must be a whole number"),
}


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_settings_that_cannot_be_are_refused(name: str, tmp_path: Path) -> None:
    changes, said = WRONG_SETTINGS[name]
    folder = copy_of("t5", tmp_path)
    edit_json(folder / "generation_config.json", changes)
    edit_json(folder / "config.json", dict.fromkeys(IDS))
    options = ["--prompt", PROMPT, "--languages", "fi,ja"]
    done = CliRunner().invoke(main, ["describe", str(folder), *options])
    assert done.exit_code in (ModelError.exit_code, InputError.exit_code), done.output
    assert said in done.stderr
    assert str(folder) in done.stderr
    assert not (folder / "xqg.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("{language}: {title}", "fi"), "with {text} in it"),
        (("{text}, {tongue}", "fi"), "has {tongue}, which nothing fills in"),
        (("{text} in {language}", "fi"), "names the language after the text"),
        (("{text}", "fi,ja"), "cannot tell which of fi, ja to write"),
        (("{text}", "fi,xx"), "unknown language 'xx'"),
    ],
)
def test_a_prompt_is_held_to_what_the_export_holds_it_to(options: tuple[str, str], said: str, tmp_path: Path) -> None:
    folder = copy_of("t5", tmp_path)
    done = CliRunner().invoke(main, ["describe", str(folder), "--prompt", options[0], "--languages", options[1]])
    assert done.exit_code == InputError.exit_code
    assert said in done.stderr


def test_options_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    folder = copy_of("t5", tmp_path)
    done = CliRunner().invoke(main, ["describe", str(folder), "--pooling", "cls"])
    assert done.exit_code == InputError.exit_code
    assert "holds a model of kind 'generator', which has no pooling.\nCure: leave out --pooling." in done.stderr
    encoder = Path(shutil.copytree(optimum_folder("bert"), tmp_path / "encoder"))
    done = CliRunner().invoke(main, ["describe", str(encoder), "--prompt", "{text}"])
    assert done.exit_code == InputError.exit_code
    assert "holds a model of kind 'encoder', which has no prompt.\nCure: leave out --prompt." in done.stderr


def merge(folder: Path) -> None:
    """Leave what optimum leaves by default."""
    (folder / PAST_GRAPH).unlink()
    (folder / DECODER_GRAPH).replace(folder / "decoder_model_merged.onnx")


def remove_graphs(folder: Path) -> None:
    for name in GRAPHS:
        (folder / name).unlink()


LACKING: dict[str, tuple[Callable[[Path], object], str]] = {
    "merged decoder": (merge, "decoder_model_merged.onnx alone is not supported. Cure: export the checkpoint with xqg"),
    "no decoder with caches": (lambda folder: (folder / PAST_GRAPH).unlink(), "does not hold the three graphs"),
    "no encoder": (lambda folder: (folder / ENCODER_GRAPH).unlink(), "does not hold the three graphs"),
    "no graphs": (remove_graphs, "no graph of a decoder: it is a checkpoint"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "another architecture": (
        lambda folder: edit_json(folder / "config.json", {"model_type": "bart"}),
        "is a generator of unsupported type 'bart'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
def test_a_folder_that_is_not_whole_is_refused_with_its_cure(name: str, tmp_path: Path) -> None:
    spoil, said = LACKING[name]
    folder = copy_of("mt5", tmp_path)
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        QueryGenerator(folder, "cpu", 1)
    assert_refusal(caught.value, folder, said)


def test_the_pair_is_taken_where_the_merged_decoder_lies_beside_it(tmp_path: Path) -> None:
    folder = copy_of("mt5", tmp_path)
    (folder / "decoder_model_merged.onnx").write_bytes(b"is not opened")
    assert write_ids(QueryGenerator(folder, "cpu", 1), passages()[:2])


def test_graphs_may_lie_one_folder_deeper_with_weights_beside_them(tmp_path: Path) -> None:
    folder = copy_of("mt5", tmp_path)
    expected = write_ids(QueryGenerator(folder, "cpu", 1), passages()[:4])
    (folder / "onnx").mkdir()
    for name in GRAPHS:
        model = onnx.load(folder / name)
        (folder / name).unlink()
        onnx.save(model, folder / "onnx" / name, save_as_external_data=True, location=f"{name}_data", size_threshold=64)
    generator = QueryGenerator(folder, "cpu", 1)
    assert {f"onnx/{name}_data" for name in GRAPHS} < generator.folder.description["files"].keys()
    assert write_ids(generator, passages()[:4]) == expected


def test_a_model_of_the_other_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds a model of kind 'generator', but 'encoder' is needed here\. Cure"):
        Encoder(optimum_generator("t5"), "cpu", 1)
    with pytest.raises(ModelError, match=r"has no xqg\.json and no graph of a decoder: .* Cure: export its checkpoint"):
        QueryGenerator(optimum_folder("bert"), "cpu", 1)
    folder = copy_of("mt5", tmp_path)
    describe_in_place(folder)
    with pytest.raises(ModelError, match=r"holds a model of kind 'generator', but 'encoder' is needed here\. Cure"):
        Encoder(folder, "cpu", 1)


def edits(name: str, edit: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        model = onnx.load(folder / name)
        edit(model)
        onnx.save(model, folder / name)

    return spoil


def renames(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Give an input or an output of a graph another name."""

    def edit(model: onnx.ModelProto) -> None:
        for value in [*model.graph.input, *model.graph.output]:
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if each == old else each for each in names]

    return edits(name, edit)


def take(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.FLOAT, [1]))


def flatten(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["three" if name == "logits" else name for name in node.output]
    model.graph.node.append(helper.make_node("Flatten", ["three"], ["logits"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens"]))


def mix(folder: Path) -> None:
    shutil.copy(folder / DECODER_GRAPH, folder / PAST_GRAPH)


OTHER_GRAPHS: dict[str, tuple[Callable[[Path], None], str]] = {
    "encoder without ids": (renames(ENCODER_GRAPH, "input_ids", "ids"), ENCODER_GRAPH),
    "encoder of vectors": (renames(ENCODER_GRAPH, "last_hidden_state", "sentence_embedding"), ENCODER_GRAPH),
    "first step of more": (edits(DECODER_GRAPH, take), DECODER_GRAPH),
    "first step with other caches": (renames(DECODER_GRAPH, "present.0.encoder.key", "present.key"), DECODER_GRAPH),
    "first step without logits": (renames(DECODER_GRAPH, "logits", "scores"), DECODER_GRAPH),
    "logits of no steps": (edits(DECODER_GRAPH, flatten), DECODER_GRAPH),
    "further steps of more": (edits(PAST_GRAPH, take), PAST_GRAPH),
    "other names of caches": (renames(PAST_GRAPH, "past_key_values.0.decoder.key", "past.key"), PAST_GRAPH),
    "caches that stay": (renames(PAST_GRAPH, "present.1.decoder.value", "present.value"), PAST_GRAPH),
    "two first steps": (mix, PAST_GRAPH),
}


@pytest.mark.parametrize("name", OTHER_GRAPHS)
def test_graphs_that_take_or_give_something_else_are_refused(name: str, tmp_path: Path) -> None:
    spoil, graph = OTHER_GRAPHS[name]
    folder = copy_of("mt5", tmp_path)
    spoil(folder)
    with pytest.raises(ModelError, match=rf"/{graph} takes \[.* and returns .*, unlike .* Cure: export") as caught:
        QueryGenerator(folder, "cpu", 1)
    assert str(caught.value).count("Cure: ") == 1


def test_a_graph_that_gives_another_number_of_rows_is_refused(tmp_path: Path) -> None:
    folder = copy_of("mt5", tmp_path)

    def double(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["once" if name == "logits" else name for name in node.output]
        model.graph.node.append(helper.make_node("Concat", ["once", "once"], ["logits"], axis=0))

    edits(PAST_GRAPH, double)(folder)
    with pytest.raises(ModelError, match=r"returned another number of rows than it was given\. Cure: "):
        write_ids(QueryGenerator(folder, "cpu", 1), passages()[:1])


def test_ids_that_the_model_does_not_have_are_no_crash(tmp_path: Path) -> None:
    folder = copy_of("mt5", tmp_path)
    edit_json(folder / "generation_config.json", {"suppress_tokens": [2_000_000_000]})
    assert write_ids(QueryGenerator(folder, "cpu", 1), passages()[:1])
    edit_json(folder / "generation_config.json", {"lang_to_id": {"fi": 2_000_000_000}})
    with pytest.raises(ModelError, match="the model failed on inputs of shape"):
        write_ids(QueryGenerator(folder, "cpu", 1), passages()[:1])


def link(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).replace(folder.parent / "moved")
        (folder / name).symlink_to(folder.parent / "moved")

    return spoil


def holds(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def reads_outside(name: str) -> Callable[[Path], None]:
    """Give a graph one more weight, which lies outside of the folder."""

    def spoil(folder: Path) -> None:
        model = onnx.load(folder / name)
        tensor = TensorProto(name="hostile", data_type=TensorProto.UINT8, dims=(1,), data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="../secret.data")
        model.graph.initializer.append(tensor)
        (folder / name).write_bytes(model.SerializeToString())

    return spoil


def says(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        describe_in_place(folder)
        edit_json(folder / "xqg.json", changes)

    return spoil


FILES = (*GRAPHS, "tokenizer.json", "config.json", "generation_config.json")
NAMES = ["a.onnx", "b.onnx"]
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"{name} through a link": (link(name), f"{name} is a symbolic link") for name in FILES},
    **{f"weights of {name} outside": (reads_outside(name), f"{name} keeps a tensor in '../secret") for name in GRAPHS},
    **{f"pickle for {name}": (holds(name, pickle.dumps(os.getcwd)), "is not a whole ONNX model") for name in GRAPHS},
    "settings of no JSON": (holds("generation_config.json", b"{"), "is not valid JSON"),
    "settings as a list": (holds("generation_config.json", b"[]"), "is not a JSON object"),
    **{
        f"described graphs {graphs!r}": (says(decoder_graphs=graphs), "has decoder_graphs = ")
        for graphs in ([], ["a.onnx"], [*NAMES, "c.onnx"], ["../a.onnx", "b.onnx"], ["a.onnx", 5], "a.onnx", {"a": 1})
    },
    "described graphs not listed": (says(decoder_graphs=NAMES), "a.onnx is missing in files"),
    "described graph outside": (says(graph="../x.onnx"), "has graph = '../x.onnx'"),
    "described suppressed": (says(suppressed_ids=[-1]), "has suppressed_ids = [-1]"),
    "described vocabularies": (says(restricted_languages=["ja"]), "has restricted_languages = ['ja']"),
    "described prompt": (says(prompt="{title}"), "has prompt = '{title}'"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_before_anything_of_it_is_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, said = HOSTILE[name]
    folder = copy_of("mt5", tmp_path)
    spoil(folder)

    def opened(*given: object, **_: object) -> None:
        raise AssertionError(f"a runtime was handed {given}")

    for place in ("inference.optimum_decoder.Session", "inference.seq2seq.Session", "generation.onnx.open_tokenizer"):
        monkeypatch.setattr(f"xqg_qdrant.{place}", opened)
    with pytest.raises(ModelError) as caught:
        QueryGenerator(folder)
    assert said in str(caught.value)
    assert str(folder) in str(caught.value)
    assert str(caught.value).count("Cure: ") == 1


@pytest.mark.usefixtures("any_script")
def test_the_command_line_describes_ingests_asks_and_generates(tmp_path: Path) -> None:
    folder = copy_of("t5", tmp_path)
    describe(folder, "--prompt", PROMPT, "--languages", "fi,ja", "--max-new-tokens", "6")
    rows = [{"id": passage.passage_id, "text": passage.text} for passage in passages()[10:]]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    corpus, encoder = str(tmp_path / "corpus.jsonl"), str(sentence_transformers_folder("e5"))
    place = ["--collection", "docs", "--store", str(tmp_path / "store"), "--encoder", encoder, "--device", "cpu"]
    models = ["--generator", str(folder), "--queries-per-language", "2"]

    def run(*words: str, exit_code: int = 0) -> str:
        done = CliRunner().invoke(main, ["-q", *words])
        assert done.exit_code == exit_code, done.output
        return done.stdout + done.stderr

    run("ingest", corpus, *place, *models)
    with open_store(str(tmp_path / "store")) as store:
        points = list(store.scroll("docs"))
    assert len(points) == len(rows)
    expected = QueryGenerator(folder, "cpu", 1)
    for point in points:
        [generation] = expected.generate([point.passage], ("fi", "ja"), 2, 0, expected.sampling)
        assert generation.queries == point.generated_queries
    asked = run("query", *place, "--limit", "1", rows[3]["text"])
    assert any(f"matched best: {query.text}" in asked for point in points for query in point.generated_queries)
    refused = run("ingest", corpus, *place, *models, "--vocabulary", "restricted", exit_code=InputError.exit_code)
    assert f"{folder} has no restricted vocabulary for 'fi'" in refused

    edit_json(folder / "xqg.json", {"end_id": 2})
    refused = run("ingest", corpus, *place, *models, exit_code=MismatchError.exit_code)
    assert "generator.end_id: stored 1, now 2" in refused


def test_doctor_runs_such_a_folder(tmp_path: Path) -> None:
    location = str(tmp_path / "store")
    folders = sentence_transformers_folder("e5"), optimum_generator("mt5")
    checks = {check.name: check for check in examine(location, lambda: open_store(location), *folders, "cpu")}
    assert checks["generator"].state == "ok", checks["generator"].detail
    assert "writes fi, ja, ru; ran on cpu (encoder_model.onnx: " in checks["generator"].detail
    assert checks["passage"].state in ("ok", "warning"), checks["passage"].detail


@pytest.mark.gpu
@pytest.mark.skipif(not is_cuda_at_hand(), reason="needs a CUDA device")
def test_a_gpu_writes_nearly_the_same_greedy_queries(folders: Callable[[str], Path]) -> None:
    generator = QueryGenerator(folders("mt5"), "cuda:0", 1)
    assert generator.device == "cuda:0"
    found, expected = write_ids(generator, passages()), write_ids(QueryGenerator(folders("mt5"), "cpu", 1), passages())
    assert sum(map(list.__eq__, found, expected)) >= 0.9 * len(expected)
