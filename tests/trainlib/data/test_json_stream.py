"""Elements of a JSON file one by one: the same as of the whole file at once, or a clear refusal."""

import io
import json
import random
import tracemalloc

import pytest

from trainlib.data import json_stream
from trainlib.errors import DataError


def read(text):
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return list(json_stream.elements(io.BytesIO(data), "it"))


def random_value(draw, depth=0):
    kinds = [1, -2.5e-3, 12345678901234567890, float("inf"), True, None, "", 'aé\U0001f600"\\b\n']
    if depth < 3 and draw.random() < 0.4:
        inner = [random_value(draw, depth + 1) for _ in range(draw.randrange(4))]
        return inner if draw.random() < 0.5 else {f"k{n}": v for n, v in enumerate(inner)}
    return draw.choice(kinds)


@pytest.mark.parametrize("piece", [1, 3, 7, 1000])
def test_wherever_the_file_is_cut_into_pieces_the_elements_are_those_of_json(piece, monkeypatch):
    monkeypatch.setattr(json_stream, "_PIECE", piece)
    for seed in range(60):
        draw = random.Random(seed)
        content = {f"m{n}": random_value(draw) for n in range(draw.randrange(6))}
        text = json.dumps(content, ensure_ascii=draw.random() < 0.5, indent=draw.choice([None, 2]))
        found = {}
        for member, number, value in read(draw.choice(["", " \n", "\ufeff"]) + text + " \n"):
            if number is None:
                found[member] = value
            elif number < 0:
                found[member] = []
            else:
                found.setdefault(member, []).append(value)
                assert len(found[member]) == number + 1
        assert found == content
        assert list(found) == list(content)


@pytest.mark.parametrize("piece", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cut off or empty"),
        ("[1]", r"one object \{ \.\.\. \} was expected, at character 1"),
        ("{", "cut off"),
        ('{"a"', "a colon was expected"),
        ('{"a":[1', "',' or ']' was expected"),
        ('{"a":[1}]}', "',' or ']' was expected, at character 8"),
        ('{"a":1}x', "more follows.*character 8"),
        ('{"a":1}}', "more follows"),
        ('{"a":1,}', "Expecting value|was expected"),
        ("{1:2}", "'?1'? stands where a name"),
        ("{a:1}", "Expecting value"),
        ('{"a":1,"a":2}', "names 'a' twice"),
        ('{"a":[{"b":1,"b":2}]}', "names 'b' twice in one object"),
        ('{"a":"abc', "Unterminated string"),
        ('{"a":[nul]}', "Expecting value"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"a":"\xc3', "not UTF-8"),
        ('{"a":' + "[" * 60_000, "nests too deeply"),
    ],
)
def test_what_is_not_json_is_refused(text, message, piece, monkeypatch):
    if len(text) < 1000:
        monkeypatch.setattr(json_stream, "_PIECE", piece)
    with pytest.raises(DataError, match=message):
        read(text)


def test_a_mistake_early_in_a_large_file_is_found_early():
    text = '{"a":[{"b" 1}, ' + "1," * 10**6
    file = io.BytesIO(text.encode())
    with pytest.raises(DataError, match="Expecting ':' delimiter, at character 12"):
        list(json_stream.elements(file, "it"))
    assert file.tell() < 10**6


def test_memory_is_that_of_an_element():
    entry = json.dumps({"x": "y" * 1000})
    data = ('{"a": [' + ",".join([entry] * 20_000) + "]}").encode()
    tracemalloc.start()
    count = sum(1 for _ in json_stream.elements(io.BytesIO(data), "it"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < len(data) / 5


def test_one_element_has_a_size_that_is_read(monkeypatch):
    monkeypatch.setattr(json_stream, "_MOST_ELEMENT", 10**6)
    assert len(read('{"a": "' + "x" * 999_000 + '"}')[0].value) == 999_000
    with pytest.raises(DataError, match="more than 1,000,000 characters"):
        read('{"a": "' + "x" * 10**7 + '"}')
