from __future__ import annotations

import pytest

from xqg_qdrant.augmentation.calibration import read_bank
from xqg_qdrant.errors import InputError
from xqg_qdrant.languages import (
    LANGUAGES,
    can_identify,
    close_languages,
    identify,
    is_surely_not,
    is_written_in,
    language_name,
    parse_languages,
    standard_code,
)

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
    assert parse_languages("gsw,pt-BR,ja", ()) == ("gsw", "pt-BR", "ja")
    for unknown in ("xx", "qqq"):
        with pytest.raises(InputError, match="is no language"):
            parse_languages(unknown, ())


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


@pytest.mark.parametrize(
    ("named", "code"),
    [
        ("FI", "fi"),
        ("fi-FI", "fi"),
        ("Finnish", "fi"),
        (" swa", "sw"),
        ("zh-Hant-TW", "zh"),
        ("nb", "no"),
        ("tlh", "tlh"),
    ],
)
def test_other_ways_to_name_a_language_mean_its_code(named: str, code: str) -> None:
    assert standard_code(named) == code


def test_any_code_of_bcp_47_has_an_english_name() -> None:
    named = {code: language_name(code) for code in ("fi", "bem", "pt-BR", "sr-Latn", "haw", "yue")}
    assert named == {
        "fi": "Finnish", "bem": "Bemba", "pt-BR": "Portuguese (Brazil)", "sr-Latn": "Serbian (Latin)",
        "haw": "Hawaiian", "yue": "Cantonese",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"'qqqq' is no language\. Cure: use a code of BCP 47"):
        language_name("qqqq")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("What is the length of the Danube?", "fi"),
        ("¿Dónde nace el Danubio?", "fi"),
        ("Какова длина Дуная?", "uk"),
        ("Where does the Danube rise?", "de"),
        ("Who wrote the first dictionary of the language?", "bem"),  # of which the identifier knows nothing
        ("متى بنيت مدينة القاهرة القديمة؟", "fa"),
    ],
)
def test_a_question_in_another_language_surely_is_not_in_this_one(text: str, code: str) -> None:
    assert is_surely_not(text, code)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Donau Länge?", "de"),
        ("Wo liegt Ulm?", "de"),
        ("Яка довжина Дунаю?", "uk"),
        ("Какова длина реки?", "ru"),
        ("Кто написал книгу?", "ru"),
        ("¿Quién canta when i look into your eyes?", "es"),
        ('Kuka lauloi "We don\'t need no education"?', "fi"),
        ("谁唱的to make you feel my love", "zh"),
        ("Bushe abantu abekala mu Brazil banga?", "bem"),
        ("1958?", "fi"),
        ("NASA 1958", "fi"),
        ("", "fi"),
    ],
)
def test_short_questions_names_and_foreign_titles_are_no_proof_of_another_language(text: str, code: str) -> None:
    assert not is_surely_not(text, code)


def test_no_question_of_the_bank_is_said_to_be_in_another_language() -> None:
    bank = read_bank().questions
    assert {
        (code, text) for code, texts in bank.items() for text in texts if is_surely_not(text, standard_code(code))
    } == set()


def test_questions_of_the_bank_are_kept_out_of_other_languages_but_not_of_close_ones() -> None:
    bank = read_bank().questions
    rejected = [
        is_surely_not(text, other) for text in bank["en"] for other in ("de", "fi", "fr", "id", "sv", "tr", "vi")
    ]
    assert sum(rejected) / len(rejected) >= 0.95
    for code, other in (("id", "ms"), ("ms", "id"), ("no", "da"), ("da", "no"), ("cs", "sk"), ("es", "pt")):
        assert other in close_languages(code)
        assert not any(is_surely_not(text, other) for text in bank[code])


def test_the_language_of_most_questions_is_identified_and_few_wrongly() -> None:
    bank = read_bank().questions
    known = {code: texts for code, texts in bank.items() if code not in ("bem", "twi")}
    found = {code: identify(texts, bank) for code, texts in known.items()}
    number = sum(map(len, found.values()))
    right = sum(names.count(code) for code, names in found.items())
    near = {
        code: {name for name in bank if standard_code(name) in close_languages(standard_code(code))} for code in found
    }
    wrong = sum(name is not None and name not in near[code] for code, names in found.items() for name in names)
    assert right / number > 0.93
    assert wrong / number < 0.005


def test_a_language_is_named_as_in_the_choice_and_unsure_texts_have_none() -> None:
    assert identify(["Mto Danube unaanzia wapi nchini Ujerumani?"], ["swa", "fi"]) == ["swa"]
    assert identify(["Missä maassa Tonava alkaa?", "1958?", "", "NASA", "Danube"]) == ["fi", None, None, None, None]
    assert identify(["Missä maassa Tonava alkaa?"], ["en", "de"]) == [None]
    assert can_identify()
