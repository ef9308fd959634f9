"""Classes of words by lexical rules, for tables 13 and 14 of ST-MoE (arXiv 2202.08906).

These are rules and short lists of English words, no tagger: a word has one class whatever it means
in its sentence ("light" is a visual word and never a verb). In order: what is no letter; numbers;
the closed lists; capital letters inside of a sentence; endings. Words of other languages are names
by their capitals, and else "word". On 135 words that were tagged by hand, `tests/moe/analysis` asks
for nine in ten.
"""

from __future__ import annotations

import functools
import re
import unicodedata

SENTINEL, START, END, UNKNOWN = "sentinel", "start", "end", "unknown"
SPACE, PUNCTUATION, NUMBER = "space", "punctuation", "number"
ARTICLE, FUNCTION = "article or conjunction", "preposition or pronoun"
VERB, VISUAL, NAME, WORD = "verb", "visual word", "name", "other word"

CLASSES = (
    *(SENTINEL, START, END, UNKNOWN, SPACE, PUNCTUATION, NUMBER),
    *(ARTICLE, FUNCTION, VERB, VISUAL, NAME, WORD),
)
MEANING = {
    SENTINEL: "stands for a span that is hidden",
    START: "the first input of a decoder",
    END: "end of a sequence",
    UNKNOWN: "what the vocabulary has no piece for",
    SPACE: "blanks and line ends",
    PUNCTUATION: "every sign that is no letter, digit or blank",
    NUMBER: "digits and numerals: 12, 3.5, two, third, dozen",
    ARTICLE: "a, the, and, or, because, if, while",
    FUNCTION: "of, in, with; it, they, which; not, very",
    VERB: "auxiliary and common verbs and their forms, and the endings -ing, -ed, -ify, -ize",
    VISUAL: "colours, sizes, shapes, directions and what is seen: red, over, left, light",
    NAME: "capital letters inside of a sentence, or throughout: London, HTML",
    WORD: "everything else",
}


def _list(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NUMERALS = _list(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty
    ninety hundred hundreds thousand thousands million millions billion billions dozen dozens
    once twice first second third fourth fifth sixth seventh eighth ninth tenth half quarter"""
)
_ARTICLES = _list(
    """a an the and or but nor yet so because if unless until while whereas although though since as
    than whether that both either neither"""
)
_FUNCTION = _list(
    """of in on at by along before after around across beyond for with from to into onto upon
    about against among between during without within through throughout toward towards via per
    except despite like unlike i me my mine myself you your yours yourself he him his himself
    she her hers herself it its itself we us our ours ourselves they them their theirs
    themselves this these those who whom whose which what where when why how there here all any
    each every some no none not never always only also just very too more most less least much
    many few other others another such same own else ever even still again now then thus hence
    however therefore otherwise instead rather quite almost often sometimes usually perhaps
    maybe something anything nothing everything someone anyone everyone nobody off out up"""
)
_VISUAL = _list(
    """red green blue yellow black white brown grey gray orange purple pink golden silver dark
    light bright pale colour color colours colors shade shadow above below over under beside
    behind beneath underneath near far left right top bottom front back side inside outside
    north south east west upper lower middle centre center edge corner big small large little
    tall short long wide narrow thick thin deep high low tiny huge flat round square circle
    line curve shape sharp tiny smooth rough eye eyes face image picture view sight scene
    window mirror screen photo photograph"""
)
_AUXILIARIES = _list(
    """am is are was were be been being have has had having do does did done doing can could may
    might must shall should will would cannot isn't aren't wasn't weren't don't doesn't didn't
    won't can't couldn't shouldn't wouldn't hasn't haven't hadn't it's that's let's"""
)
_REGULAR = _list(
    """accept act add agree allow appear apply ask assign assume base begin believe belong call
    carry cause change check choose combine compare compile complete compute consider consist
    contain continue convert cover create cry decide declare define delete depend describe
    determine die discuss divide draw enter evaluate exist expect explain fail fill finish
    follow happen help hope ignore implement import include increase indicate inherit invoke
    join jump kill last lead learn let listen live look love mean mention modify move need
    occur offer open pass perform pick play prevent print produce provide pull push raise reach
    receive refer remain remove repeat replace reply represent require return say search seem
    serve share show sit sort start stay stop store suggest support suppose talk tend test
    thank travel treat try turn use visit wait walk want warn watch wish wonder work worry
    yield"""
)
_IRREGULAR = _list(
    """become becomes became bring brings brought build builds built buy buys bought catch
    catches caught come comes came cut cuts drink drinks drank drive drives drove driven eat
    eats ate eaten fall falls fell fallen feel feels felt fight fights fought find finds found
    fly flies flew flown forget forgets forgot get gets got give gives gave given go goes went
    gone grow grows grew grown hear hears heard hit hits hold holds held keep keeps kept know
    knows knew known lay lays laid leave leaves lie lies lose loses lost make makes made meet
    meets met pay pays paid put puts read reads run runs ran see sees saw seen sell sells sold
    send sends sent set sets sang sing sings slept sleep sleeps speak speaks spoke spoken spend
    spends spent stand stands stood swim swam take takes took taken teach teaches taught tell
    tells told think thinks thought throw throws threw understand understands understood wear
    wears wore win wins won write writes wrote written began begun chose chosen drew drawn led
    meant said sat showed shown"""
)
_VERBS = _AUXILIARIES | _REGULAR | _IRREGULAR
_NO_VERBS = _list(
    """thing things string strings spring ring king wing morning evening nothing something anything
    everything during hundred red bed need speed seed feed indeed sacred naked wicked ceiling
    being building meaning pudding wedding"""
)
_ENDINGS = ("ing", "ed", "ify", "ifies", "ize", "izes", "ise", "ises")
_SHORTEST = 5  # letters from which on an ending makes a verb

_TOKEN = re.compile(r"\s+|\d+(?:[.,]\d+)*(?!\w)|[^\W_]+(?:['\u2019][^\W_]+)*|.", re.DOTALL)
_STOPS = frozenset('.!?:;"([{\u201c\u2022*-')


def split(text: str) -> list[tuple[int, int, str]]:
    """Cuts a text into words, numbers, blanks and single signs.

    Returns:
      (start, stop, class) of each, in letters; together they cover the text.
    """
    parts, begins = [], True
    for match in _TOKEN.finditer(text):
        word = match.group()
        kind = class_of(word, begins)
        parts.append((match.start(), match.end(), kind))
        begins = begins or "\n" in word if kind == SPACE else word[-1] in _STOPS
    return parts


@functools.lru_cache(maxsize=1 << 16)
def class_of(word: str, begins: bool = False) -> str:
    """The class of one word, sign or run of blanks.

    Args:
      word: as `split` cuts it.
      begins: whether it begins a sentence, so that a capital letter says nothing.
    """
    if word.isspace():
        return SPACE
    if not any(letter.isalnum() for letter in word):
        return PUNCTUATION
    lower = word.lower().replace("\u2019", "'")
    if word[0].isdigit() or lower in _NUMERALS:
        return NUMBER
    for words, kind in ((_ARTICLES, ARTICLE), (_FUNCTION, FUNCTION), (_VISUAL, VISUAL)):
        if lower in words:
            return kind
    if word != lower and (not begins or (len(word) > 1 and word.isupper())):
        return NAME
    return VERB if _is_verb(lower) else WORD


def _is_verb(word: str) -> bool:
    if word in _VERBS:
        return True
    if word in _NO_VERBS:
        return False
    stems = {word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y"}
    if stems & _REGULAR:
        return True
    return len(word) >= _SHORTEST and word.endswith(_ENDINGS)


@functools.lru_cache(maxsize=1 << 14)
def script(letter: str) -> str:
    """The script of a letter, such as "latin" or "cyrillic"; "" of what is no letter."""
    if not letter.isalpha():
        return ""
    return unicodedata.name(letter, "other").split()[0].split("-")[0].lower()
