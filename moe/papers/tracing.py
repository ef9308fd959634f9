"""Where tokens go: tables 13 to 15."""

from __future__ import annotations

from collections.abc import Iterator

from moe.papers.paper import table
from trainlib.papers.exhibit import Exhibit

_TOKENS = "the routed tokens themselves, pages of words, are not copied"


def tracing() -> Iterator[Exhibit]:
    """The exhibits of section 7."""
    yield table(
        13,
        "Notable examples of specialization in encoder experts",
        ("layers of the encoder",),
        """
        Sentinel tokens                                  | 1, 4, 6
        Punctuation                                      | 2, 6
        Conjunctions and articles                        | 3, 6
        Verbs                                            | 1
        Visual descriptions, color, spatial position     | 0
        Proper names                                     | 1
        Counting and numbers, written and numerical forms | 1
        """,
        reading="layers are numbered from 0 and from 1 in one column",
        absent=_TOKENS,
    )
    yield table(
        14,
        "Entropy of routed sentinel tokens by layer, nats",
        (*(f"layer {number}" for number in range(1, 7)), "uniform"),
        """
        Encoder | 2.2 | 1.8 | 1.6 | 1.7 | 1.7 | 1.2 | 3.5
        Decoder | 3.4 | 3.4 | 3.4 | 3.4 | 3.4 | 3.4 | 3.5
        """,
        reading="uniform over 32 experts is ln 32 = 3.466",
    )
    yield table(
        15,
        "Examples of specialization in multilingual experts of the encoder",
        (),
        """
        Sentinel tokens
        Numbers
        Conjunctions & Articles
        Prepositions & Conjunctions
        Proper names
        """,
        reading="the caption says that experts do not specialise in a language",
        absent=_TOKENS,
    )
