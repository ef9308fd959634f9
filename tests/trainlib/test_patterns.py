"""Patterns of configurations: found where Python's own search finds them, in steps that are few."""

import random
import re
import warnings

import pytest

from trainlib import patterns
from trainlib.errors import ConfigError
from trainlib.keys import Unfit

ATOMS = [
    *("a", "b", ".", "[ab]", "[^a]", r"\.", r"\w", r"\d", "^", "$", r"\b", r"\B", r"\A", r"\Z"),
    *("(?!b)", "(?=a)", "(?<=a)", "(?<!ab)", "(?:a|b|)", "()", "[a-c1]"),
]
REPEATS = ("*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?")


def drawn(draw: random.Random, depth: int) -> str:
    kind = draw.randrange(6) if depth else 0
    if kind < 2:
        return draw.choice(ATOMS)
    inner = drawn(draw, depth - 1)
    if kind == 2:
        return inner + drawn(draw, depth - 1)
    if kind == 3:
        return f"(?:{inner}|{drawn(draw, depth - 1)})"
    if kind == 4:
        return f"(?:{inner}){draw.choice(REPEATS)}"
    return f"{draw.choice(('(?!', '(?=', '('))}{inner})"


def found(pattern: str, name: str) -> bool:
    return patterns.Pattern(pattern).matches(name, [10**6])


def test_what_is_found_is_what_python_finds():
    draw, tried = random.Random(0), 0
    warnings.simplefilter("ignore")
    while tried < 4_000:
        pattern = draw.choice(("", "", "(?i)", "(?s)", "(?m)")) + drawn(draw, 4)
        names = ["".join(draw.choices("aAb.\n1", k=draw.randrange(8))) for _ in range(4)]
        made = patterns.Pattern(pattern)
        for name in names:
            tried += 1
            expected = re.search(pattern, name) is not None
            assert made.matches(name, [10**6]) == expected, (pattern, name)


@pytest.mark.parametrize(
    "pattern",
    [
        *("(a+)+$", "(a|a)*b", "(a|aa)+$", "(a*)*b", "(.*a){20}x", "(a?){30}a{30}b"),
        *("^(?!(a+)+$)(a|a)*b", "(?=(a+)+$)b", "((a*)*)*b", "a*a*a*a*a*a*a*a*b", r"(\w+\.?)+$x"),
    ],
)
def test_no_pattern_stretches_the_search(pattern):
    """Each takes Python's own search more steps than there is time."""
    left = [patterns.BUDGET]
    assert not patterns.Pattern(pattern).matches("a" * 100 + "!", left)
    assert patterns.BUDGET - left[0] < 100_000


def test_what_costs_too_much_all_together_is_refused():
    names = [f"{'ab' * 100}{n}" for n in range(300)]
    dear = "(a|b|ab|ba|aba|bab){30,}c"
    with pytest.raises(ConfigError, match=r"init_new: the pattern .* too many steps"):
        patterns.matching("init_new", dear, names, [100_000])
    assert patterns.matching("init_new", "ab1$", names, [100_000]) == {names[1]}


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "not a regular expression"),
        ("a{1,2}{3}", "not a regular expression"),
        ("(?<=a+)b", "not a regular expression"),
        ("(a{1000}){1000}", "too large"),
        ("((a{90}){90}){90}", "too large"),
        (r"(a)\1", "reference to a group"),
        (r"(a)?(?(1)b|c)", "condition on a group"),
        ("(?>a+)b", "atomic group"),
        ("a++b", "possessive"),
        ("(?i:a)b*", "flags for a part"),
        ("a" * 501, "501 characters"),
        ("(" * 400, "not a regular expression"),
        ("(" * 200 + "a*" + ")" * 200, ""),
        ("", "empty"),
    ],
)
def test_what_is_not_searched_is_refused_with_its_reason(pattern, reason):
    if not reason:
        assert patterns.pattern().take(pattern) == pattern
        return
    with pytest.raises(Unfit, match=reason):
        patterns.pattern().take(pattern)


def test_patterns_of_the_shipped_configurations_are_searched():
    decayed = r"^(?!.*norm)"
    names = ["stem.conv.kernel", "stem.norm.scale", "norm", "head.bias"]
    assert patterns.matching("x", decayed, names, [10**6]) == {names[0], names[3]}
    assert patterns.matching("x", r"(^|\.)kernel$", names, [10**6]) == {names[0]}
    assert found("(?i)NORM", "stem.norm")
    assert found(r"conv[2-4]_x\.\d+\.", "conv3_x.11.kernel")
