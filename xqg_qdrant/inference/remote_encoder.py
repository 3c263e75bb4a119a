"""Encode texts with a model behind an OpenAI-compatible endpoint (`/embeddings`).

A folder with an `xqg.json` of kind `endpoint` describes it. The description holds the vectors of ten probe texts. They
are asked for again when the encoder is opened, so that another model under the same name is noticed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.inference.endpoint import OVERSIZED, Line, Refusal, Site, find_key, read_count
from xqg_qdrant.model_folders import ModelFolder
from xqg_qdrant.model_folders.description import DESCRIPTION_FILE, ENDPOINT, FIELDS_RULE, FORMAT
from xqg_qdrant.records import FloatArray
from xqg_qdrant.text import count_of

KEY_VARIABLES = ("XQG_EMBEDDING_API_KEY", "OPENAI_API_KEY")
SITE = Site("encoder", "/embeddings", KEY_VARIABLES[0], 256 << 20, "data")
CONCURRENCY = 8
TEXTS_A_REQUEST = 64
# About 8,000 tokens of English, a quarter of the least limit of a request.
CHARACTERS_A_REQUEST = 32_000
MOST_REMEMBERED = 20_000
LEAST_COSINE = 0.999
UNIT_TOLERANCE = 1e-3
# What remains of a text that the server finds too long.
SHORTER = 0.75
LEAST_CHARACTERS = 40
DEVICE = "remote"
PROBES = (
    "The Danube rises in the Black Forest and flows into the Black Sea.",
    "How long is the Danube?",
    "Aurinko nousee idästä ja laskee länteen.",
    "ドナウ川はどこで海に注ぎますか？",
    "من اخترع الهاتف؟",
    "Вода кипит при ста градусах.",
    "Water boils at a lower temperature on high mountains.",
    "def add(left, right): return left + right",
    "In 1969 two people walked on the Moon.",
    "7",
)
_TOO_LONG = re.compile(
    r"context.?(length|size|window)|too (long|large|many tokens)|maximum.{0,40}tokens|exceeds?.{0,40}(context|token)"
    r"|must have less than \d+ tokens|input length",
    re.I,
)

_log = logging.getLogger(__name__)


class _TooLongError(Exception):
    """The server finds a request too long."""


class RemoteEncoder:
    """A `TextEncoder` behind an endpoint; several threads may use one."""

    device = DEVICE
    reading = None

    def __init__(
        self,
        path: Path,
        about: Mapping[str, Any],
        *,
        api_key: str | None = None,
        check: bool = True,
        patience: float = math.inf,
    ) -> None:
        """Open an endpoint, and compare the vectors of the probes.

        The key is taken from the environment (`XQG_EMBEDDING_API_KEY`, else `OPENAI_API_KEY`) if there is no `api_key`.

        Args:
            path: the folder of the description.
            about: the description, from `read_endpoint`.
            api_key: sent to the URL's host alone.
            check: whether to compare the probes.
            patience: the most seconds to wait for a server that is busy or loads its model.

        Raises:
            InputError: the URL or the key cannot be used.
            ModelError: the endpoint does not answer, or its model has changed.
        """
        identity = {name: value for name, value in about.items() if name not in UNIDENTIFYING}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.folder = ModelFolder(path, {**about, "source": about["model"], "files": {DESCRIPTION_FILE: digest}})
        self._about = about
        self.dim: int = about["dim"]
        self.tokens = self.truncated = 0
        self._line = Line(SITE, about["url"], api_key or read_key(), CONCURRENCY, patience)
        self._pool = ThreadPoolExecutor(CONCURRENCY, "xqg-encoder")
        self._lock = Lock()
        self._known: dict[tuple[bool, str], FloatArray] = {}
        if check:
            try:
                self._check_probes()
            except BaseException:
                self.close()
                raise

    def describe(self) -> dict[str, Any]:
        """Return the settings that decide the vectors, for a fingerprint; the URL may change."""
        names = ("model", "normalise", "query_prefix", "passage_prefix", "query_fields", "passage_fields")
        return {"sha256": self.folder.sha256(), "kind": ENDPOINT, **{name: self._about[name] for name in names}}

    @property
    def shown_url(self) -> str:
        """Return the endpoint's URL without what must not be shown."""
        return self._line.shown_url

    @property
    def source(self) -> str:
        """Return the model's name at the endpoint."""
        return str(self._about["model"])

    def sha256(self) -> str:
        """Return one checksum of all that decides the vectors."""
        return self.folder.sha256()

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Return 0: an endpoint does not say what it does not know."""
        return 0.0

    def encode_passages(self, texts: Sequence[str], prefix: str | None = None) -> FloatArray:
        """Encode passages into float32 of shape `(len(texts), dim)`; a prefix replaces the model's own."""
        prefix = self._about["passage_prefix"] if prefix is None else prefix
        return self._encode([f"{prefix}{text}" for text in texts], asks=False)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Encode questions into float32 of shape `(len(texts), dim)`."""
        return self._encode([self._about["query_prefix"] + text for text in texts], asks=True)

    @property
    def cost(self) -> float:
        """Return what the answered requests cost."""
        return float(self.tokens * self._about["price_per_million"] / 1e6)

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown()
        self._line.close()

    def _check_probes(self) -> None:
        wanted = unpack(self._about["probes"])
        found = self._encode(list(PROBES), asks=False)
        if wanted.shape != found.shape:
            cosine = 0.0
        else:
            norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
            cosine = float(((wanted * found).sum(axis=1) / norms).min())
        if not cosine >= LEAST_COSINE:
            raise ModelError(
                f"the model {self._about['model']!r} at {self._line.shown_url} has changed: a probe has a cosine of "
                f"{cosine:.4f} with its vector in {self.folder.path / DESCRIPTION_FILE}; {LEAST_COSINE} is needed.",
                "ingest again with a new description (xqg describe URL), or ask for the former model",
            )

    def _encode(self, texts: list[str], asks: bool) -> FloatArray:
        limit = self._about["max_characters"]
        cut = [text[:limit] if limit else text for text in texts]
        if shorter := sum(len(text) > limit > 0 for text in texts):
            self._count_truncated(shorter)
        with self._lock:
            unknown = [text for text in dict.fromkeys(cut) if (asks, text) not in self._known]
        found: dict[str, FloatArray] = {}
        batches = list(cut_batches(unknown))
        for batch, vectors in zip(batches, self._pool.map(partial(self._ask, asks=asks), batches), strict=True):
            found.update(zip(batch, vectors, strict=True))
        with self._lock:
            rows = [found[text] if text in found else self._known[asks, text] for text in cut]
            if len(self._known) > MOST_REMEMBERED:
                self._known.clear()
            self._known.update(((asks, text), vector) for text, vector in found.items())
        return np.stack(rows) if rows else np.empty((0, self.dim), np.float32)

    def _ask(self, texts: Sequence[str], asks: bool) -> list[FloatArray]:
        """Return the vectors of a batch; halve it, or cut its only text, while the server finds it too long."""
        try:
            return self._line.ask(partial(self._make_body, texts, asks), self._read, self._read_refusal)
        except _TooLongError as error:
            if len(texts) > 1:
                middle = len(texts) // 2
                return [*self._ask(texts[:middle], asks), *self._ask(texts[middle:], asks)]
            if len(texts[0]) < LEAST_CHARACTERS:
                cure = "see the server's log"
                raise ModelError(f"{self._line.shown_url} refuses even short texts: {error}.", cure) from None
            shorter = texts[0]
        self._count_truncated(1)
        return self._ask([shorter[: int(SHORTER * len(shorter))]], asks)

    def _make_body(self, texts: Sequence[str], asks: bool) -> dict[str, Any]:
        most_tokens, most_cost = self._about["max_tokens"], self._about["max_cost"]
        if 0 < most_tokens <= self.tokens or 0 < most_cost <= self.cost:
            cost = f", which cost {self.cost:.4g}" if self.cost else ""
            raise ModelError(
                f"the limit is reached: {self.tokens} tokens were encoded{cost}.",
                "run the same command again to resume",
            )
        fields = self._about["query_fields" if asks else "passage_fields"]
        inputs = [text.encode("utf-8", "replace").decode() for text in texts]
        return {"model": self._about["model"], "input": inputs, **fields}

    def _read(self, answer: dict[str, Any], body: Mapping[str, Any]) -> list[FloatArray]:
        usage = answer.get("usage")
        counted = read_count(usage, "total_tokens")
        with self._lock:
            self.tokens += counted or sum(map(len, body["input"])) // 4
        vectors = read_vectors(answer, len(body["input"]), self._line.shown_url)
        if vectors.shape[1] != self.dim:
            raise ModelError(
                f"{self._line.shown_url} answers with {vectors.shape[1]} numbers a text; {self.dim} are described in "
                f"{self.folder.path / DESCRIPTION_FILE}.",
                "describe it again with xqg describe, and ingest into a new collection",
            )
        if self._about["normalise"]:
            vectors = (vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
        return list(vectors)

    def _read_refusal(self, refusal: Refusal, _body: Mapping[str, Any]) -> None:
        if refusal.status == OVERSIZED or _TOO_LONG.search(f"{refusal.code} {refusal.message}"):
            raise _TooLongError(refusal.what)
        raise ModelError(
            f"{self._line.shown_url} refuses the texts: {refusal.what}.", "check the fields in xqg.json, and the server"
        )

    def _count_truncated(self, number: int) -> None:
        with self._lock:
            first = not self.truncated
            self.truncated += number
        if first:
            _log.warning("a text is too long for the model at %s; such texts are truncated", self._line.shown_url)


# What may change without another vector.
UNIDENTIFYING = ("url", "price_per_million", "max_tokens", "max_cost", "source", "files")


def read_key() -> str | None:
    """Return the key in the environment."""
    return find_key(KEY_VARIABLES)[1]


def cut_batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Split texts into lists that each fit a request."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == TEXTS_A_REQUEST or size + len(text) > CHARACTERS_A_REQUEST):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def read_vectors(answer: Mapping[str, Any], count: int, where: str) -> FloatArray:
    """Return the vectors in an answer, float32 of shape `(count, dim)`, in the order of the texts.

    Raises:
        ModelError: there is not one usable vector for each text.
    """
    data = answer.get("data")
    cure = "check that it serves a model of embeddings, and its log"
    if not isinstance(data, list) or len(data) != count or not all(isinstance(row, dict) for row in data):
        found = count_of(len(data), "vector") if isinstance(data, list) else "no vectors"
        raise ModelError(f"{where} answers with {found} for {count_of(count, 'text')}.", cure)
    places = [row.get("index", place) for place, row in enumerate(data)]
    if sorted(map(str, places)) != sorted(map(str, range(count))):
        raise ModelError(f"{where} answers with vectors numbered {places[:10]}.", cure)
    try:
        by_place = {int(place): _read_vector(row.get("embedding")) for place, row in zip(places, data, strict=True)}
        vectors = np.stack([by_place[place] for place in range(count)])
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"{where} answers with a vector that cannot be read ({error}).", cure) from error
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise ModelError(f"{where} answers with a vector that is not finite or not flat.", cure)
    if not vectors.any(axis=1).all():
        raise ModelError(f"{where} answers with a vector of zeros.", cure)
    return vectors


def _read_vector(value: object) -> FloatArray:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
    return np.asarray(value, dtype=np.float32)


def pack(vectors: FloatArray) -> list[str]:
    """Return vectors as texts: base64 of little-endian float32."""
    return [base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii") for vector in vectors]


def unpack(texts: Sequence[str]) -> FloatArray:
    """Return the vectors of `pack`; an empty array if they differ in length or cannot be read."""
    try:
        return np.stack([_read_vector(text) for text in texts])
    except ValueError:
        return np.empty((0, 0), np.float32)


def describe_endpoint(url: str, folder: Path, model: str, **given: Any) -> dict[str, Any]:
    """Probe an endpoint and write the `xqg.json` that describes it; return its content.

    Args:
        url: of the endpoint, with or without `/embeddings`.
        folder: to write to; created if missing.
        model: its name there.
        given: fields of the description that a probe cannot find out, or that it is not to decide (`normalise`).

    Raises:
        InputError: the folder holds a model already, or the URL or a field cannot be used.
        ModelError: the endpoint does not answer as it should.
    """
    path = folder / DESCRIPTION_FILE
    if path.exists():
        raise InputError(f"{path} exists.", "choose another folder (--out), or remove it")
    for name in ("query_fields", "passage_fields"):
        if not FIELDS_RULE.is_met(given.get(name, {})):
            raise InputError(f"{name} is not {FIELDS_RULE.wanted}.", 'write it like {"input_type": "query"}')
    defaults = {
        "query_prefix": "", "passage_prefix": "", "query_fields": {}, "passage_fields": {}, "max_characters": 0,
        "price_per_million": 0, "max_tokens": 0, "max_cost": 0,
    }  # fmt: skip
    about = {"format": FORMAT, "kind": ENDPOINT, "url": url, "model": model, **defaults, **given}
    site_url = SITE.find_url(url)
    # Without a dimension and scaling, read what the endpoint answers.
    prober = _Prober(folder, {**about, "dim": 0, "normalise": False})
    vectors = prober.encode_passages(PROBES, "")
    prober.close()
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    about = {"dim": vectors.shape[1], "normalise": bool((np.abs(lengths - 1) < UNIT_TOLERANCE).all()), **about}
    if about["normalise"]:
        vectors = (vectors / lengths[:, None]).astype(np.float32)
    about["probes"] = pack(vectors)
    about["url"] = site_url
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{DESCRIPTION_FILE}.unfinished"
    unfinished.write_text(json.dumps(about, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return about


class _Prober(RemoteEncoder):
    """An encoder of unknown dimension."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        super().__init__(path, about, check=False)

    def _read(self, answer: dict[str, Any], body: Mapping[str, Any]) -> list[FloatArray]:
        vectors = read_vectors(answer, len(body["input"]), self._line.shown_url)
        self.dim = vectors.shape[1]
        return list(vectors)
