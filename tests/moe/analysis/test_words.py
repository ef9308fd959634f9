"""Lexical rules against words that were tagged by hand."""

import pytest

from moe.analysis import words
from moe.analysis.words import ARTICLE, FUNCTION, NAME, NUMBER, PUNCTUATION, VERB, VISUAL, WORD

SHORT = {"a": ARTICLE, "f": FUNCTION, "v": VERB, "s": VISUAL, "n": NAME, "#": NUMBER, "w": WORD}
# Tagged by hand before the rules were run on them: a story, a report, a manual.
TAGGED = """
The/a old/w man/w and/a his/f dog/w lived/v near/s the/a harbour/w of/f Lisbon/n. Every/f morning/w
he/f bought/v two/# loaves/w from/f Mrs/n Almeida/n and/a walked/v slowly/w along/f the/a white/s
wall/w. It/f was/v cold/w, but/a the/a light/s above/s the/a water/w was/v golden/s. "You/f should/v
stay/v here/f", she/f said/v once/#; he/f never/f answered/v.

In/f 1998/# the/a company/w sold/v 3.5/# million/# cars/w in/f Germany/n and/a France/n, a/a
third/# more/f than/a the/a year/w before/f. Its/f director/w, Anna/n Weber/n, expects/v that/a
sales/w will/v grow/v again/f because/a prices/w are/v falling/v. IBM/n did/v not/f comment/w.

If/a the/a file/w exists/v, the/a function/w returns/v its/f name/w; otherwise/f an/a error/w is/v
raised/v. The/a second/# argument/w may/v be/v left/s out/f. Modules/w that/a were/v imported/v
earlier/w are/v not/f executed/v twice/#, so/a that/a reading/v them/f is/v fast/w. Use/v it/f
with/f care/w and/a see/v below/s for/f the/a large/s table/w of/f options/w.
"""


def test_nine_words_in_ten_have_the_class_that_a_person_gave_them():
    pairs = [part.rpartition("/") for part in TAGGED.replace('"', "").split()]
    wanted = [(word, SHORT[tag[0]]) for word, _, tag in pairs]
    text = " ".join(word + tag[1:] for word, _, tag in pairs)
    parts = [(text[a:b], kind) for a, b, kind in words.split(text)]
    found = [(w, kind) for w, kind in parts if kind not in (words.SPACE, PUNCTUATION)]
    assert [word for word, _ in found] == [word for word, _ in wanted]
    right = sum(a == b for a, b in zip(found, wanted, strict=True))
    assert len(wanted) == 135
    assert right / len(wanted) >= 0.9, [
        pair for pair in zip(found, wanted, strict=True) if pair[0] != pair[1]
    ]


@pytest.mark.parametrize(
    "text",
    ["", "a", "  \n", "don\u2019t stop", "x_1 = 3,14e5", "日本語 text", "\ud800\udcff é\u0301"],
)
def test_parts_cover_the_text(text):
    parts = words.split(text)
    assert "".join(text[a:b] for a, b, _ in parts) == text
    assert all(kind in words.CLASSES for _, _, kind in parts)


def test_a_capital_letter_says_nothing_at_the_beginning():
    assert words.class_of("Trains", begins=True) == WORD
    assert words.class_of("Trains") == NAME
    assert words.class_of("HTML", begins=True) == NAME
    assert [words.script(letter) for letter in "aЖ語1"] == ["latin", "cyrillic", "cjk", ""]
