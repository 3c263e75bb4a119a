"""Have a language model write the queries: any OpenAI-compatible chat endpoint.

One call asks for all queries of a passage. A reply is read, checked, and stored in a journal before anything else is
done with it, so that a killed ingest asks nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from uuid import uuid4

from xqg_qdrant.errors import InputError, ModelError, XqgError
from xqg_qdrant.generation import DRAWING, SLOW, Endpoint, Generation, Usage
from xqg_qdrant.generation.chat import KEY_VARIABLES, Chat, Reply
from xqg_qdrant.generation.checks import NO_QUESTION, Checked, Dropped, check_queries
from xqg_qdrant.generation.questions import (
    DEFAULT_PROMPT,
    ECHOED_CHARACTERS,
    SCHEMA_VERSION,
    check_prompt,
    count_least_tokens,
    describe_prompt,
    fill_prompt,
    find_pieces,
    make_schema,
    read_reply,
)
from xqg_qdrant.inference.endpoint import find_key
from xqg_qdrant.machine import find_cache
from xqg_qdrant.records import GeneratedQuery, Passage
from xqg_qdrant.text import count_of

LANGUAGE_MODEL = "language-model"
NOTE_PREFIX = "storing-"
# For the brackets of the JSON and what a model says around it.
SPARE_TOKENS = 200
TOKENS_A_QUERY = 100
# Where the server does not count.
CHARACTERS_A_TOKEN = 4


class ChatSampling(NamedTuple):
    """How a language model draws.

    Attributes:
        temperature: None is the server's default.
        max_new_tokens: Room of a reply for each query, in tokens.
    """

    temperature: float | None = None
    max_new_tokens: int = TOKENS_A_QUERY


class LanguageModelGenerator:
    """A `Generator` that asks a language model; the same call may be answered differently each time."""

    pace = SLOW
    reading = None
    writes_sentences = True
    sampling = ChatSampling()
    languages: tuple[str, ...] = ()
    device = "remote"

    def __init__(
        self,
        url: str,
        model: str,
        prompt: str | None = None,
        concurrency: int = 8,
        max_tokens: int = 0,
        max_cost: float = 0.0,
        price_in: float = 0.0,
        price_out: float = 0.0,
        journal: Path | None = None,
        patience: float = math.inf,
        *,
        api_key: str | None = None,
    ) -> None:
        """Remember an endpoint; see `Endpoint` for the settings.

        The key is taken from the environment (`XQG_LLM_API_KEY`, else `OPENAI_API_KEY`) if there is no `api_key`.

        Raises:
            InputError: a setting cannot be used.
        """
        if concurrency < 1:
            raise InputError(f"concurrency must be at least 1, was: {concurrency}.", "choose 1 or more, such as 8")
        if max_cost and not (price_in or price_out):
            cure = "set --price-per-million-input and --price-per-million-output"
            raise InputError("a cost is limited, but no price is known.", cure)
        if not model:
            raise InputError("no model is named.", "name the server's model with --model")
        limits = concurrency, max_tokens, max_cost, price_in, price_out
        self.endpoint = Endpoint(url, model, prompt, *limits, journal, patience)
        self.concurrency = concurrency
        self._template = DEFAULT_PROMPT if prompt is None else check_prompt(prompt, "template")
        self._echoes = find_pieces(self._template, ECHOED_CHARACTERS)
        self._chat = Chat(url, model, api_key or read_key(), concurrency, patience)
        self.journal = Journal(journal or find_cache() / "replies")
        self._pool = ThreadPoolExecutor(concurrency, "xqg-llm")
        self._served = ""
        self._lock = Lock()
        self._spent = Usage()
        self._in_flight = 0

    @property
    def shown_url(self) -> str:
        """Return the endpoint's URL without what must not be shown."""
        return self._chat.shown_url

    def describe(self) -> dict[str, Any]:
        """Return the settings that decide the queries, for a fingerprint; asks the server for the model's name once."""
        self._served = self._served or self._chat.find_served()
        return {
            "kind": LANGUAGE_MODEL,
            "model": self._served,
            "prompt_sha256": describe_prompt(self._template),
            "schema": SCHEMA_VERSION,
        }

    def choose_sampling(self, languages: Sequence[str], settings: Mapping[str, Any]) -> ChatSampling:
        """Return the sampling with these settings.

        Raises:
            InputError: a setting is out of range, or of another generator.
        """
        for name in DRAWING:
            if name in settings and name not in (*ChatSampling._fields, "seed"):
                raise InputError(f"{name} is no setting of a language model at an endpoint.", f"leave {name} out")
        sampling = ChatSampling(**{name: settings[name] for name in ChatSampling._fields if name in settings})
        if sampling.temperature is not None and not sampling.temperature >= 0:
            raise InputError(f"temperature must be at least 0, was: {sampling.temperature}.", "choose 0 or more")
        if sampling.max_new_tokens < 1:
            raise InputError(
                f"max_new_tokens must be at least 1, was: {sampling.max_new_tokens}.", "choose 100 or more"
            )
        return sampling

    def generate(
        self,
        passages: Sequence[Passage],
        languages: Sequence[str],
        count: int,
        seed: int,
        sampling: ChatSampling,
        identify: bool = False,
    ) -> list[Generation]:
        """Write up to `count` queries for each passage in each language, a call a passage.

        A passage about which the model writes nothing usable is `rejected`. If the run must end, by a limit or an
        error that concerns all calls, the passages not done have it as their `failure`.
        """
        work = [
            self._pool.submit(self._write, passage, languages, count, seed, sampling, identify) for passage in passages
        ]
        return [done.result() for done in work]

    def make_request(
        self, passage: Passage, languages: Sequence[str], count: int, seed: int, sampling: ChatSampling
    ) -> dict[str, Any]:
        """Return the body of the request for a passage, for a batch API."""
        wanted = dict.fromkeys(languages, count)
        prompt, room = fill_prompt(self._template, passage, wanted), find_room(wanted, sampling)
        return self._chat.make_body(prompt, make_schema(wanted), room, sampling.temperature, seed)

    def close(self) -> None:
        """Close the connections, and remove the journal if it is empty; calls in flight are finished."""
        self._pool.shutdown()
        self._chat.close()
        with suppress(OSError):
            self.journal.folder.rmdir()

    def _write(
        self,
        passage: Passage,
        languages: Sequence[str],
        count: int,
        seed: int,
        sampling: ChatSampling,
        identify: bool,
    ) -> Generation:
        call = _Calls(passage, seed, sampling)
        wanted = dict.fromkeys(languages, count)
        candidates: list[GeneratedQuery] = []
        found = Checked((), {})
        faults, no_questions = Counter[str](), Counter[Dropped]()
        reason = ""
        try:
            for attempt in range(2):
                reply = self._ask(call, wanted, attempt)
                if reason := reply.rejected:
                    break
                read = read_reply(reply.content, wanted, passage, self._echoes)
                if reply.content:
                    self._chat.note_format(reply, read.structured)
                for (code, fault), number in read.dropped.items():
                    faults[fault] += number
                    no_questions[Dropped(code, NO_QUESTION)] += number
                candidates += [
                    GeneratedQuery(code, text) for code, questions in read.questions.items() for text in questions
                ]
                found = keep(check_queries(candidates, identify), count)
                written = Counter(query.language for query in found.queries)
                wanted = {code: count for code in languages if written[code] < count}
                if not wanted:
                    break
        except XqgError as error:
            return Generation((), count, failure=error, usage=call.usage, replies=tuple(call.replies))
        if not found.queries and not reason:
            faults.update({why.replace("_", " "): number for (_, why), number in found.dropped.items()})
            why = ", ".join(f"{number} {fault}" for fault, number in faults.items())
            reason = f"the model wrote no usable question{f' ({why})' if why else ''}"
        rejected = "" if found.queries else reason
        dropped = Counter(found.dropped) + no_questions
        return Generation(found.queries, count, dropped, rejected, None, call.usage, tuple(call.replies))

    def _ask(self, call: _Calls, wanted: Mapping[str, int], attempt: int) -> Reply:
        """Return a reply that is whole, or rejected."""
        prompt = fill_prompt(self._template, call.passage, wanted)
        schema = make_schema(wanted)
        room = find_room(wanted, call.sampling)
        # Another seed, as a server may repeat the bad reply with the same one.
        for more in (1, 2):
            reply = self._ask_once(call, prompt, schema, more * room, call.seed + attempt)
            if not reply.truncated:
                break
        else:
            cure = "raise --max-new-tokens"
            return reply._replace(rejected=f"the reply was cut off, even with twice the room ({cure})")
        least = count_least_tokens(prompt)
        if 0 < reply.usage.tokens_in < least and not reply.rejected:
            read = f"the server read {reply.usage.tokens_in} tokens of a prompt of {least} or more"
            return reply._replace(rejected=f"{read}: its context is too short")
        return reply

    def _ask_once(self, call: _Calls, prompt: str, schema: Mapping[str, Any], room: int, seed: int) -> Reply:
        """Return the reply in the journal, else ask for it and keep it there."""
        key = hash_call(self.endpoint.model, prompt, room, call.sampling.temperature, seed)
        path = self.journal.path_of(key)
        call.replies.append(path)
        if (kept := self.journal.read(path)) is not None:
            return kept
        self._reserve(len(prompt) // CHARACTERS_A_TOKEN + room // 2)
        reply = Reply("")
        try:
            reply = self._chat.ask(prompt, schema, room, call.sampling.temperature, seed)
        finally:
            usage = _estimate(reply, prompt)
            with self._lock:
                self._in_flight -= 1
                self._spent = self._spent.plus(usage)
        self.journal.write(path, reply)
        call.usage = call.usage.plus(usage)
        return reply

    def _reserve(self, guess: int) -> None:
        """Count a call as begun; calls in flight count as the average of the others, the first ones as the guess.

        Raises:
            ModelError: the limit of tokens or money is reached.
        """
        with self._lock:
            spent, begun = self._spent, self._in_flight
            each = spent if spent.calls else Usage(1, guess // 2, guess // 2)
            factor = begun / each.calls
            expected = spent.plus(Usage(begun, round(each.tokens_in * factor), round(each.tokens_out * factor)))
            if not self._exceeds(expected):
                self._in_flight += 1
                return
        error = ModelError(
            f"the limit is reached: {spent.tokens_in + spent.tokens_out} tokens in {count_of(spent.calls, 'call')}.",
            "run the same command again to resume with a new limit",
        )
        self._chat.end(error)
        raise error

    def _exceeds(self, usage: Usage) -> bool:
        limits = self.endpoint
        if limits.max_tokens and usage.tokens_in + usage.tokens_out >= limits.max_tokens:
            return True
        return bool(limits.max_cost) and limits.price(usage) >= limits.max_cost


class _Calls:
    """The calls for one passage: what they share, took and left in the journal."""

    def __init__(self, passage: Passage, seed: int, sampling: ChatSampling) -> None:
        self.passage, self.seed, self.sampling = passage, seed, sampling
        self.usage = Usage()
        self.replies: list[Path] = []


def keep(checked: Checked, count: int) -> Checked:
    """Keep up to `count` queries of each language, numbered from 0."""
    numbers = Counter[str]()
    kept = []
    for query in checked.queries:
        if numbers[query.language] < count:
            kept.append(query._replace(number=numbers[query.language]))
            numbers[query.language] += 1
    return checked._replace(queries=tuple(kept))


class Journal:
    """A folder with one file for each reply whose passage is not stored yet; several processes may share it.

    A kill between the writing of a passage and the removal of its replies would leave them for ever. So the passages
    are noted before they are written, and a later run removes the replies of those that it finds stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, key: str) -> Path:
        """Return the file of a call."""
        return self.folder / f"{key}.json"

    def read(self, path: Path) -> Reply | None:
        """Return a reply, None if there is none; it took no tokens of this run."""
        try:
            fields = json.loads(path.read_text(encoding="ascii"))
            return Reply(**{**fields, "usage": Usage(0, *fields["usage"][1:])})
        except (OSError, ValueError, TypeError, KeyError):  # a power failure may leave an empty file
            return None

    def write(self, path: Path, reply: Reply) -> None:
        """Keep a reply; its file is whole or absent.

        Raises:
            ModelError: the folder cannot be written to.
        """
        self._put(path, reply._asdict())

    def _put(self, path: Path, value: object) -> Path:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False, encoding="ascii") as file:
                json.dump(value, file)
            os.replace(file.name, path)
            return path
        except OSError as error:
            raise ModelError(
                f"cannot keep replies in {self.folder} ({error.strerror or error}).", "free space, or make it writable"
            ) from error

    def note(self, target: str, replies: Mapping[Path, tuple[str, str]]) -> Path | None:
        """Note which passages are about to be stored; see `ReplyJournal`."""
        if not replies:
            return None
        noted = {path.name: about for path, about in replies.items() if path.parent == self.folder}
        return self._put(self.folder / f"{NOTE_PREFIX}{uuid4().hex}.json", {"target": target, "replies": noted})

    def sweep(self, target: str, read_hashes: Callable[[Sequence[str]], Mapping[str, str]]) -> None:
        """Remove the replies of noted passages that are stored; see `ReplyJournal`."""
        for path in self.folder.glob(f"{NOTE_PREFIX}*.json"):
            with suppress(OSError, ValueError, TypeError, KeyError):  # a power failure may leave an empty file
                noted = json.loads(path.read_text(encoding="ascii"))
                if noted["target"] == target:
                    self._sweep(path, noted["replies"], read_hashes)

    def _sweep(
        self,
        note: Path,
        replies: Mapping[str, tuple[str, str]],
        read_hashes: Callable[[Sequence[str]], Mapping[str, str]],
    ) -> None:
        kept = {self.folder / name: about for name, about in replies.items() if (self.folder / name).exists()}
        stored = read_hashes([passage_id for passage_id, _ in kept.values()]) if kept else {}
        done = [path for path, (passage_id, content) in kept.items() if stored.get(passage_id) == content]
        for path in done:
            path.unlink(missing_ok=True)
        if len(done) == len(kept):
            note.unlink(missing_ok=True)


def find_room(wanted: Mapping[str, int], sampling: ChatSampling) -> int:
    """Return the most tokens of a reply."""
    return SPARE_TOKENS + sampling.max_new_tokens * sum(wanted.values())


def hash_call(model: str, prompt: str, room: int, temperature: float | None, seed: int) -> str:
    """Return the name of a call in the journal."""
    call = json.dumps([model, prompt, room, temperature, seed])
    return hashlib.sha256(call.encode()).hexdigest()[:40]


def _estimate(reply: Reply, prompt: str) -> Usage:
    """Return the usage of a reply, estimated where the server does not count."""
    usage = reply.usage
    if usage.calls and not usage.tokens_in:
        counts = (len(prompt) // CHARACTERS_A_TOKEN, len(reply.content) // CHARACTERS_A_TOKEN)
        return Usage(usage.calls, *counts)
    return usage


def read_key() -> str | None:
    """Return the key in the environment."""
    return find_key(KEY_VARIABLES)[1]
