"""The Brown corpus: words put together again, held-out texts by genre, and what is refused."""

import itertools
import os
import re

import pytest

from moe.data import make_source
from moe.data.cache_paths import cache_directory
from moe.text.brown import Brown, detokenised, held_out_texts
from moe.text.vocabulary import ByteVocabulary
from trainlib.errors import DataError

# Sentences of one's own, in the two ways in which the corpus sets paragraphs.
NEWS = (
    "\n\n\tThe/at jury/nn said/vbd ,/, ``/`` No/at evidence/nn ''/'' ./.\n\n\n"
    "\tHe/pps left/vbd Allen/np Jr./np ./.\n"
)
TALE = (
    "A/at-hl tale/nn-hl\n\nWho/wps knows/vbz ?/. ?/.\n"
    "It/pps (/( a/at cat/nn )/) cost/vbd 1/2/cd ./.\n"
)
# As random numbers fall, ca03 of the news and cn02 of the tales are the first to be held out.
CATS = {"ca01": "news", "ca02": "news", "ca03": "news", "cn01": "tales", "cn02": "tales"}


def corpus(folder, cats=CATS, **files):
    folder.mkdir()
    (folder / "cats.txt").write_text("".join(f"{name} {genre}\n" for name, genre in cats.items()))
    for name, genre in cats.items():
        (folder / name).write_text(NEWS if genre == "news" else TALE)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def names(path, fraction, holdout, shards=1):
    reader = Brown(str(path), fraction, holdout)
    found = [doc.where for shard in range(shards) for doc in reader.documents(shard, shards)]
    return sorted(re.findall(r"/(c\w\d\d) \((\w+)\)", " ".join(found)))


def test_words_are_put_together_without_tags(tmp_path):
    found = {
        doc.where.split("/")[-1]: doc.text["targets"]
        for doc in Brown(str(corpus(tmp_path / "brown")), 0.0, False).documents(0, 1)
    }
    assert found["ca01 (news)"] == 'The jury said, "No evidence".\nHe left Allen Jr.\n'
    assert found["cn01 (tales)"] == "A tale\nWho knows? It (a cat) cost 1/2.\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("the ' new ' age and ' old ' ones", "the 'new' age and 'old' ones"),
        ("`` Is it ' so ' ? ? '' he -- said ; ;", "\"Is it 'so'?\" he -- said;"),
        ("[ A & B ] : : half ! ! etc. .", "[A & B]: half! etc."),
        ("no . . . end", "no. end"),
        ("in **zg , 40 - 50", "in **zg, 40 - 50"),
        ("", ""),
    ],
)
def test_rules_of_detokenising(words, text):
    assert detokenised(words.split()) == text


def test_a_fixed_part_of_each_genre_is_held_out(tmp_path):
    folder = corpus(tmp_path / "brown")
    train, held = (names(folder, 0.1, part) for part in (False, True))
    assert sorted(train + held) == sorted(CATS.items())
    assert [genre for _, genre in held] == ["news", "tales"]
    for shards in (2, 7):
        assert names(folder, 0.1, True, shards) == held
        assert names(folder, 0.1, False, shards) == train
    assert names(folder, 0.0, False) == sorted(CATS.items())
    # A genre by its name has the same texts held out.
    assert names(folder / "tales", 0.1, True) == [pair for pair in held if pair[1] == "tales"]
    assert {genre for _, genre in names(folder / "news", 0.1, False)} == {"news"}


def test_more_is_held_out_with_what_was_before():
    genres = {f"ca{n:02}": "news" for n in range(40)} | {"cm01": "alone"}
    held = [held_out_texts(genres, fraction) for fraction in (0.0, 0.01, 0.1, 0.2, 0.99)]
    assert [len(texts) for texts in held] == [0, 1, 4, 8, 39]
    assert all(less < more for less, more in itertools.pairwise(held))
    assert "cm01" not in held[-1]


def test_what_else_lies_there_is_passed_over_and_an_edit_is_noticed(tmp_path, data_config):
    folder = corpus(
        tmp_path / "brown", **{"categories.pickle": b"\x80\x04.", "README": b"", ".hidden": b""}
    )
    source = f"brown:{folder}"
    config = data_config(source=source, holdout=0.2, cache=str(tmp_path / "cache"))
    opened = make_source(config, "train")
    assert sum("no text of the corpus" in note for note in opened.notes) == 2
    total = opened.counts().sum()
    before = Brown(str(folder), 0.2, False).fingerprint()
    for name in CATS:
        (folder / name).write_text(TALE + "Still/rb more/ap ./.\n")
    assert Brown(str(folder), 0.2, False).fingerprint() != before
    assert make_source(config, "train").counts().sum() != total
    vocabulary = ByteVocabulary(100)
    places = {
        cache_directory(data_config(source=source, holdout=part), source, "train", vocabulary)
        for part in (0.1, 0.2)
    }
    assert len(places) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ca01": b"The/at jury\n"}, r"ca01 line 1 holds 'jury', which is not a word/tag"),
        ({"ca01": b"a/at\n\n/at\n"}, r"ca01 line 3 holds '/at'"),
        ({"ca01": b"word/\n"}, r"ca01 line 1 holds 'word/'"),
        ({"ca01": b"a\x00b/nn\n"}, r"ca01 line 1 holds"),
        ({"ca02": b"a/at\ncaf\xe9/nn\n"}, r"ca02 line 2 is not UTF-8 \(byte 0xe9\)"),
        ({"ca02": b" \n\n"}, r"ca02 has no word in it"),
        ({"ca02": b"a/at " * 60_000}, r"ca02 is larger than"),
        ({"cr01": b"a/at\n"}, r"cats.txt gives no genre of cr01"),
        ({"cats.txt": b"ca01 news\nca01 news\n"}, r"cats.txt line 2 names ca01 a second time"),
        ({"cats.txt": b"ca01 news\nca09 news\n"}, r"cats.txt line 2 names ca09, and there is no"),
        ({"cats.txt": b"ca01\n"}, r"cats.txt line 1 holds 'ca01', which is not a text and"),
        ({"cats.txt": b"../x news\n"}, r"cats.txt line 1 holds '../x news'"),
    ],
)
def test_faults_are_named_with_file_and_line(tmp_path, data_config, files, message):
    folder = corpus(tmp_path / "brown", **files)
    config = data_config(source=f"brown:{folder}", cache=str(tmp_path / "cache"), holdout=0.0)
    with pytest.raises(DataError, match=message) as refused:
        make_source(config, "train")
    assert refused.value.exit_code == 65
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent", "there is nothing to read"),
        ("", r"has no cats.txt. .*brown has one: give that folder"),
        ("brown/tale", r"has no genre 'tale'. Did you mean 'tales'.* news, tales"),
    ],
)
def test_no_such_folder_or_genre(tmp_path, data_config, path, message):
    corpus(tmp_path / "brown")
    config = data_config(source=f"brown:{tmp_path / path}", cache=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=message):
        make_source(config, "train")


def test_links_pipes_and_a_single_text(tmp_path, data_config):
    folder = corpus(tmp_path / "brown", {"ca01": "news"})
    config = data_config(source=f"brown:{folder}", cache=str(tmp_path / "cache"), holdout=0.1)
    with pytest.raises(DataError, match="one text of a genre at most"):
        make_source(config, "train")
    (folder / "ca01").rename(tmp_path / "elsewhere")
    (folder / "ca01").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="symbolic link"):
        list(Brown(str(folder), 0.0, False).documents(0, 1))
    (folder / "ca01").unlink()
    os.mkfifo(folder / "ca01")
    with pytest.raises(DataError, match="names ca01, and there is no such file"):
        list(Brown(str(folder), 0.0, False).documents(0, 1))
