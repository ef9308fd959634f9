"""The report of an analysis, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe.analysis import properties, words
from moe.analysis.findings import Findings, Group, Layer, StackFindings, divergence
from moe.analysis.statistics import SHUFFLES, Explained, Typical
from trainlib.errors import plain
from trainlib.files import write_atomically

_MOST_EXPERTS = 64  # of a layer that are listed one by one
_LISTED = 6  # properties that are listed of a layer
_RULE_VALUES = 12  # values of an exact rule that are written out of each expert
_TITLES = {
    "classes.png": "Which experts take the tokens of each class",
    "entropy.png": "Entropy of routing by class",
    "layers.png": "First with second choices, and one layer with the next",
    "languages.png": "Which experts take each language or source",
    "sentence.png": "How one row travels",
}


def headline(findings: Findings) -> list[tuple[str, str]]:
    """Rows (name, text) for the end of the command: what each layer follows."""
    rows = []
    for name, stack in findings.stacks.items():
        rows.append((name, f"{stack.tokens:,} tokens, {stack.experts} experts"))
        for layer in stack.layers:
            rows.append((f"  {name}.{layer.block}", _follows(layer)))
    return rows


def _follows(layer: Layer) -> str:
    best = layer.explained[0] if layer.explained else None
    if best is None or best.share is None:
        return "all tokens have one expert"
    if layer.rule:
        return f"routed by {best.name}, exactly"
    if best.share <= best.noise:
        return "follows nothing that was looked for"
    by_class = layer.share_of(properties.CLASS)
    return f"follows {best.name} by {_percent(best.share)}, word class by {_percent(by_class)}"


def write_data(data: dict[str, Any], path: Path) -> None:
    """Writes findings as JSON."""
    write_atomically(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write(findings: Findings, pictures: Sequence[Path], path: Path) -> None:
    """Writes the report beside its pictures."""
    parts = [_head(findings)]
    parts += [f"## {_TITLES[p.name]}\n\n![{_TITLES[p.name]}]({p.name})" for p in pictures]
    parts.append(_sentinels(findings))
    for name, stack in findings.stacks.items():
        parts.append(_stack(name, stack, findings))
    parts = [part for part in parts if part]
    write_atomically(path, "\n\n".join(parts) + "\n")


def _head(findings: Findings) -> str:
    facts = findings.facts
    lines = [
        f"# Where the routers of {_safe(facts.get('run', 'a model'))} send tokens",
        "",
        f"Step {facts.get('step', '?')}, read from {_safe(facts.get('text', 'a record'))} with the "
        f"vocabulary {_safe(facts.get('vocabulary', '?'))}. What a token follows is judged by its "
        "first choice. A share of 100 % means that the property says the expert; 0 % is what "
        f"{SHUFFLES} shuffles of the same tokens give on average. Word classes are lexical rules "
        "for English, not a tagger.",
        "",
        *(f"- **{name.strip()}**: {text}" for name, text in headline(findings)),
    ]
    return "\n".join(lines)


def _sentinels(findings: Findings) -> str:
    """Table 14 of the paper: the entropy of sentinels in every layer."""
    rows = [
        [
            f"{name}.{layer.block}",
            f"{group.entropy:.2f}",
            f"{group.low:.2f} to {group.high:.2f}",
            f"{group.control:.2f}",
            f"{stack.uniform:.2f}",
        ]
        for name, stack in findings.stacks.items()
        for layer in stack.layers
        for group in layer.classes
        if group.name == words.SENTINEL
    ]
    if not rows:
        return ""
    table = _table(["layer", "entropy", "95 % interval", "shuffled", "even"], rows)
    return f"## Entropy of sentinels, in nats (table 14 of ST-MoE)\n\n{table}"


def _stack(name: str, stack: StackFindings, findings: Findings) -> str:
    parts = [f"## {name.capitalize()}", _loads(name, stack)]
    for layer in stack.layers:
        parts.append(f"### {name}.{layer.block}")
        parts.append(_explained(layer.explained))
        if layer.rule:
            parts.append(_rule(layer))
        parts.append(_groups("class of the token", layer.classes, stack))
        if layer.predicted:
            parts.append(_groups("class of the token to predict", layer.predicted, stack))
        if layer.labels:
            parts.append(_groups("language or source", layer.labels, stack))
            parts.append(_divergence(layer.labels))
        parts.append(_experts(layer, stack))
        parts.append(_tenths(layer))
        if layer.second is not None:
            parts.append(_second(layer.second))
        parts.append(_alike(name, layer.block, findings))
    parts += [_passage(name, stack)]
    return "\n\n".join(part for part in parts if part)


def _loads(name: str, stack: StackFindings) -> str:
    rows = []
    for layer in stack.layers:
        load = layer.load * stack.experts
        rows.append(
            [
                f"{name}.{layer.block}",
                f"{load.max():.2f} / {load.min():.2f}",
                _percent(layer.dropped_choices),
                _percent(layer.dropped_tokens),
                f"{layer.second_rate:.2f}",
                f"{layer.entropy:.2f}",
                str(int((layer.load == 0).sum())),
            ]
        )
    titles = ["layer", "most / least load", "dropped choices", "tokens without expert"]
    titles += ["further choices a token", "entropy of the router", "unused experts"]
    return (
        f"{stack.tokens:,} tokens, {stack.experts} experts; an even load is 1, the entropy of an "
        f"even router {stack.uniform:.2f} nats.\n\n{_table(titles, rows)}"
    )


def _explained(all_explained: Sequence[Explained]) -> str:
    rows = [
        [
            e.name,
            f"{e.values:,}",
            _percent(e.share),
            f"± {_percent(e.noise)}",
            f"{e.entropy:.3f}",
            f"{e.control:.3f}",
        ]
        for e in all_explained[:_LISTED]
        if e.share is not None
    ]
    if not rows:
        return "All tokens have the same expert here, so that there is nothing to explain."
    titles = ["routing follows", "values", "share", "shuffles", "entropy left", "shuffled"]
    return _table(titles, rows)


def _rule(layer: Layer) -> str:
    ((name, values),) = layer.rule.items()
    lines = [f"The {_safe(name)} of a token says its expert exactly:", ""]
    for expert, own in enumerate(values):
        more = f" and {len(own) - _RULE_VALUES} more" if len(own) > _RULE_VALUES else ""
        shown = ", ".join(map(_code, own[:_RULE_VALUES])) or "nothing"
        lines.append(f"- expert {expert}: {shown}{more}")
    return "\n".join(lines)


def _groups(what: str, groups: Sequence[Group], stack: StackFindings) -> str:
    """The same figures for all classes: least entropy against the control first."""
    rows = [
        [
            _safe(group.name),
            f"{group.tokens:,}",
            f"{group.entropy:.2f}",
            f"{group.low:.2f} to {group.high:.2f}",
            f"{group.control:.2f}",
            "yes" if group.specialised else "no",
            _favourites(group.shares),
            _percent(group.dropped),
        ]
        for group in groups
    ]
    titles = [what, "tokens", f"entropy (even: {stack.uniform:.2f})", "95 % interval", "shuffled"]
    titles += ["specialised", "experts", "dropped"]
    return _table(titles, rows) if rows else ""


def _favourites(shares: np.ndarray) -> str:
    best = [e for e in np.argsort(-shares, kind="stable")[:3] if shares[e] > 0]
    return ", ".join(f"{e}: {_percent(float(shares[e]))}" for e in best)


def _divergence(groups: Sequence[Group]) -> str:
    return (
        f"Divergence between their experts: {divergence(list(groups)):.3f} (0: all have the same, "
        "1: none shares one)."
    )


def _experts(layer: Layer, stack: StackFindings) -> str:
    rows = []
    for expert in range(min(stack.experts, _MOST_EXPERTS)):
        rows.append(
            [
                str(expert),
                _percent(layer.first[expert]),
                _typical(layer.typical_classes[expert][:3], code=False),
                _typical(layer.typical_words[expert]),
                _typical(layer.typical_tokens[expert]),
            ]
        )
    more = stack.experts - len(rows)
    note = f"\n\n{more} further experts are in report.json." if more > 0 else ""
    titles = ["expert", "first choices", "classes", "words", "tokens"]
    return f"{_table(titles, rows)}{note}"


def _typical(all_typical: Sequence[Typical], *, code: bool = True) -> str:
    return ", ".join(
        f"{_code(t.name) if code else _safe(t.name)} x{t.lift:.1f}" for t in all_typical
    )


def _tenths(layer: Layer) -> str:
    if not layer.dropped_choices:
        return "No choice was dropped."
    shares = " ".join(f"{100 * share:.0f}" for share in layer.dropped_by_tenth)
    return f"Dropped choices by tenths of the row, in per cent: {shares}."


def _second(counts: np.ndarray) -> str:
    total = int(counts.sum())
    if not total:
        return "No token was sent to a second expert."
    one, two = np.unravel_index(int(np.argmax(counts)), counts.shape)
    return (
        f"{total:,} tokens were sent to a second expert, most often {one} with {two} "
        f"({_percent(float(counts[one, two]) / total)})."
    )


def _alike(stack: str, block: int, findings: Findings) -> str:
    """The nearest pairs of experts by the router's vectors and by the matrices."""
    lines = []
    for by in ("router", "weights"):
        cosines = findings.similarity.get(f"{stack} by {by}", {}).get(block)
        if cosines is None or len(cosines) < 2:
            continue
        upper = np.triu_indices(len(cosines), k=1)
        order = np.argsort(-cosines[upper], kind="stable")[:3]
        pairs = (f"{upper[0][n]} and {upper[1][n]} ({cosines[upper][n]:.2f})" for n in order)
        lines.append(f"Nearest experts by {by} (cosine): {', '.join(pairs)}.")
    return "\n".join(lines)


def _passage(name: str, stack: StackFindings) -> str:
    if not stack.passages:
        return ""
    rows = [
        [
            f"{name}.{p.first}",
            f"{name}.{p.then}",
            _percent(p.explained.share),
            f"± {_percent(p.explained.noise)}",
        ]
        for p in stack.passages
    ]
    return (
        "### From layer to layer\n\nHow far the first choice in one layer says that in the next:"
        f"\n\n{_table(['layer', 'next', 'share', 'shuffles'], rows)}"
    )


def classes_key() -> str:
    """What the classes are, as a Markdown table."""
    return _table(["class", "what is in it"], [[k, v] for k, v in words.MEANING.items()])


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"


def _safe(text: object) -> str:
    """Text of others in a table of Markdown."""
    return plain(text).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _code(text: str) -> str:
    """A word or token between backquotes."""
    ticks = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{plain(text).replace('|', chr(92) + '|')}{pad}{ticks}"
