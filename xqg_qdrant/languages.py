"""Look up languages by code: their English name, for prompts, and their scripts, for checks."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from xqg_qdrant.errors import InputError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier


class Language(NamedTuple):
    """A language's English name and its scripts, each the first word of its letters' Unicode names."""

    name: str
    scripts: frozenset[str]


_NAMES = {
    "LATIN": "af Afrikaans, ast Asturian, az Azerbaijani, bem Bemba, br Breton, bs Bosnian, ca Catalan, ceb Cebuano, "
    "cs Czech, cy Welsh, da Danish, de German, en English, eo Esperanto, es Spanish, et Estonian, eu Basque, "
    "ff Fula, fi Finnish, fo Faroese, fr French, fy Western Frisian, ga Irish, gd Scottish Gaelic, gl Galician, "
    "gn Guarani, ha Hausa, hr Croatian, ht Haitian Creole, hu Hungarian, id Indonesian, ig Igbo, is Icelandic, "
    "it Italian, jv Javanese, kab Kabyle, ki Kikuyu, la Latin, lb Luxembourgish, lg Ganda, ln Lingala, lt Lithuanian, "
    "lv Latvian, mg Malagasy, mi Maori, ms Malay, mt Maltese, nl Dutch, no Norwegian, nso Northern Sotho, ny Chichewa, "
    "oc Occitan, om Oromo, pcm Nigerian Pidgin, pl Polish, pt Portuguese, qu Quechua, rn Rundi, ro Romanian, "
    "rw Kinyarwanda, sk Slovak, sl Slovenian, sm Samoan, sn Shona, so Somali, sq Albanian, st Southern Sotho, "
    "su Sundanese, sv Swedish, sw Swahili, tk Turkmen, tl Tagalog, tn Tswana, tr Turkish, ts Tsonga, tw Twi, "
    "vi Vietnamese, wo Wolof, xh Xhosa, yo Yoruba, zu Zulu",
    "ARABIC": "ar Arabic, ckb Central Kurdish, fa Persian, ps Pashto, ug Uyghur, ur Urdu",
    "CYRILLIC": "ba Bashkir, be Belarusian, bg Bulgarian, kk Kazakh, ky Kyrgyz, mk Macedonian, mn Mongolian, "
    "ru Russian, tg Tajik, tt Tatar, uk Ukrainian",
    "DEVANAGARI": "hi Hindi, mr Marathi, ne Nepali, sa Sanskrit",
    "BENGALI": "as Assamese, bn Bengali",
    "ETHIOPIC": "am Amharic, ti Tigrinya",
    "HEBREW": "he Hebrew, yi Yiddish",
    "LATIN CYRILLIC": "sr Serbian, uz Uzbek",
    "LATIN ARABIC": "ku Kurdish",
    "ARABIC DEVANAGARI": "sd Sindhi",
    "GURMUKHI ARABIC": "pa Punjabi",
    "HIRAGANA KATAKANA KATAKANA-HIRAGANA CJK": "ja Japanese",
    "ARMENIAN": "hy Armenian",
    "CJK": "zh Chinese",
    "GEORGIAN": "ka Georgian",
    "GREEK": "el Greek",
    "GUJARATI": "gu Gujarati",
    "HANGUL": "ko Korean",
    "KANNADA": "kn Kannada",
    "KHMER": "km Khmer",
    "LAO": "lo Lao",
    "MALAYALAM": "ml Malayalam",
    "MYANMAR": "my Burmese",
    "ORIYA": "or Odia",
    "SINHALA": "si Sinhala",
    "TAMIL": "ta Tamil",
    "TELUGU": "te Telugu",
    "THAI": "th Thai",
    "TIBETAN": "bo Tibetan, dz Dzongkha",
}
LANGUAGES = {
    code: Language(name, frozenset(scripts.split()))
    for scripts, named in _NAMES.items()
    for code, name in (entry.split(" ", 1) for entry in named.split(", "))
}

# Other codes of the same languages, and dialects that count as them.
ALIASES = {
    "arb": "ar", "arz": "ar", "ary": "ar", "cmn": "zh", "fil": "tl", "hau": "ha", "ibo": "ig", "in": "id", "iw": "he",
    "kin": "rw", "nb": "no", "nn": "no", "pes": "fa", "swa": "sw", "swh": "sw", "twi": "tw", "wuu": "zh", "yor": "yo",
    "yue": "zh", "zul": "zu",
}  # fmt: skip

# Languages that short texts do not tell from each other.
CLOSE = tuple(
    frozenset(group.split())
    for group in (
        "id ms jv su", "no da sv", "hr bs sr sl", "cs sk", "pt gl es ca oc ast an ext", "it vec lij", "fr oc", "af nl",
        "lb de", "zu xh", "st nso tn", "rw rn", "az tr crh", "bg mk", "kk ky tt ba", "hi mr ne sa gom", "bn as",
        "en pcm", "tl bcl ceb", "am ti", "fa tg", "ku kmr",
    )
)  # fmt: skip
# The model that decides, for fingerprints; it changes with the second number of the version.
IDENTIFIER = "py3langid 0.4"
# The identifier takes all languages for equally likely, and three Russian words are often Macedonian, too.
RARER_THAN_RUSSIAN = {"uk": 0.5, "bg": 0.25, "sr": 0.25, "be": 0.1, "mk": 0.1}
# Of the probability of a language over its sum with the next likely one's; measured in docs/decisions.md.
LEAST_SHARE, LEAST_SHARE_CYRILLIC, LEAST_SHARE_UNKNOWN, CLEAR_SHARE = 0.1, 0.25, 0.5, 0.85
LEAST_CONFIDENCE = 0.6
NEGLIGIBLE = 1e-4
QUOTED = re.compile('"[^"]*"|«[^»]*»|“[^”]*”|„[^“”]*[“”]|「[^」]*」|《[^》]*》')
LATIN_WORD = re.compile("[A-Za-z\u00c0-\u02af\u1e00-\u1eff]+")

KANA = frozenset({"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"})


@lru_cache(maxsize=1 << 10)
def standard_code(named: str) -> str:
    """Return a language's code in this package: `fi` for `FI`, `fi-FI` and `Finnish`, `sw` for `swa`.

    A code that is not in `LANGUAGES` is returned in lower case, without region and script.
    """
    code = re.split("[-_]", named.strip().lower())[0]
    return ALIASES.get(code) or _codes_by_name().get(named.strip().lower(), code)


def language_name(code: str) -> str:
    """Return the English name of a language, such as `Finnish` for `fi` or `Brazilian Portuguese` for `pt-BR`.

    Names that are not in `LANGUAGES` come from the package langcodes.

    Raises:
        InputError: the code names no language, or langcodes is not installed.
    """
    if code in LANGUAGES:
        return LANGUAGES[code].name
    try:
        import langcodes
    except ImportError as error:
        cure = f"choose from {', '.join(LANGUAGES)}, or pip install 'xqg-qdrant[languages]'"
        raise InputError(f"the name of the language {code!r} needs langcodes.", cure) from error
    name = str(langcodes.Language.get(code).display_name()) if langcodes.tag_is_valid(code) else ""
    if not name or name.startswith("Unknown language"):
        raise InputError(f"{code!r} is no language.", "use a code of BCP 47, such as fi or pt-BR")
    return name


@cache
def _codes_by_name() -> dict[str, str]:
    return {language.name.lower(): code for code, language in LANGUAGES.items()}


# Codes of countries that are taken for those of their languages.
COUNTRIES = {
    **{"jp": "ja", "kr": "ko", "cn": "zh", "tw": "zh", "gr": "el", "cz": "cs", "dk": "da", "ua": "uk", "vn": "vi"},
    **{"ir": "fa", "il": "he", "rs": "sr", "se": "sv", "bd": "bn", "gb": "en", "us": "en", "br": "pt", "at": "de"},
}


def parse_languages(codes: str, known: Sequence[str]) -> tuple[str, ...]:
    """Parse a comma-separated list of language codes, keeping their order.

    Args:
        codes: such as `ja,ru`.
        known: the codes to choose from; if empty, all that have a `language_name`.

    Raises:
        InputError: a code is not in `known` or occurs twice, or the list is empty.
    """
    languages = tuple(code.strip() for code in codes.split(",") if code.strip())
    for code in languages:
        if not known:
            language_name(code)
        elif code not in known:
            meant = COUNTRIES.get(code.lower(), standard_code(code))
            hint = f"write {meant}, or " if meant in known else ""
            raise InputError(f"unknown language {code!r}.", f"{hint}choose from {', '.join(known)}")
    if not languages or len(set(languages)) < len(languages):
        problem = "name a language twice" if languages else "name no language"
        example = ",".join(known[:3] or ("ja", "ru"))
        raise InputError(f"the languages {codes!r} {problem}.", f"name each once, such as {example}")
    return languages


def is_written_in(text: str, code: str) -> bool:
    """Return whether at least half of the letters are in the language's script.

    Japanese must also contain kana. A language that is not in `LANGUAGES` may have any script.
    """
    code = standard_code(code)
    if code not in LANGUAGES:
        return any(map(str.isalpha, text))
    scripts = [_script(character) for character in text if character.isalpha()]
    wanted = LANGUAGES[code].scripts
    if 2 * sum(script in wanted for script in scripts) < max(1, len(scripts)):
        return False
    return code != "ja" or any(script in KANA for script in scripts)


def can_identify() -> bool:
    """Return whether the package that identifies languages is installed."""
    return find_spec("py3langid") is not None


def identify(texts: Iterable[str], among: Iterable[str] = ()) -> list[str | None]:
    """Return the language of each text, or None where it is unsure.

    Args:
        texts: best whole questions or sentences.
        among: codes of the languages that can be the answer; by default all that the package knows. A text in another
            language gets None, or one that is close to its own.

    Raises:
        InputError: py3langid is not installed.
    """
    wanted = {standard_code(code): code for code in among}
    return [_identify(text, wanted) for text in texts]


def is_surely_not(text: str, code: str) -> bool:
    """Return whether a text is surely in another language than this one.

    Short texts, names and foreign titles are no proof: words in quotation marks and, in languages of other scripts,
    Latin words do not count, and two words that are clearly in the language at the beginning or the end save the text.
    Close languages never exclude each other. Of a language that the package does not know, only English is excluded.

    Raises:
        InputError: py3langid is not installed.
    """
    code = standard_code(code)
    text = QUOTED.sub(" ", text)
    if code in LANGUAGES and "LATIN" not in LANGUAGES[code].scripts:
        text = LATIN_WORD.sub(" ", text)
    if not any(map(str.isalpha, text)):
        return False
    if _share(text, code) >= _least_share(code):
        return False
    words = text.split()
    ends = (words[:2], words[-2:]) if len(words) > 2 else ()
    return all(_share(" ".join(end), code) < CLEAR_SHARE for end in ends)


def _least_share(code: str) -> float:
    if code not in _known_languages():
        return LEAST_SHARE_UNKNOWN
    return LEAST_SHARE_CYRILLIC if code in LANGUAGES and "CYRILLIC" in LANGUAGES[code].scripts else LEAST_SHARE


def _share(text: str, code: str) -> float:
    """Return the probability of a language and those close to it, over its sum with the next likely language's."""
    scores = _score(text)
    if code not in _known_languages():
        return 1 - scores.get("en", 0.0)
    scores = {each: score * RARER_THAN_RUSSIAN.get(each, 1.0) for each, score in scores.items()}
    close = close_languages(code)
    own = sum(scores.get(each, 0.0) for each in close)
    return own / (own + max((score for each, score in scores.items() if each not in close), default=0.0))


def _identify(text: str, wanted: Mapping[str, str]) -> str | None:
    text = QUOTED.sub(" ", text)
    rest = LATIN_WORD.sub(" ", text)
    # A Latin title in a question of another script, or the other way round.
    text = rest if any(map(str.isalpha, rest)) else text
    scores = {code: score for code, score in _score(text).items() if is_written_in(text, code)}
    candidates = {code: score for code, score in scores.items() if not wanted or code in wanted}
    if not candidates:
        return None
    best = max(candidates, key=candidates.__getitem__)
    close = close_languages(best)
    near = sum(score for code, score in scores.items() if code in close)
    far = {code: score for code, score in scores.items() if code not in close}
    others = sum(score for code, score in far.items() if code in candidates)
    sure = candidates[best] >= max(far.values(), default=0.0) and near >= LEAST_CONFIDENCE * (near + others)
    return wanted.get(best, best) if sure else None


@cache
def close_languages(code: str) -> frozenset[str]:
    """Return a language and those that short texts do not tell from it."""
    return frozenset({code}.union(*(group for group in CLOSE if code in group)))


@lru_cache(maxsize=1 << 12)
def _score(text: str) -> Mapping[str, float]:
    """Return the probabilities of the languages; those of `NEGLIGIBLE` are left out."""
    scores = Counter[str]()
    for code, score in _identifier().rank(text):
        if score < NEGLIGIBLE:
            break
        scores[standard_code(code)] += score
    return scores


@cache
def _known_languages() -> frozenset[str]:
    return frozenset(map(standard_code, _identifier().labels))


@cache
def _identifier() -> LanguageIdentifier:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise InputError("identifying languages needs py3langid.", "pip install 'xqg-qdrant[languages]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def can_write(character: str, code: str) -> bool:
    """Return whether a text in this language may contain the character.

    True for characters other than letters and marks, and for those of the language's scripts. Latin letters are
    always False: each language uses its own subset, which the script does not show.
    """
    if not (character.isalpha() or unicodedata.combining(character) or unicodedata.category(character)[0] == "M"):
        return True
    return _script(character) in LANGUAGES[code].scripts - {"LATIN"}


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0]
