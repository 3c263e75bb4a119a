"""Text → words, in any script, the same on every machine.

Knows letters and case. Knows no language: where words are written together, a run of letters is one word.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache

# Zero-width joiners change how letters look, not which word they make.
JOINERS = str.maketrans("", "", "\u200c\u200d\u00ad")


def split_words(text: str) -> list[str]:
    """Return the words of a text in their order: runs of letters, digits and their marks, without case.

    >>> split_words("Ｔhe Nile's SOURCE, 1858")
    ['the', 'nile', 's', 'source', '1858']
    """
    return _word().findall(unicodedata.normalize("NFKC", text).casefold().translate(JOINERS))


@cache
def _word() -> re.Pattern[str]:
    # Python's \w leaves out the marks that are the vowels of many scripts.
    marks = (char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char)[0] == "M")
    return re.compile(rf"[^\W_](?:[^\W_]|[{''.join(marks)}])*")
