"""Every setting in sentence-transformers' files is obeyed as there, refused, or changes no vector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import edit_json, encoder_checkpoint, save_st_files
from foreign_folders import sentence_transformers_folder
from sentence_transformers import SentenceTransformer
from shared_data import shared_case

from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.export import export_checkpoint
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import FloatArray

TEXTS = ["The DANUBE is a river.", "Été à Besançon: CAFÉ ÎLE", "Where does the lake end? " * 12, "ドナウ川は長い"]
OBEYED, NO_EFFECT = "obeyed", "no effect"
TRANSFORMER, TOKENIZER = "sentence_bert_config.json", "tokenizer_config.json"
MODEL, POOLING, DENSE, NORMALIZE = (
    "config_sentence_transformers.json", "1_Pooling/config.json", "2_Dense/config.json", "3_Normalize/config.json"
)  # fmt: skip
BERT = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
LEFT = {"direction": "Left", "max_length": 12, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "[PAD]",
}  # fmt: skip
READ = {"method": "forward", "method_output_name": "last_hidden_state"}

# Each row: a file, its changes, and what becomes of them; for a refusal the field that the message names.
TABLE: list[tuple[str, dict[str, Any], str]] = [
    (TRANSFORMER, {"max_seq_length": 16}, OBEYED),
    (TRANSFORMER, {"max_seq_length": 30, TOKENIZER: {"model_max_length": 20}}, OBEYED),
    (TRANSFORMER, {"max_seq_length": None}, NO_EFFECT),
    (TRANSFORMER, {"do_lower_case": True}, OBEYED),
    (TRANSFORMER, {"do_lower_case": False}, NO_EFFECT),
    (TRANSFORMER, {"query_length": 9}, OBEYED),
    (TRANSFORMER, {"document_length": 9}, OBEYED),
    (TRANSFORMER, {"unpad_inputs": False}, NO_EFFECT),
    (TRANSFORMER, {"transformer_task": "feature-extraction"}, NO_EFFECT),
    (TRANSFORMER, {"transformer_task": "fill-mask"}, "transformer_task"),
    (TRANSFORMER, {"modality_config": {"text": READ, "message": {**READ, "format": "flat"}}}, "modality_config"),
    (TRANSFORMER, {"modality_config": {"text": {**READ, "method_output_name": "pooler_output"}}}, "modality_config"),
    (TRANSFORMER, {"module_output_name": "sentence_embedding"}, "module_output_name"),
    (TRANSFORMER, {"processing_kwargs": {"text": {"max_length": 9}}}, "processing_kwargs"),
    (TRANSFORMER, {"query_expansion": {"strategy": "fixed", "length": 32}}, "query_expansion"),
    (TRANSFORMER, {"model_args": {"attn_implementation": "eager"}}, NO_EFFECT),
    (TRANSFORMER, {"model_kwargs": {"num_hidden_layers": 1}}, "model_kwargs"),
    (TRANSFORMER, {"tokenizer_args": {"model_max_length": 9}}, "tokenizer_args"),
    (TRANSFORMER, {"processor_kwargs": {"do_lower_case": True}}, "processor_kwargs"),
    (TRANSFORMER, {"config_args": {"num_hidden_layers": 1}}, "config_args"),
    (TRANSFORMER, {"config_kwargs": {"num_hidden_layers": 1}}, "config_kwargs"),
    *(
        (f"sentence_{name}_config.json", {"max_seq_length": 17, "do_lower_case": True, TRANSFORMER: {}}, OBEYED)
        for name in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    ),
    ("sentence_roberta_config.json", {"max_seq_length": 17}, NO_EFFECT),
    (MODEL, {"__version__": {"sentence_transformers": "3.0.0"}}, NO_EFFECT),
    (MODEL, {"model_type": "SentenceTransformer"}, NO_EFFECT),
    (MODEL, {"model_type": "SparseEncoder"}, "model_type"),
    (MODEL, {"prompts": {"query": "q ", "document": "d "}}, OBEYED),
    (MODEL, {"prompts": {"query": "", "document": "", "passage": "p "}}, OBEYED),
    (MODEL, {"prompts": {}}, OBEYED),
    (MODEL, {"default_prompt_name": "query"}, NO_EFFECT),
    (MODEL, {"prompts": {"retrieve": "find "}, "default_prompt_name": "retrieve"}, "default_prompt_name"),
    (MODEL, {"similarity_fn_name": "dot"}, NO_EFFECT),
    (MODEL, {"similarity_fn_name": "euclidean"}, "similarity_fn_name"),
    (MODEL, {"truncate_dim": None}, NO_EFFECT),
    (MODEL, {"truncate_dim": 8}, "truncate_dim"),
    (POOLING, {"pooling_mode": "mean"}, OBEYED),
    (POOLING, {"pooling_mode": "lasttoken"}, OBEYED),
    (POOLING, {"pooling_mode": ["mean"]}, OBEYED),
    (POOLING, {"pooling_mode": "weightedmean"}, "weightedmean"),
    (POOLING, {"pooling_mode": "mean_sqrt_len_tokens"}, "mean_sqrt_len_tokens"),
    (POOLING, {"pooling_mode": ["cls", "mean"]}, "mean"),
    (POOLING, {"pooling_mode": None, "pooling_mode_mean_tokens": True}, OBEYED),
    (POOLING, {"pooling_mode": None, "pooling_mode_lasttoken": True}, OBEYED),
    (POOLING, {"pooling_mode": None, "pooling_mode_max_tokens": True}, "max_tokens"),
    (POOLING, {"pooling_mode": None, "pooling_mode_weightedmean_tokens": True}, "weightedmean_tokens"),
    (POOLING, {"pooling_mode_mean_tokens": True}, NO_EFFECT),
    (POOLING, {"embedding_dimension": None, "word_embedding_dimension": 32}, NO_EFFECT),
    (POOLING, {"include_prompt": True}, NO_EFFECT),
    (POOLING, {"include_prompt": False}, "include_prompt"),
    (DENSE, {"activation_function": None}, NO_EFFECT),  # the pipeline has the default, Tanh
    (DENSE, {"activation_function": "torch.nn.modules.linear.Identity"}, OBEYED),
    (DENSE, {"activation_function": "torch.nn.modules.activation.ReLU"}, OBEYED),
    (DENSE, {"activation_function": "torch.nn.modules.activation.GELU"}, "activation"),
    (DENSE, {"module_input_name": "token_embeddings"}, "token_embeddings"),
    (DENSE, {"use_residual": True}, "use_residual"),
    (NORMALIZE, {"module_output_name": "other"}, "other"),
    (TOKENIZER, {**BERT}, NO_EFFECT),
    (TOKENIZER, {**BERT, "do_lower_case": True}, OBEYED),
    (TOKENIZER, {**BERT, "do_lower_case": None}, OBEYED),
    (TOKENIZER, {**BERT, "strip_accents": True}, OBEYED),
    (TOKENIZER, {**BERT, "do_lower_case": True, "strip_accents": False}, OBEYED),
    (TOKENIZER, {**BERT, "tokenizer_class": "DistilBertTokenizerFast", "do_lower_case": True}, OBEYED),
    (TOKENIZER, {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}, NO_EFFECT),
    (TOKENIZER, {"truncation_side": "left"}, OBEYED),
    (TOKENIZER, {"truncation_side": "right"}, NO_EFFECT),
    (TOKENIZER, {"truncation_side": "both"}, "truncation_side"),
    (TOKENIZER, {"padding_side": "left"}, "padding_side"),
    (TOKENIZER, {"model_max_length": 20}, OBEYED),
    ("tokenizer.json", {"truncation": LEFT}, OBEYED),
    ("tokenizer.json", {"truncation": {**LEFT, "direction": "Right"}}, NO_EFFECT),
    ("tokenizer.json", {"truncation": LEFT, TOKENIZER: {"truncation_side": "right"}}, NO_EFFECT),
    ("tokenizer.json", {"padding": PADDING}, "padding_side"),
    ("tokenizer.json", {"padding": PADDING, TOKENIZER: {"padding_side": "right"}}, NO_EFFECT),
]  # fmt: skip


@pytest.fixture(scope="module")
def unchanged() -> tuple[FloatArray, FloatArray]:
    """The vectors of queries and of passages by the pipeline as it was saved."""
    encoder = Encoder(sentence_transformers_folder("labse"), "cpu", 1)
    return encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS)


def change(folder: Path, file: str, changes: dict[str, Any]) -> None:
    """Change fields of a file; a change named like a file is to that file, and empties it where it is empty."""
    own = {name: value for name, value in changes.items() if not name.endswith(".json")}
    edit_json(folder / file, own)
    for name, others in changes.items():
        if name.endswith(".json"):
            edit_json(folder / name, others) if others else (folder / name).unlink()


def lowest_cosine(found: tuple[FloatArray, FloatArray], expected: tuple[FloatArray, FloatArray]) -> float:
    left, right = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (np.concatenate(found), np.concatenate(expected))
    )
    return float((left * right).sum(axis=1).min())


def reference(folder: Path) -> tuple[FloatArray, FloatArray]:
    pipeline = SentenceTransformer(str(folder), device="cpu")
    return pipeline.encode_query(TEXTS), pipeline.encode_document(TEXTS)


@pytest.mark.parametrize(("file", "changes", "outcome"), TABLE)
def test_a_setting_is_obeyed_or_refused_or_has_no_effect(
    file: str, changes: dict[str, Any], outcome: str, unchanged: tuple[FloatArray, FloatArray], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sentence_transformers_folder("labse"), tmp_path / "model"))
    change(folder, file, changes)
    if outcome not in (OBEYED, NO_EFFECT):
        with pytest.raises(ModelError, match=outcome):
            Encoder(folder, "cpu", 1)
        return
    encoder = Encoder(folder, "cpu", 1)
    found = encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS)
    assert lowest_cosine(found, reference(folder)) >= 0.9999
    same = lowest_cosine(found, unchanged) >= 0.9999
    assert same == (outcome == NO_EFFECT)


@pytest.mark.parametrize(("similarity", "normalised"), [("cosine", True), (None, True), ("dot", False)])
def test_vectors_that_are_compared_by_cosine_are_normalised(
    similarity: str | None, normalised: bool, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sentence_transformers_folder("last"), tmp_path / "model"))
    settings = json.loads((folder / MODEL).read_text())
    (folder / MODEL).write_text(json.dumps({**settings, "similarity_fn_name": similarity}))
    encoder = Encoder(folder, "cpu", 1)
    lengths = np.linalg.norm(encoder.encode_passages(TEXTS), axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) == normalised
    assert encoder.describe()["normalise"] is normalised


@pytest.mark.parametrize(
    ("file", "changes"), [(TOKENIZER, {"padding_side": "left"}), ("tokenizer.json", {"padding": PADDING})]
)
def test_the_side_of_padding_has_no_effect_where_positions_ignore_padding(
    file: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sentence_transformers_folder("e5"), tmp_path / "model"))
    change(folder, file, changes)
    encoder = Encoder(folder, "cpu", 1)
    assert lowest_cosine((encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS)), reference(folder)) >= 0.9999


def test_a_description_keeps_the_settings_of_the_tokenizer(tmp_path: Path) -> None:
    from xqg_qdrant.model_folders import describe_in_place

    folder = Path(shutil.copytree(sentence_transformers_folder("labse"), tmp_path / "model"))
    edit_json(folder / TOKENIZER, {"truncation_side": "left"})
    before = Encoder(folder, "cpu", 1)
    describe_in_place(folder)
    (folder / TOKENIZER).unlink()
    after = Encoder(folder, "cpu", 1)
    assert after.describe() == before.describe()
    assert after.describe()["tokenizer"] == {"truncation_side": "left"}
    np.testing.assert_array_equal(after.encode_passages(TEXTS), before.encode_passages(TEXTS))


EXPORTED: list[tuple[str, str, dict[str, Any]]] = [
    ("xlm-roberta", "sentence_xlm-roberta_config.json", {"do_lower_case": True, "max_seq_length": 20}),
    ("xlm-roberta", TOKENIZER, {"truncation_side": "left"}),
    ("bert", TOKENIZER, {**BERT, "do_lower_case": True}),
    ("bert", MODEL, {"prompts": {"query": "q ", "document": "", "passage": "p "}, "similarity_fn_name": "cosine"}),
]


@pytest.mark.parametrize(("name", "file", "changes"), EXPORTED)
def test_the_export_obeys_the_same_settings(name: str, file: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder_checkpoint(name), tmp_path / "checkpoint"))
    save_st_files(folder, "mean_tokens", normalise=False)
    edit_json(folder / TOKENIZER, {"model_max_length": 40})
    change(folder, file, changes)
    exported = export_checkpoint(str(folder), tmp_path / "exported").folder
    encoder = Encoder(exported, "cpu", 1)
    found = encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS)
    assert lowest_cosine(found, reference(folder)) >= 0.9999
    if "similarity_fn_name" in changes:
        np.testing.assert_allclose(np.linalg.norm(found[0], axis=1), 1, rtol=1e-5)


def test_the_export_refuses_what_it_does_not_obey(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder_checkpoint("bert"), tmp_path / "checkpoint"))
    save_st_files(folder, "mean_tokens")
    edit_json(folder / MODEL, {"truncate_dim": 8})
    with pytest.raises(InputError, match=r"truncate_dim = 8"):
        export_checkpoint(str(folder), tmp_path / "exported")


@pytest.mark.parametrize(
    "case",
    [
        "st-bert-lowercase-in-tokenizer-config", "st-dense-default-activation", "st-legacy-settings-names-lower",
        "st-prompt-empty-document",
    ],
)  # fmt: skip
def test_reported_folders_give_sentence_transformers_vectors(case: str) -> None:
    folder = shared_case(f"{case}/model")
    encoder = Encoder(folder, "cpu", 1)
    assert lowest_cosine((encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS)), reference(folder)) >= 0.9999


def test_the_nearest_passage_to_a_text_is_itself_where_vectors_are_compared_by_cosine() -> None:
    encoder = Encoder(shared_case("similarity-cosine-ignored/model"), "cpu", 1)
    passages, query = encoder.encode_passages(["cat", "dog", "bird"]), encoder.encode_queries(["cat"])
    assert (passages @ query[0]).argmax() == 0
