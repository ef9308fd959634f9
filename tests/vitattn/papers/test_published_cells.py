"""Every cell of the tables of both papers on vision against a second copy."""

import pytest

from vitattn import papers

TABLES = {(exhibit.paper.name, exhibit.name): exhibit for exhibit in papers.exhibits()}


def cells(paper, name):
    return {label: list(row) for label, row in TABLES[paper, name].rows}


def lines(text):
    """Label, two blanks, cells."""
    rows = [line.split("  ", 1) for line in text.strip().splitlines()]
    return {label: row.split() for label, row in rows}


def test_all_tables_and_figures_are_there():
    def numbers(paper, kind):
        return [e.number for e in papers.exhibits() if (e.paper.name, e.kind) == (paper, kind)]

    assert numbers("aa", "table") == list(range(1, 9))
    assert numbers("aa", "figure") == list(range(1, 5))
    assert numbers("sasa", "table") == list(range(1, 8))
    assert numbers("sasa", "figure") == list(range(1, 6))
    assert all(bool(e.rows) == (e.kind == "table") for e in papers.exhibits())


AUGMENTED = {
    # parameters, GFLOP, top-1, top-5
    "table 1": """
WRN-28-10  36.3 10.4 80.3 95.0
GE-WRN-28-10  36.3 10.4 79.8 95.0
SE-WRN-28-10  36.5 10.4 81.0 95.3
AA-WRN-28-10  36.2 10.9 81.6 95.2
""",
    # parameters, GFLOP, top-1, latency of inference and training
    "table 2": """
ResNet-50  25.6 8.2 76.4 - -
SE-ResNet-50  28.1 8.2 77.5 +12% +92% 77.0
BAM-ResNet-50  25.9 8.3 77.3 +19% +43%
CBAM-ResNet-50  28.1 8.2 77.4 +56% +132% 77.4
GALA-ResNet-50  29.4 8.6 77.5 +86% +133% 77.3
AA-ResNet-50, kappa = upsilon = 0.25  24.3 7.9 77.7 +29% +25%
""",
    "table 3": """
ResNet-34  21.8 7.4 73.6 91.5
SE-ResNet-34  22.0 7.4 74.3 91.8
AA-ResNet-34  20.7 7.1 74.7 92.0
ResNet-50  25.6 8.2 76.4 93.1
SE-ResNet-50  28.1 8.2 77.5 93.7
AA-ResNet-50  25.8 8.3 77.7 93.8
ResNet-101  44.5 15.6 77.9 94.0
SE-ResNet-101  49.3 15.6 78.4 94.2
AA-ResNet-101  45.4 16.1 78.7 94.4
ResNet-152  60.2 23.0 78.4 94.2
SE-ResNet-152  66.8 23.1 78.9 94.5
AA-ResNet-152  61.6 23.8 79.1 94.6
""",
    "table 4": """
MnasNet-A1 x0.75  2.91 0.45 73.3 91.3
AA-MnasNet-A1 x0.75  3.02 0.51 73.9 91.6
MnasNet-A1 x1.0  3.89 0.63 75.2 92.4
AA-MnasNet-A1 x1.0  4.06 0.70 75.7 92.6
MnasNet-A1 x1.25  5.26 1.01 76.7 93.2
AA-MnasNet-A1 x1.25  5.53 1.11 77.2 93.6
MnasNet-A1 x1.4  6.10 1.17 77.2 93.5
AA-MnasNet-A1 x1.4  6.44 1.29 77.7 93.8
""",
    # parameters, GFLOP, AP, AP50, AP75
    "table 5": """
RetinaNet-50  33.4 182 36.8 54.5 39.5
SE-RetinaNet-50  35.9 183 36.5 54.0 39.1
AA-RetinaNet-50  33.1 182 38.2 56.5 40.7
RetinaNet-101  52.4 243 38.5 56.4 41.2
SE-RetinaNet-101  57.2 243 37.4 55.0 39.9
AA-RetinaNet-101  51.7 245 39.2 57.8 41.9
""",
    "table 6": """
ResNet-50  25.6 8.2 76.4 93.1
AA-ResNet-50, kappa = upsilon = 0.25  24.3 7.9 77.7 93.8
AA-ResNet-50, kappa = upsilon = 0.5  22.3 7.3 77.3 93.6
AA-ResNet-50, kappa = upsilon = 0.75  20.7 6.8 76.7 93.2
AA-ResNet-50, kappa = upsilon = 1.0  19.4 6.3 74.8 92.0
""",
    "table 7": """
AA-ResNet-50, position none  77.5 93.7
AA-ResNet-50, position sine  77.5 93.7
AA-ResNet-50, position coord  77.5 93.8
AA-ResNet-50, position relative  77.7 93.8
""",
    "table 8": """
AA-RetinaNet-50, position none  37.7 56.0 40.2
AA-RetinaNet-50, position sine  37.5 55.5 40.1
AA-RetinaNet-50, position coord  37.8 55.5 40.1
AA-RetinaNet-50, position relative  38.2 56.5 40.7
""",
}
STANDALONE = {
    "table 1": """
ResNet-26, convolution  13.7 4.7 74.5
SASA-ResNet-26, convolution stem  10.3 4.5 75.8
SASA-ResNet-26, attention stem  10.3 4.7 74.8
ResNet-38, convolution  19.6 6.5 76.2
SASA-ResNet-38, convolution stem  14.1 5.7 77.1
SASA-ResNet-38, attention stem  14.1 6.0 76.9
ResNet-50, convolution  25.6 8.2 76.9
SASA-ResNet-50, convolution stem  18.0 7.0 77.4
SASA-ResNet-50, attention stem  18.0 7.2 77.6
""",
    "table 2": """
RetinaNet-50, convolution  33.4 182 36.5 54.3 39.0 18.3 40.6 51.7
SASA-RetinaNet-50, convolution stem  25.9 173 36.8 54.6 39.3 18.4 41.1 51.7
SASA-RetinaNet-50, attention stem  25.9 173 36.2 54.0 38.7 17.5 40.3 51.7
SASA-RetinaNet-50 and heads, convolution stem  22.0 111 36.6 54.3 39.1 19.0 40.7 51.1
SASA-RetinaNet-50 and heads, attention stem  22.0 110 36.6 54.5 39.2 18.5 40.6 51.6
""",
    # parameters, GFLOP, accuracy on 4 % of the training images
    "table 3": """
SASA-ResNet-50 in conv2_x, conv3_x, conv4_x, conv5_x  18.0 7.0 80.2
SASA-ResNet-50 in conv3_x, conv4_x, conv5_x  18.1 7.3 80.7
SASA-ResNet-50 in conv4_x, conv5_x  18.5 7.5 80.7
SASA-ResNet-50 in conv5_x  20.8 8.0 80.2
ResNet-50, no stage attends  25.6 8.2 79.5
SASA-ResNet-50 in conv2_x  25.5 7.9 79.7
SASA-ResNet-50 in conv2_x, conv3_x  25.0 7.8 79.6
SASA-ResNet-50 in conv2_x, conv3_x, conv4_x  22.7 7.2 79.9
""",
    # GFLOP, top-1
    "table 4": """
SASA-ResNet-50, window 3  6.6 76.4
SASA-ResNet-50, window 5  6.7 77.2
SASA-ResNet-50, window 7  7.0 77.4
SASA-ResNet-50, window 9  7.3 77.7
SASA-ResNet-50, window 11  7.7 77.6
""",
    "table 5": """
SASA-ResNet-50, position none  18.0 6.9 77.6
SASA-ResNet-50, position sine  18.0 6.9 78.2
SASA-ResNet-50, position relative  18.0 7.0 80.2
""",
    "table 6": """
SASA-ResNet-50, q.r only  16.7 6.1 76.9
SASA-ResNet-50, q.k + q.r  18.0 7.0 77.4
""",
    "table 7": """
SASA-ResNet-50, stem attention_plain  7.1 76.2
SASA-ResNet-50, stem attention_conv  7.4 77.2
SASA-ResNet-50, stem attention  7.2 77.6
""",
}


@pytest.mark.parametrize(
    ("paper", "name"),
    [*(("aa", name) for name in AUGMENTED), *(("sasa", name) for name in STANDALONE)],
)
def test_every_cell(paper, name):
    expected = lines({"aa": AUGMENTED, "sasa": STANDALONE}[paper][name])
    found = cells(paper, name)
    assert list(found) == list(expected), "rows in the order of the table"
    for label, row in found.items():
        kept = row if len(row) == len(expected[label]) else row[:-1]  # an empty cell at the end
        assert kept == expected[label], label
        assert row[len(expected[label]) :] in ([], [""]), label
