from __future__ import annotations

import pytest

from xqg_qdrant.errors import InputError
from xqg_qdrant.languages import LANGUAGES, is_written_in, parse_languages

SENTENCES = {
    "ar": ["من كتب رواية الحرب والسلام؟", "متى تأسست NASA عام 1958؟"],
    "bn": ["দানিউব নদী কোথা থেকে শুরু হয়?", "IBM কবে ১৯১১ সালে প্রতিষ্ঠিত হয়?"],
    "fi": ["Mistä Tonava alkaa?", "Missä maassa Пётр-niminen 1 kaupunki on?"],
    "ja": ["ドナウ川はどこから始まりますか?", "NASAは1958年に設立されましたか", "ﾄﾞﾅｳ川はどこ"],
    "ko": ["도나우강은 어디에서 시작되나요?", "NASA는 1958년에 설립되었습니까?"],
    "ru": ["Где начинается Дунай?", "В каком году основали NASA (1958)?"],
    "te": ["డాన్యూబ్ నది ఎక్కడ మొదలవుతుంది?", "NASA 1958 లో ఎక్కడ స్థాపించబడింది?"],
}
PAPER = tuple(SENTENCES)


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in SENTENCES.items() for text in texts])
def test_a_sentence_is_written_in_its_own_language_and_in_no_other_of_the_paper(code: str, text: str) -> None:
    assert [other for other in PAPER if is_written_in(text, other)] == [code]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ja", "多瑙河的源头在哪里?"),  # Chinese: Han alone
        ("zh", "도나우강은 어디에서 시작되나요?"),
        ("ru", "Where does the Danube begin?"),
        ("ru", "Who wrote Война?"),
        ("fi", "Где начинается Дунай?"),
        ("hi", "দানিউব নদী কোথা থেকে শুরু হয়?"),
        ("ar", "1958?!"),
        ("en", ""),
    ],
)
def test_a_text_in_another_script_or_without_letters_is_not_accepted(code: str, text: str) -> None:
    assert not is_written_in(text, code)


def test_han_is_chinese_and_half_of_the_letters_suffice() -> None:
    assert is_written_in("多瑙河的源头在哪里?", "zh")
    assert is_written_in("abcd эюяы", "ru")
    assert not is_written_in("abcde эюяы", "ru")


def test_every_language_has_a_name_and_a_script() -> None:
    assert all(language.name.istitle() and language.scripts for language in LANGUAGES.values())
    assert {language: LANGUAGES[language].name for language in PAPER} == {
        "ar": "Arabic", "bn": "Bengali", "fi": "Finnish", "ja": "Japanese", "ko": "Korean", "ru": "Russian",
        "te": "Telugu",
    }  # fmt: skip


def test_languages_are_read_in_the_order_given() -> None:
    assert parse_languages(" ru, ja ,", ("ja", "fi", "ru")) == ("ru", "ja")


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ("ru,xx", "unknown language 'xx'. Cure: choose from ja, fi, ru"),
        ("RU", "unknown language 'RU'"),
        ("ru,ja,ru", "the languages 'ru,ja,ru' name a language twice. Cure: name each once, such as ja,fi,ru"),
        (" , ", "the languages ' , ' name no language. Cure: name each once"),
    ],
)
def test_an_unusable_list_of_languages_is_refused_with_its_value(codes: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_languages(codes, ("ja", "fi", "ru"))
