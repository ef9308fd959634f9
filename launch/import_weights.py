"""Imports weights of another library: `python -m launch.import_weights --format=FORMAT --path=PATH
--out=WORKDIR`.

    hf            a Hugging Face directory of T5, mT5 or Switch Transformers (safetensors)
    t5x           a T5X checkpoint of T5 1.1, Switch or ST-MoE, its own or Orbax's format
    torchvision   ResNet or RetinaNet weights in torchvision's names (safetensors)
    safetensors   what `launch.export` wrote in our own names

It prints what was mapped, missing, unexpected and mis-shaped, and writes a workdir that other
commands take (`--config.init_from=WORKDIR`). `--check` also runs both models on the same input and
prints the largest difference of their logits, and of the boxes of a detector, where the other
library is installed. Names that a wrapper wrote with module. or model. before them take
`--strip_prefix=module.`. Exit codes: 0 done, 64 bad argument, 66 weights that are damaged, hostile
or of another model, 74 the disk refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from configs.common import load
from launch import cli, families
from trainlib import compile_cache
from trainlib.errors import CheckpointError, ConfigError, one_of

if TYPE_CHECKING:
    from launch.families.protocol import Interop
    from trainlib.formats.layout import Foreign

FAMILY_OF = {"hf": "moe", "t5x": "moe", "torchvision": "vitattn", "safetensors": ""}


def main(argv: Sequence[str]) -> int:
    """Parses the command line and imports."""
    parser = cli.command_parser("import", "Import weights of another library.")
    parser.add_argument("--format", help=f"one of {', '.join(FAMILY_OF)}")
    cli.add_path(parser, "--path", help="directory or file of the weights")
    cli.add_path(parser, "--out", metavar="WORKDIR", help="a new or empty directory")
    parser.add_argument(
        "--check", action="store_true", help="compare logits with the other library"
    )
    parser.add_argument(
        "--ignore",
        default="",
        metavar="REGEX,...",
        help="names in the file that need not be read",
    )
    parser.add_argument(
        "--strip_prefix",
        default="",
        metavar="PREFIX",
        help="what another program put before the names, such as module.",
    )
    cli.add_path(
        parser,
        "--class_names",
        metavar="FILE",
        help="of an image model: the names of its classes, one a line; default: those beside the "
        "weights",
    )
    args, overrides = cli.parse(parser, argv)
    for flag in ("format", "path", "out"):
        if getattr(args, flag) is None:
            parser.error(f"--{flag} is missing")
    if args.format not in FAMILY_OF:
        raise one_of("--format", args.format, FAMILY_OF)
    if args.strip_prefix and args.format == "t5x":
        raise ConfigError("--strip_prefix is for safetensors; names of T5X have no such prefix.")
    if args.strip_prefix and args.check:
        raise ConfigError(
            "--check loads the file into the other library, which knows no --strip_prefix. Leave "
            "one of them out."
        )
    if not args.path.exists():
        raise CheckpointError(f"--path={args.path} does not exist.")
    import jax

    jax.config.update("jax_platforms", "cpu")
    compile_cache.enable(args.compile_cache)
    _run(args, overrides)
    return 0


def _run(args: Any, overrides: dict[str, str]) -> None:
    import jax.numpy as jnp

    from trainlib.config import override
    from trainlib.formats import weight_source
    from trainlib.formats.layout import check_libraries, match, take

    weight_source.check_new(args.out)
    interop, foreign = _open(args)
    if args.check:
        check_libraries(args.format, interop.COMPARED)
    for key, value in overrides.items():
        override(foreign.config, key, value, "command line")
    abstract = interop.abstract(foreign.config)
    specs = {**abstract.params, **abstract.model_state}
    beside = interop.to_import(foreign.config, args.path, args.class_names)
    beside = {**foreign.files, **beside}
    layout = interop.layout(foreign.config, foreign.kind, foreign.names)
    ignore = [word for word in args.ignore.split(",") if word]
    matched = match(layout, specs, foreign.shapes, ignore)
    print(matched.table(f"{layout.title} from {args.path}"))
    matched.check(args.path)
    for note in foreign.notes:
        print(f"note: {note}")
    size, models = sum(map(weight_source.nbytes, specs.values())), 2 if args.check else 1
    what = f"{args.path}{' with --check, which holds two models,' if args.check else ''}"
    weight_source.check_memory(models * size, what)
    arrays = {
        name: jnp.asarray(take(entries, specs[name], foreign.shapes, foreign.read))
        for name, entries in layout.by_leaf().items()
    }
    if args.check:
        print(f"\n{interop.compare(foreign.config, arrays, args.path)}")
    weight_source.save_as_run(foreign.config, abstract, arrays, args.out, beside)
    start = f"--config.init_from={args.out} {interop.START}".strip()
    print(f"\nWritten to {args.out}. Start from it by {start}")


def _open(args: Any) -> tuple[Interop, Foreign]:
    """The formats of the family, and the weights that they opened."""
    family = FAMILY_OF[args.format]
    if family:
        interop = families.by_name(family).interop
        return interop, interop.open_foreign(args.format, args.path, args.strip_prefix)
    from trainlib.formats import weight_source
    from trainlib.formats.layout import Foreign
    from trainlib.formats.safetensors import Reader
    from trainlib.untrusted_files import read_json

    if not weight_source.is_export(args.path):
        raise CheckpointError(
            f"--path={args.path} is no directory that `launch.export` wrote, or its export was cut "
            "off, or parts of it (--part) are still to come."
        )
    read_json(args.path / "config.json")  # a regular file of bounded size
    try:
        config = load.from_flags(str(args.path / "config.json"), {}).config
    except ConfigError as error:
        raise CheckpointError(f"{args.path} is no export in our own names: {error}") from None
    interop = families.of(config).interop
    interop.check_size(config)
    reader = Reader(args.path, args.strip_prefix)
    shapes = {name: tensor.shape for name, tensor in reader.tensors.items()}
    return interop, Foreign(config, "safetensors", "own", shapes, reader.read)


if __name__ == "__main__":
    cli.run(main)
