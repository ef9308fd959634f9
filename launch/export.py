"""Exports the weights of a run: `python -m launch.export --workdir=DIR --format=FORMAT --out=DIR`.

    safetensors   sharded, in Hugging Face's names and layout where the model is a T5 v1.1 or a
                  Switch Transformer (`transformers` loads the directory as it is), else in our own
    t5x           a T5X checkpoint directory
    stablehlo     the evaluation forward as a program, its weights beside it; runs without this
                  package

Beside the weights lies a model card, README.md, as hubs of models read it; `--license=ID` fills in
its licence.

Reads one leaf at a time. Several processes, on any hosts that see both directories, share the
work: `--part=0/4` to `--part=3/4`, with the same `--step`; whoever finds all parts there makes the
directory one that is read. Exit codes: 0 done, 64 bad argument or a model that the format
cannot hold, 66 no such checkpoint, 74 the disk refuses.
"""

from __future__ import annotations

import dataclasses
import json
import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common import command, load
from launch import cli, families
from trainlib import compile_cache, paths
from trainlib.errors import ConfigError, UserError, one_of, shown
from trainlib.formats import model_card
from trainlib.untrusted_files import read_json

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from trainlib.formats.export import Written
    from trainlib.formats.layout import Layout

FORMATS = ("safetensors", "t5x", "stablehlo")
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def main(argv: Sequence[str]) -> int:
    """Parses the command line and exports."""
    parser = cli.command_parser("export", "Export the weights of a run.")
    cli.add_path(parser, "--workdir", metavar="DIR", help="directory of the training")
    parser.add_argument("--format", help=f"one of {', '.join(FORMATS)}")
    cli.add_path(parser, "--out", metavar="DIR", help="a new or empty directory")
    parser.add_argument("--step", type=cli.step, help=cli.STEP_HELP)
    parser.add_argument(
        "--weights",
        default="auto",
        help="raw, ema (moving averages), or auto: the averages where the run has them",
    )
    parser.add_argument("--dtype", help="f32, bf16 or f16; default: as stored")
    parser.add_argument(
        "--shard_size",
        type=_size,
        default=_size("5GB"),
        help="largest size of one file; default: 5GB",
    )
    parser.add_argument(
        "--names",
        default="auto",
        help="safetensors: hf, own or torchvision; t5x: t5, scalable, flaxformer or "
        "flaxformer_scan",
    )
    parser.add_argument(
        "--part", metavar="I/N", default="0/1", help="this process's share of the files, from 0/N"
    )
    parser.add_argument(
        "--platforms",
        default="cpu,cuda,tpu",
        help="platforms of a stablehlo program; default: cpu,cuda,tpu",
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        default="",
        help="licence of the weights, for the model card (README.md), such as apache-2.0; default: "
        "the card says that none was chosen",
    )
    parser.add_argument(
        "--batch", type=int, default=0, help="fixed batch size of a stablehlo program; default: any"
    )
    args, overrides = cli.parse(parser, argv)
    for flag in ("workdir", "format", "out"):
        if getattr(args, flag) is None:
            parser.error(f"--{flag} is missing")
    if args.format not in FORMATS:
        raise one_of("--format", args.format, FORMATS)
    if args.dtype is not None and args.dtype not in (*DTYPES, *DTYPES.values()):
        raise one_of("--dtype", args.dtype, DTYPES)
    model_card.check_license(args.license)
    config = load.of_workdir(args.workdir, overrides)
    import jax

    jax.config.update("jax_platforms", "cpu")  # an accelerator may be busy training
    compile_cache.enable(args.compile_cache)
    _run(args, config)
    return 0


def _run(args: Any, config: ConfigDict) -> None:
    import jax.numpy as jnp

    from trainlib.formats import export, stablehlo
    from trainlib.formats.weight_source import RECORD, give_memory_back, is_export, open_weights

    give_memory_back()
    interop = families.of(config).interop
    stored, plain = interop.abstract(config), interop.base(config)
    abstract = interop.abstract(plain)
    name = DTYPES.get(args.dtype, args.dtype)
    dtype = jnp.dtype(name) if name else None
    kind = "t5x" if args.format == "t5x" else "safetensors"
    names = "own" if args.format == "stablehlo" else args.names
    layout = interop.layout(plain, kind, names, name or "float32")
    share = export.Share(*cli.part(args.part))
    if share.parts > 1 and not isinstance(args.step, int) and not is_export(args.workdir):
        raise ConfigError(
            f"--part={args.part} needs --step=N: the newest or best step may be another one when "
            "the next part starts, and all parts must hold the same."
        )
    step = cli.chosen_step(args.step, config, args.workdir)
    opened = open_weights(args.workdir, stored, step, args.weights)
    source, notes = interop.merged(config, opened)
    beside = interop.beside(config, args.workdir, source.step)
    files, notes = {**layout.files, **beside}, (*layout.notes, *notes)
    layout = dataclasses.replace(layout, files=files, notes=notes)
    dtypes = export.result_dtypes(source, list(abstract.model_state), dtype)
    about = {"name": config.name, "step": source.step, "moving_averages": source.averaged}
    about |= {"format": args.format, "names": layout.title}
    extra = {RECORD: (json.dumps(about, indent=2) + "\n").encode()}
    if (args.out / model_card.NAME).exists() and not (args.out / RECORD).exists():
        raise ConfigError(
            f"--out={args.out} already holds a {model_card.NAME} that no export wrote, and an "
            "export writes its model card there. Give a directory that is new or empty."
        )
    replaced = "" if share.parts > 1 else _there(args.out / RECORD)
    extra[model_card.NAME] = _card(args, config, layout, source, abstract, name).encode()
    to_write = {"dtypes": dtypes, "share": share}
    if args.format == "t5x":
        from moe.interop import t5x_io

        written = t5x_io.write(source, layout, args.out, **to_write, extra=extra)
    else:
        if args.format == "stablehlo":
            extra |= dict.fromkeys(stablehlo.FILES, b"")
            if share.first:
                extra |= _program(args, config, interop.serving(plain), abstract, dtypes)
        written = export.safetensors(
            source, layout, args.out, **to_write, shard_size=args.shard_size, extra=extra
        )
    source.close()
    _report(args, config, layout, written, source, share, replaced)


def _there(record: Path) -> str:
    """What an earlier export left in the target: "step 30 of resnet50 as t5x"; "" if nothing."""
    if not record.is_file():
        return ""
    try:
        about = read_json(record)
        return shown(f"step {about['step']} of {about['name']} as {about['format']}")
    except (UserError, KeyError):
        return "an export whose record cannot be read"


def _program(
    args: Any, config: ConfigDict, serving: Any, abstract: Any, dtypes: Any
) -> dict[str, bytes]:
    """The program and what stands beside it, before anything is written."""
    from trainlib.formats import stablehlo

    forward, inputs, facts = serving
    platforms = [word.strip() for word in args.platforms.split(",")]
    program, signature = stablehlo.program(
        forward, abstract, inputs, dtypes=dtypes, platforms=platforms, batch=args.batch
    )
    return stablehlo.files(program, signature | {"facts": facts})


def _card(
    args: Any, config: ConfigDict, layout: Layout, source: Any, abstract: Any, dtype: str | None
) -> str:
    """The text of the model card."""
    from trainlib.formats import stablehlo

    form = "stablehlo" if args.format == "stablehlo" else layout.form
    kind = "moving averages" if source.averaged else "as trained"
    rows = {"weights": f"step {source.step:,}, {kind}, {dtype or 'as stored'}, {layout.title}"}
    if form == "stablehlo":
        rows["files"] = stablehlo.about(args.platforms.split(","))
    if source.measured:
        note = f", before they were converted to {dtype}" if dtype not in (None, "float32") else ""
    else:
        note = "no evaluation of exactly these weights is recorded in the run."
    export = model_card.Export(
        name=paths.without_paths(config.name),
        license=args.license,
        parameters=abstract.param_count,
        step=source.step,
        weights=rows,
        library="transformers" if form == "hf" else model_card.LIBRARY,
        figures=source.measured,
        note=note,
        command=command.training(config, "config.json" if layout.form == "own" else ""),
        versions=source.versions,
    )
    return model_card.card(families.of(config).interop.subject(config, form, layout.files), export)


def _report(
    args: Any,
    config: ConfigDict,
    layout: Any,
    written: Written,
    source: Any,
    share: Any,
    replaced: str,
) -> None:
    from trainlib.run.progress import summary

    rows: list[tuple[str, Any]] = [
        ("layout", layout.title),
        ("weights", "moving averages" if source.averaged else "as trained"),
        ("files", f"{written.files} with {written.tensors} tensors"),
        ("size", f"{written.size / 1e6:,.1f} MB"),
        ("in", args.out),
        ("card", model_card.NAME if args.license else f"{model_card.NAME}; it names no licence"),
    ]
    if replaced:
        rows.append(("replaced", replaced))
    rows += [("note", note) for note in layout.notes]
    if private := _private(config) if layout.form == "own" else "":
        rows.append(("note", f"config.json holds paths of this machine: {private}"))
    if share.parts > 1:
        whole = "all are there" if written.complete else "others are still to come"
        rows.append(("part", f"{share.part}/{share.parts}; {whole}"))
    print(summary(f"Exported step {source.step} of {config.name} as {args.format}", rows))


def _private(config: ConfigDict) -> str:
    """Keys of the configuration that tell of the directories of this machine."""
    from trainlib.config import flatten

    return ", ".join(k for k, v in flatten(config).items() if paths.published(k, v) != v)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)B?", text.strip().upper())
    if not match or not float(match[1]):
        raise ArgumentTypeError(f"'{text}' is no size such as 500MB or 5GB")
    return int(float(match[1]) * _UNITS[match[2]])


if __name__ == "__main__":
    cli.run(main)
