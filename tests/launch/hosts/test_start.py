"""What processes compare before they train together."""

from launch.hosts.start import source_digest


def test_the_code_has_a_digest_that_follows_its_files(tmp_path):
    (tmp_path / "trainlib").mkdir()
    (tmp_path / "trainlib" / "a.py").write_text("x = 1\n")
    before = source_digest(tmp_path)
    assert before == source_digest(tmp_path)
    (tmp_path / "trainlib" / "a.py").write_text("x = 2\n")
    assert source_digest(tmp_path) != before
