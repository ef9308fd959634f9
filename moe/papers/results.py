"""What the models reach, and what they are: tables 10 to 12."""

from __future__ import annotations

from collections.abc import Iterator

from moe.papers.paper import READ, table
from trainlib.papers.exhibit import Exhibit


def results() -> Iterator[Exhibit]:
    """The exhibits of section 6."""
    yield table(
        10,
        "Fine-tuning of dense and sparse models of equal FLOPs, development splits",
        ("metric", "Dense-L", "ST-MoE-L", "gain"),
        """
        SQuADv2 F1           | F1      | 94.0 | 94.5 | +1%
        SQuADv2 acc          | acc     | 87.6 | 88.1 | +1%
        SuperGLUE            | avg     | 85.1 | 87.4 | +3%
        BoolQ                | acc     | 87.1 | 88.6 | +2%
        Copa                 | acc     | 83.0 | 91.0 | +10%
        RTE                  | acc     | 91.0 | 92.1 | +1%
        WiC                  | acc     | 70.4 | 74.0 | +5%
        MultiRC              | F1      | 83.9 | 86.0 | +3%
        WSC                  | acc     | 95.2 | 93.3 | -2%
        ReCoRD               | acc     | 85.7 | 88.9 | +4%
        CB                   | acc     | 100  | 98.2 | -2%
        XSum                 | ROUGE-2 | 19.9 | 21.8 | +10%
        CNN-DM               | ROUGE-2 | 20.3 | 20.7 | +2%
        WinoGrande (XL)      | acc     | 75.4 | 81.7 | +8%
        ANLI (R3)            | acc     | 54.3 | 57.3 | +6%
        ARC-Easy             | acc     | 63.5 | 75.4 | +19%
        ARC-Challenge        | acc     | 50.2 | 56.9 | +13%
        Closed Book TriviaQA | acc     | 28.1 | 33.8 | +20%
        Closed Book NatQA    | acc     | 27.2 | 29.5 | +8%
        Closed Book WebQA    | acc     | 30.5 | 33.2 | +9%
        """,
        reading="pre-trained for 500k steps of 1M tokens of C4; the acc of SQuADv2 is its exact "
        "match",
    )
    yield table(
        11,
        "Model comparisons",
        (
            *("parameters", "FLOPs/seq", "d_model", "GEGLU", "d_ff", "d_kv"),
            *("heads", "layers", "experts", "expert frequency", "sparse-dense"),
        ),
        """
        Dense-L    | 0.8B  | 645B  | 1024 | yes | 2816  | 64  | 16 | 27 | -    | -   | -
        T5-XXL     | 11.1B | 6.3T  | 4096 | yes | 10240 | 64  | 64 | 24 | -    | -   | -
        Switch-XXL | 395B  | 6.3T  | 4096 | yes | 10240 | 64  | 64 | 24 | 64   | 1/4 | -
        Switch-C   | 1571B | 890B  | 2080 | no  | 6144  | 64  | 32 | 15 | 2048 | 1   | -
        ST-MoE-L   | 4.1B  | 645B  | 1024 | yes | 2816  | 64  | 16 | 27 | 32   | 1/4 | yes
        ST-MoE-32B | 269B  | 20.2T | 5120 | yes | 20480 | 128 | 64 | 27 | 64   | 1/4 | yes
        """,
        origin=f"{READ}; heads, layers, experts and their frequency of Switch-C and of the ST-MoE "
        "models are remembered, and confirmed by counting parameters",
        reading=(
            "27 layers are 24 attention layers and 27 feed-forward layers a stack, 6 of them "
            "beside experts. 64 experts in every fourth layer do not give 395B: 128 in every "
            "second one do. No one formula gives all FLOPs"
        ),
    )
    yield table(
        12,
        "ST-MoE-32B and the previous best, by inference alone and fine-tuned",
        ("metric", "split", "zero-shot", "one-shot", "best fine-tuned", "ST-MoE-32B"),
        """
        SQuADv2 F1    | F1      | dev      | 68.3 | 70.0 | 96.2 | 96.3
        SQuADv2 acc   | acc     | dev      | 62.1 | 64.6 | 91.3 | 90.8
        SuperGLUE     | avg     | test     | -    | -    | 90.9 | 91.2
        BoolQ         | acc     | dev/test | 83.0 | 82.8 | 92.0 | 92.4
        Copa          | acc     | dev/test | 91.0 | 92.0 | 98.2 | 99.2
        RTE           | acc     | dev/test | 68.8 | 71.5 | 94.1 | 93.5
        WiC           | acc     | dev/test | 50.5 | 52.7 | 77.9 | 77.7
        MultiRC       | F1      | dev/test | 72.9 | 72.9 | 88.6 | 89.6
        WSC           | acc     | dev/test | 84.9 | 83.9 | 97.3 | 96.6
        ReCoRD        | acc     | dev/test | 90.3 | 90.8 | 96.4 | 95.1
        CB            | acc     | dev/test | 46.4 | 73.2 | 99.2 | 98.0
        XSum          | ROUGE-2 | test     | -    | -    | 24.6 | 27.1
        CNN-DM        | ROUGE-2 | test     | -    | -    | 21.6 | 21.7
        WinoGrande XL | acc     | dev      | 73.4 | 73.2 | -    | 96.1
        ANLI R3       | acc     | test     | 40.9 | 40.8 | 53.4 | 74.7
        ARC-Easy      | acc     | test     | 71.9 | 76.6 | 92.7 | 95.2
        ARC-Challenge | acc     | test     | 51.4 | 53.2 | 81.4 | 86.5
        CB TriviaQA   | em      | dev      | 68.0 | 74.8 | 61.6 | 62.3
        CB NatQA      | em      | test     | 21.5 | 23.9 | 41.5 | 41.9
        CB WebQA      | em      | test     | 38.0 | 25.3 | 42.8 | 47.4
        """,
        reading=(
            "dev/test is dev for zero- and one-shot and test for fine-tuning; these columns are of "
            "other models. The text says 93.2 for SuperGLUE's dev split, and 94.8 for ARC-Easy"
        ),
    )
