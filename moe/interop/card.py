"""What the model card of an export says of a language model."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from moe import describe
from moe.models import architecture
from trainlib import paths
from trainlib.formats.model_card import LIBRARY, Metric, Subject, escaped

_DATA_IDS = {"c4": "allenai/c4"}
_SAMPLE = "what is the capital of France?"
METRICS = {
    "cross_entropy": Metric("cross_entropy", "cross entropy, nats a token"),
    "accuracy": Metric("accuracy", "accuracy of the next token", True),
}
_USES = {
    "own": """
import moe

model = moe.load(".")
answers = model.answer(["{sample}"])
print(answers[0].text)
""",
    "own decoder": """
import moe

model = moe.load(".")
print(model.step, model.config.name)
network = model.model  # a module of Flax, with the weights
""",
    "hf": """
from transformers import AutoModelForSeq2SeqLM

model = AutoModelForSeq2SeqLM.from_pretrained(".")
print(model.num_parameters())
""",
    "t5x": """
from pathlib import Path
from moe.interop.t5x_io import Checkpoint

checkpoint = Checkpoint(next(Path(".").glob("checkpoint_*")))
weights = {{name: checkpoint.read(name) for name in checkpoint.shapes}}
print(len(weights))
""",
    "stablehlo": """
import numpy as np
from load import load  # load.py of this directory: needs jax, numpy and flatbuffers, nothing else

forward, signature = load(".")
shapes = {{name: [n if n != "batch" else 1 for n in x["shape"]]
          for name, x in signature["inputs"].items()}}
logits = forward({{name: np.ones(shape, np.int32) for name, shape in shapes.items()}})
""",
}


def subject(config: ConfigDict, form: str, beside: Mapping[str, str]) -> Subject:
    """What the card says of a model.

    Args:
      config: of the run.
      form: "own", "hf", "t5x" or "stablehlo": how the weights are written.
      beside: files of the export; none of them matters here.
    """
    del beside
    model = architecture(config.model, config.routing)
    pair = config.model.kind == "encoder_decoder"
    routing = describe.routing(model)
    kind = config.model.kind.replace("_", "-")
    sparse = "Sparse (mixture-of-experts)" if model.routing else "Dense"
    source = paths.published("data.source", config.data.source)
    parts = paths.published("data.parts", config.data.parts)
    data = f"{source} of {', '.join(str(part[0]) for part in parts)}" if parts else source
    vocabulary = paths.published("data.vocabulary", config.data.vocabulary)
    lengths = {"encoder": config.data.encoder_length, "decoder": config.data.decoder_length}
    limits = ", ".join(f"{lengths[stack]:,} tokens of the {stack}" for stack in model.stacks)
    tuned = config.task == "finetune"
    form = "own decoder" if form == "own" and not pair else form
    return Subject(
        what=f"{sparse} {escaped(kind)} language model in JAX and Flax after ST-MoE, trained by "
        f"`{LIBRARY}`.",
        pipeline="text-generation",
        task="text to text, fine-tuned" if tuned else f"pre-training, {config.data.objective}",
        tags=(
            *(LIBRARY, "jax", "flax"),
            *(("moe", "mixture-of-experts") if model.routing else ()),
            *(("text2text-generation",) if pair else ()),
        ),
        papers=("2202.08906",),
        rows={
            "architecture": f"d\\_model {model.d_model:,}, d\\_ff {model.d_ff:,}, "
            f"{model.num_heads} heads; {escaped(routing)}",
            "input": f"vocabulary {escaped(vocabulary)} with {model.vocab_size:,} entries; at most "
            f"{limits}",
        },
        data=data,
        data_id=_DATA_IDS.get(source.partition(":")[0], ""),
        split=config.evaluation.split if tuned else "held out",
        metrics=METRICS,
        hidden=("tokens", "unigram_entropy"),
        use=_USES[form].format(sample=_SAMPLE),
    )
