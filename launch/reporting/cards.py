"""Samples of what a checkpoint answers, drawn beside the truth."""

from __future__ import annotations

import base64

from trainlib.pages.markup import number, text
from trainlib.report.samples import Compared, Picture, Sample, Samples

SMALL = 4_000  # bytes of a picture that is enlarged in its pixels


def cards(samples: Samples, most_bytes: int) -> tuple[str, int]:
    """Draws samples in their order until they take too many bytes.

    Returns:
      HTML, and how many samples were left out.
    """
    drawn: list[str] = []
    left = most_bytes
    for sample in samples.samples:
        card = _card(sample)
        left -= len(card.encode())
        if left < 0:
            break
        drawn.append(card)
    return f'<div class="samples">{"".join(drawn)}</div>', len(samples.samples) - len(drawn)


def _card(sample: Sample) -> str:
    pictures = "".join(map(_picture, sample.pictures))
    pictures = f'<div class="pictures">{pictures}</div>' if pictures else ""
    fields = "".join(
        f"<dt>{text(name)}</dt><dd>{_lines(said)}</dd>" for name, said in sample.fields
    )
    fields = f"<dl>{fields}</dl>" if fields else ""
    return (
        f'<article class="sample"><h3>{text(sample.title)}{_verdict(sample.right)}</h3>{pictures}'
        f"{_shares(sample)}{fields}{_compared(sample.compared)}</article>"
    )


def _verdict(right: bool | None) -> str:
    if right is None:
        return ""
    kind, said = ("check", "&#10003; right") if right else ("cross-out", "&#10007; wrong")
    return f'<span class="{kind}">{said}</span>'


def _lines(said: str) -> str:
    return "\n".join(map(text, said.split("\n")))


def _picture(picture: Picture) -> str:
    content = base64.b64encode(picture.content).decode()
    small = ' class="small"' if len(picture.content) < SMALL else ""
    return (
        f'<figure><img{small} alt="{text(picture.caption)}" '
        f'src="data:{picture.media_type};base64,{content}">'
        f"<figcaption>{text(picture.caption)}</figcaption></figure>"
    )


def _shares(sample: Sample) -> str:
    rows = "".join(
        f'<span>{text(name)}</span><i><b style="width:{number(100 * share)}%"></b></i>'
        f"<em>{100 * share:.1f} %</em>"
        for name, share in sample.shares
    )
    return f'<div class="shares">{rows}</div>' if rows else ""


def _compared(rows: tuple[Compared, ...]) -> str:
    if not rows:
        return ""
    body = "".join(
        f'<tr><th scope="row">{text(row.name)}</th><td>{_lines(row.truth) or "&ndash;"}</td>'
        f"<td>{_lines(row.answer)}{_verdict(row.right)}</td></tr>"
        for row in rows
    )
    return (
        '<table class="answers"><thead><tr><th></th><th scope="col">truth</th>'
        f'<th scope="col">answer</th></tr></thead><tbody>{body}</tbody></table>'
    )
