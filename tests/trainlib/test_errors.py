"""How errors of users are printed."""

from trainlib.errors import CheckpointError, run_command


def test_details_stand_below_the_paragraph_as_they_are(capsys):
    def main():
        raise CheckpointError("One   long\nparagraph.", "  a table\n    of lines")

    assert run_command(main) == 66
    assert capsys.readouterr().err == "error: One long paragraph.\n  a table\n    of lines\n"
