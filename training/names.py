"""Names in other scripts, letter by letter: rough transliteration rules for six languages (Finnish keeps Latin letters).

The parallel texts hold few names, and a question about a passage nearly always holds one. A generator that has learned
to write names down by their sound says something that no dictionary would have told it. The rules are simple, and wrong
where spelling and sound differ much.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

CYRILLIC = dict(
    zip(
        "sh ch kh zh th ph ck qu ts ya yu ee oo ou a b c d e f g h i j k l m n o p q r s t u v w x y z".split(),
        "ш ч х ж т ф к кв ц я ю и у у а б к д е ф г х и дж к л м н о п к р с т у в в кс и з".split(),
        strict=True,
    )
)
ARABIC = dict(
    zip(
        "sh ch kh th ph gh ck qu ee oo ou a b c d e f g h i j k l m n o p q r s t u v w x y z".split(),
        "ش تش خ ث ف غ ك كو ي و و ا ب ك د ي ف غ ه ي ج ك ل م ن و ب ق ر س ت و ف و كس ي ز".split(),
        strict=True,
    )
)
VOWELS = "aiueo"
LONG_VOWELS = {"ee": "i", "oo": "u", "ou": "u"}
SOUNDS = re.compile("sh|ch|kh|gh|th|dh|ph|bh|ck|ee|oo|ou|[a-z]")

# Offsets within a Brahmic block of Unicode, which are alike in Bengali (0980) and Telugu (0C00).
INDIC_CONSONANTS = {
    "k": 0x15, "kh": 0x16, "g": 0x17, "gh": 0x18, "ch": 0x1A, "j": 0x1C, "t": 0x1F, "th": 0x25, "d": 0x21, "dh": 0x27,
    "n": 0x28, "p": 0x2A, "ph": 0x2B, "f": 0x2B, "b": 0x2C, "bh": 0x2D, "m": 0x2E, "y": 0x2F, "r": 0x30, "l": 0x32,
    "v": 0x35, "w": 0x35, "sh": 0x36, "s": 0x38, "h": 0x39, "z": 0x1C, "c": 0x15, "q": 0x15, "ck": 0x15,
}  # fmt: skip
INDIC_VOWELS = {"a": 0x06, "i": 0x07, "ee": 0x08, "u": 0x09, "oo": 0x0A, "ou": 0x0A, "e": 0x0F, "o": 0x13}
INDIC_SIGNS = {"a": 0x3E, "i": 0x3F, "ee": 0x40, "u": 0x41, "oo": 0x42, "ou": 0x42, "e": 0x47, "o": 0x4B}
VIRAMA = 0x4D
BENGALI, TELUGU = 0x980, 0xC00

KATAKANA = {
    "": "ア イ ウ エ オ", "k": "カ キ ク ケ コ", "g": "ガ ギ グ ゲ ゴ", "s": "サ シ ス セ ソ", "z": "ザ ジ ズ ゼ ゾ",
    "t": "タ ティ トゥ テ ト", "d": "ダ ディ ドゥ デ ド", "n": "ナ ニ ヌ ネ ノ", "h": "ハ ヒ フ ヘ ホ",
    "b": "バ ビ ブ ベ ボ", "p": "パ ピ プ ペ ポ", "m": "マ ミ ム メ モ", "y": "ヤ イ ユ イェ ヨ", "r": "ラ リ ル レ ロ",
    "w": "ワ ウィ ウ ウェ ウォ", "f": "ファ フィ フ フェ フォ", "v": "ヴァ ヴィ ヴ ヴェ ヴォ", "j": "ジャ ジ ジュ ジェ ジョ",
    "sh": "シャ シ シュ シェ ショ", "ch": "チャ チ チュ チェ チョ", "x": "クサ クシ クス クセ クソ",
}  # fmt: skip
KATAKANA_FINALS = {
    "k": "ク", "g": "グ", "s": "ス", "z": "ズ", "t": "ト", "d": "ド", "n": "ン", "m": "ム", "b": "ブ", "p": "プ", "h": "",
    "r": "ル", "f": "フ", "v": "ヴ", "j": "ジ", "sh": "シュ", "ch": "チ", "x": "クス", "w": "ウ", "y": "イ",
}  # fmt: skip
JAPANESE_SOUNDS = {
    "l": "r", "c": "k", "q": "k", "ck": "k", "kh": "h", "gh": "g", "th": "s", "dh": "d", "ph": "f", "bh": "b"
}  # fmt: skip

HANGUL = 0xAC00
HANGUL_INITIALS = {
    "g": 0, "gh": 0, "n": 2, "d": 3, "dh": 3, "l": 5, "r": 5, "m": 6, "b": 7, "bh": 7, "v": 7, "s": 9, "sh": 9, "th": 9,
    "x": 9, "w": 11, "y": 11, "j": 12, "z": 12, "ch": 14, "c": 15, "ck": 15, "k": 15, "q": 15, "t": 16, "f": 17, "p": 17,
    "ph": 17, "h": 18, "kh": 18,
}  # fmt: skip
HANGUL_VOWELS = {"a": 0, "e": 5, "o": 8, "u": 13, "oo": 13, "ou": 13, "i": 20, "ee": 20, "y": 20}
HANGUL_FINALS = {"k": 1, "n": 4, "l": 8, "m": 16}
SILENT_INITIAL, BARE_VOWEL = 11, 18


def split_sounds(word: str) -> list[str]:
    """Split a word of small Latin letters into consonants and vowels."""
    return SOUNDS.findall(word.replace("qu", "kw"))


def replace_by_table(table: dict[str, str]) -> Callable[[str], str]:
    """Return a function that replaces the longest known letters first."""
    pattern = re.compile("|".join(sorted(table, key=len, reverse=True)))
    return lambda word: pattern.sub(lambda found: table[found.group()], word)


def to_indic(word: str, block: int) -> str:
    """Write a word in Bengali or Telugu."""
    written, after_consonant = "", False
    for sound in split_sounds(word.replace("x", "ks")):
        vowel = sound if sound in INDIC_SIGNS else ("i" if sound == "y" and after_consonant else "")
        if vowel:
            written += chr(block + (INDIC_SIGNS if after_consonant else INDIC_VOWELS)[vowel])
        else:
            if after_consonant:
                written += chr(block + VIRAMA)
            # Bengali has no v of its own.
            code = INDIC_CONSONANTS["bh"] if block == BENGALI and sound in ("v", "w") else INDIC_CONSONANTS[sound]
            written += chr(block + code)
        after_consonant = not vowel
    return written + (chr(block + VIRAMA) if after_consonant and block == TELUGU else "")


def to_katakana(word: str) -> str:
    """Write a word in katakana."""
    sounds = [JAPANESE_SOUNDS.get(sound, sound) for sound in split_sounds(word)]
    written, index = "", 0
    while index < len(sounds):
        consonant = "" if LONG_VOWELS.get(sounds[index], sounds[index]) in VOWELS else sounds[index]
        index += bool(consonant)
        vowel = LONG_VOWELS.get(sounds[index], sounds[index]) if index < len(sounds) else ""
        if vowel and vowel in VOWELS:
            written += KATAKANA[consonant].split()[VOWELS.index(vowel)] + ("ー" if sounds[index] in LONG_VOWELS else "")
            index += 1
        else:
            written += KATAKANA_FINALS[consonant]
    return written


def to_hangul(word: str) -> str:
    """Write a word in Hangul syllables."""
    sounds = split_sounds(word)
    written, index = "", 0
    while index < len(sounds):
        initial = SILENT_INITIAL
        if sounds[index] not in HANGUL_VOWELS:
            initial = HANGUL_INITIALS[sounds[index]]
            index += 1
        vowel = BARE_VOWEL
        if index < len(sounds) and sounds[index] in HANGUL_VOWELS:
            vowel = HANGUL_VOWELS[sounds[index]]
            index += 1
        final = 0
        closes = index < len(sounds) and sounds[index] in HANGUL_FINALS
        if closes and (index + 1 == len(sounds) or sounds[index + 1] not in HANGUL_VOWELS):
            final = HANGUL_FINALS[sounds[index]]
            index += 1
        written += chr(HANGUL + (initial * 21 + vowel) * 28 + final)
    return written


WRITERS: dict[str, Callable[[str], str]] = {
    "ar": replace_by_table(ARABIC),
    "bn": lambda word: to_indic(word, BENGALI),
    "fi": lambda word: word,
    "ja": to_katakana,
    "ko": to_hangul,
    "ru": replace_by_table(CYRILLIC),
    "te": lambda word: to_indic(word, TELUGU),
}


def transliterate(name: str, language: str) -> str:
    """Write a name in the script of a language; letters that are not Latin are dropped."""
    plain = unicodedata.normalize("NFKD", name.lower())
    words = (re.sub("[^a-z]", "", word) for word in re.split(r"[\s-]+", plain))
    return " ".join(WRITERS[language](word) for word in words if word)
