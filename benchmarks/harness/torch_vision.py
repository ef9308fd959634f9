"""torchvision and timm beside the CPU build of torch.

The wheel of torchvision that PyPI has is built for CUDA: beside torch's CPU build its own operators
do not load, and its import fails where it describes them. Transforms, models and timm need none of
them; they are declared here by name, and calling one is an error.
"""

from __future__ import annotations

import importlib.util

_DECLARED: list[object] = []  # a library that is freed takes its operators with it


def prepare() -> None:
    """Makes `import torchvision` and `import timm` work; call it before either, and before a model
    of `transformers`, which imports torchvision where it is. Without it there is nothing to do.
    """
    if not importlib.util.find_spec("torchvision"):
        return
    import torch

    if _DECLARED:
        return
    try:
        import torchvision  # pyright: ignore[reportMissingImports]
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare(torch)
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]


def _declare(torch) -> None:
    import importlib
    import sys

    library = torch.library.Library("torchvision", "FRAGMENT")
    _DECLARED.append(library)
    for _ in range(100):  # one operator after another, as its import asks for them
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            words = str(error).split()
            names = [word for word in words if word.startswith("torchvision::")]
            if not names:
                raise
            name = names[0].removeprefix("torchvision::")
            library.define(f"{name}(Tensor x) -> Tensor")
