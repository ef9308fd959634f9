"""Records in the form in which each benchmark is published, with the texts that T5 makes of them.

Expected inputs and targets are written out by hand from the formats of T5 (arXiv 1910.10683,
appendix D) and of its closed-book work (2002.08910).
"""

from __future__ import annotations

import hashlib
import json

import numpy as np


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


ENTITIES = "Ann met Bo in Rome.\n@highlight\nBo was late"
MULTIRC = {
    "idx": 3,
    "version": 1.1,
    "passage": {
        "text": "<b>Sent 1: </b>Al left.<br><b>Sent 2: </b>Bea stayed.<br>",
        "questions": [
            {
                "question": "Who left?",
                "idx": 5,
                "answers": [
                    {"text": "Al", "idx": 8, "label": 1},
                    {"text": "Bea", "idx": 9, "label": 0},
                ],
            }
        ],
    },
}
RECORD = {
    "source": "x",
    "idx": 2,
    "passage": {
        "text": ENTITIES,
        # `end` is the last character: Ann, Bo, Rome, Bo again.
        "entities": [
            {"start": 0, "end": 2},
            {"start": 8, "end": 9},
            {"start": 14, "end": 17},
            {"start": 31, "end": 32},
        ],
    },
    "qas": [
        {
            "idx": 7,
            "query": "@placeholder missed the train.",
            "answers": [
                {"start": 8, "end": 9, "text": "Bo"},
                {"start": 31, "end": 32, "text": "Bo"},
            ],
        }
    ],
}
WSC = {
    "text": "Mark told Pete many lies about himself , which Pete included in his book .",
    "target": {"span1_index": 0, "span1_text": "mark", "span2_index": 12, "span2_text": "his"},
    "idx": 4,
    "label": True,
}
SQUAD = {
    "title": "T",
    "paragraphs": [
        {
            "context": "The mill_wheel (1712) burned; café Zoé's gone.",
            "qas": [
                {"id": "q1", "question": "When?", "answers": [{"text": "1712", "answer_start": 10}]}
            ],
        }
    ],
}
NO_ANSWER = {
    "title": "T",
    "paragraphs": [
        {
            "context": "The mill burned.",
            "qas": [
                {
                    "id": "q2",
                    "question": "Who saw it?",
                    "is_impossible": True,
                    "answers": [],
                    "plausible_answers": [{"text": "nobody", "answer_start": 0}],
                }
            ],
        }
    ],
}
TARGET = '(list (description "A b") (description C))'
URL = "http://x/1"
STORY = f"cnn/stories/{hashlib.sha1(URL.encode()).hexdigest()}.story"

M2 = """S He go to a school .
A 1 2|||R:VERB:SVA|||goes|||REQUIRED|||-NONE-|||0
A 3 4|||U:DET||||||REQUIRED|||-NONE-|||0

S All good .
A -1 -1|||noop|||-NONE-|||REQUIRED|||-NONE-|||0
"""

# task -> files, inputs and targets of the first examples.
GOLDEN = {
    "boolq": (
        {
            "BoolQ/train.jsonl": jsonl(
                {"question": "is it", "passage": "P -- p.", "idx": 0, "label": True}
            )
        },
        [("boolq passage: P -- p. question: is it", ("True",))],
    ),
    "cb": (
        {
            "CB/train.jsonl": jsonl(
                {"premise": "A.", "hypothesis": "b", "idx": 0, "label": "neutral"}
            )
        },
        [("cb hypothesis: b premise: A.", ("neutral",))],
    ),
    "copa": (
        {
            "COPA/train.jsonl": jsonl(
                {
                    "premise": "P.",
                    "choice1": "X.",
                    "choice2": "Y.",
                    "question": "cause",
                    "idx": 0,
                    "label": 1,
                }
            )
        },
        [("copa choice1: X. choice2: Y. premise: P. question: cause", ("choice2",))],
    ),
    "multirc": (
        {"MultiRC/train.jsonl": jsonl(MULTIRC)},
        [
            (
                "multirc question: Who left? answer: Al paragraph: "
                "Sent 1: Al left. Sent 2: Bea stayed. ",
                ("True",),
            ),
            (
                "multirc question: Who left? answer: Bea paragraph: "
                "Sent 1: Al left. Sent 2: Bea stayed. ",
                ("False",),
            ),
        ],
    ),
    "record": (
        {"ReCoRD/train.jsonl": jsonl(RECORD)},
        [
            (
                "record query: @placeholder missed the train. entities: Ann, Bo, Rome passage: "
                "Ann met Bo in Rome. Bo was late",
                ("Bo",),
            )
        ],
    ),
    "rte": (
        {
            "RTE/train.jsonl": jsonl(
                {"premise": "A.", "hypothesis": "B.", "idx": 0, "label": "not_entailment"}
            )
        },
        [("rte hypothesis: B. premise: A.", ("not_entailment",))],
    ),
    "wic": (
        {
            "WiC/train.jsonl": jsonl(
                {
                    "word": "bank",
                    "sentence1": "A bank.",
                    "sentence2": "Two banks.",
                    "idx": 0,
                    "label": False,
                    "start1": 2,
                    "end1": 6,
                    "start2": 4,
                    "end2": 9,
                    "version": 1.1,
                }
            )
        },
        [("wic sentence1: A bank. sentence2: Two banks. word: bank", ("False",))],
    ),
    "wsc": (
        {"WSC/train.jsonl": jsonl(WSC)},
        [
            (
                "wsc: Mark told Pete many lies about himself , which Pete included in *his* book .",
                ("Mark",),
            )
        ],
    ),
    "dpr": (
        {"DPR/train.c.txt": "Bob asked Tom if he can lend some money.\nhe\nBob,Tom\nTom\n\n"},
        [("wsc: Bob asked Tom if *he* can lend some money.", ("Tom",))],
    ),
    "squad_v1": (
        {"SQuAD/train-v1.1.json": json.dumps({"data": [SQUAD]})},
        [
            (
                "question: When ? context: The mill _ wheel ( 1712 ) burned ; café Zoé ' s gone . ",
                ("1712",),
            )
        ],
    ),
    "squad_v2": (
        {"SQuAD/train-v2.0.json": json.dumps({"data": [NO_ANSWER]})},
        [("question: Who saw it ? context: The mill burned . ", ("unanswerable",))],
    ),
    "trivia_qa": (
        {
            "triviaqa-unfiltered/unfiltered-web-train.json": json.dumps(
                {
                    "Data": [
                        {
                            "Question": "Which? ",
                            "QuestionId": "t1",
                            "Answer": {"Value": "Yes", "Aliases": ["Yes", "Aye "]},
                        }
                    ]
                }
            )
        },
        [("trivia_qa question: Which?", ("Yes",))],
    ),
    "natural_questions": (
        {"nq_open/NQ-open.train.jsonl": jsonl({"question": "who", "answer": ["A", "B"]})},
        [("nq question: who", ("A",))],
    ),
    "web_questions": (
        {
            "WebQuestions/webquestions.examples.train.json": json.dumps(
                [{"url": "", "utterance": "what", "targetValue": TARGET}]
            )
        },
        [("wq question: what", ("A b",))],
    ),
    "arc_easy": (
        {
            "ARC-Easy/ARC-Easy-Train.jsonl": jsonl(
                {
                    "id": "a",
                    "answerKey": "2",
                    "question": {
                        "stem": "Why?",
                        "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}],
                    },
                }
            )
        },
        [("arc_easy question: Why? choices: (A) x (B) y", ("B",))],
    ),
    "winogrande": (
        {
            "winogrande_1.1/train_xl.jsonl": jsonl(
                {"qID": "q", "sentence": "A _ b.", "option1": "x", "option2": "y", "answer": "2"}
            )
        },
        [("winogrande option1: x option2: y sentence: A _ b.", ("option2",))],
    ),
    "anli_r3": (
        {
            "anli_v1.0/R3/train.jsonl": jsonl(
                {"uid": "u", "context": "C.", "hypothesis": "H.", "label": "c"}
            )
        },
        [("anli_r3 hypothesis: H. premise: C.", ("contradiction",))],
    ),
    "xsum": (
        {
            "xsum/XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json": json.dumps({"train": ["1", "gone"]}),
            "xsum/xsum-extracts-from-downloads/1.data": (
                "[XSUM]URL[XSUM]\nhttp://x\n\n[XSUM]INTRODUCTION[XSUM]\nShort.\n\n"
                "[XSUM]RESTBODY[XSUM]\nShare this with\nOne.\n\nTwo.\n"
                "These are external links and will open in a new window\n"
            ),
        },
        [("summarize: One.\nTwo.", ("Short.",))],
    ),
    "cnn_dailymail": (
        {
            "cnn_dailymail/all_train.txt": URL + "\n",
            f"cnn_dailymail/{STORY}": "One line\n\nTwo.\n\n@highlight\n\nFirst\n\n"
            "@highlight\n\nSecond!\n",
        },
        [("summarize: One line. Two.", ("First.\nSecond!",))],
    ),
    "bea2019": (
        {"wi+locness/m2/ABC.train.gold.bea19.m2": M2},
        [
            ("grammar: He go to a school .", ("He goes to school .",)),
            ("grammar: All good .", ("All good .",)),
        ],
    ),
    "c4_200m": (
        {"C4_200M/sentence_pairs.tsv": "He go.\tHe goes.\n"},
        [("grammar: He go.", ("He goes.",))],
    ),
}

# The same as TFDS yields them: bytes and NumPy numbers.
TFDS = {
    "boolq": {
        "question": b"is it",
        "passage": b"P -- p.",
        "idx": np.int32(0),
        "label": np.int64(1),
    },
    "multirc": {
        "question": b"Who left?",
        "answer": b"Al",
        "label": np.int64(1),
        "paragraph": b"<b>Sent 1: </b>Al left.<br><b>Sent 2: </b>Bea stayed.<br>",
        "idx": {"paragraph": np.int32(3), "question": np.int32(5), "answer": np.int32(8)},
    },
    "record": {
        "passage": ENTITIES.encode(),
        "query": b"@placeholder missed the train.",
        "entities": np.asarray([b"Ann", b"Bo", b"Rome"], object),
        "answers": np.asarray([b"Bo"], object),
        "idx": {"passage": np.int32(2), "query": np.int32(7)},
    },
    "wsc": {
        "text": WSC["text"].encode(),
        "span1_text": b"Mark",
        "span1_index": np.int32(0),
        "span2_text": b"his",
        "span2_index": np.int32(12),
        "idx": np.int32(4),
        "label": np.int64(1),
    },
    "squad_v1": {
        "id": b"q1",
        "title": b"T",
        "context": "The mill_wheel (1712) burned; café Zoé's gone.".encode(),
        "question": b"When?",
        "answers": {"text": np.asarray([b"1712"], object), "answer_start": np.asarray([10])},
    },
    "web_questions": {
        "url": b"",
        "question": b"what",
        "answers": np.asarray([b"A b", b"C"], object),
    },
    "arc_easy": {
        "id": b"a",
        "question": b"Why?",
        "answerKey": np.int64(1),
        "choices": {"text": np.asarray([b"x", b"y"], object), "label": np.asarray([0, 1])},
    },
}
