"""Decoding with experts, E = 8 to 128, batch 1 and 8: Switch against `transformers`, and top-2.

Letters: B sequences, D model width, F hidden width of an expert, E experts, K choices.

The first part is greedy decoding of a Switch model whose decoder is sparse in every other block,
the same weights on both sides; the same words must come out of both before anything is timed. The
second is one layer of ST-MoE (top-2, GEGLU) on one token of each sequence, against the loop over
the experts that were chosen of the Mixtral of `transformers`, in its layout of weights; outputs
must agree. Each part also states the cost of 128 experts over that of 8. Of 8 tokens that choose
at random, about 5 experts of 8 and 8 of 128 have some, with two choices 7 and 15: no more than that
can be read once, so the layer prints what it costs for each expert that was chosen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.harness import goals, timing, torch_vision

EXPERTS, BATCHES = (8, 128), (1, 8)
MOST, MOST_OF_A_LOOP, MOST_GROWTH = 0.7, 0.95, 1.3
MODEL = {
    **{"vocab_size": 4096, "d_model": 512, "d_ff": 1024, "num_heads": 8, "head_dim": 64},
    **{"encoder_blocks": 4, "decoder_blocks": 4, "sparse_period": 2, "sparse_stacks": "decoder"},
    **{"activation": "relu", "extra_ffn": "none", "dtype": "float32", "remat": "none"},
}
TINY = {"vocab_size": 64, "d_model": 16, "d_ff": 24, "num_heads": 2, "head_dim": 8}
ROUTING = {"top_k": 1, "normalize_gates": False, "group_sequences": 1}
PAD, EOS = 0, 1

Call = Callable[[], Any]


def switch(sizes: dict[str, Any], experts: int, length: int) -> dict[str, tuple[Call, Call]]:
    """Case -> (ours, theirs), each a call that returns words int [B, length]."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    import transformers

    from moe.decoding.model import Decoding, decoding_model, make_generate
    from moe.interop import hf
    from moe.models import architecture
    from trainlib.formats import layout as interchange

    model = architecture(sizes, ROUTING | {"num_experts": experts})
    names = hf.layout(model, lengths={"encoder": 64, "decoder": length})
    random = np.random.default_rng(0)
    params, theirs = {}, {}
    for name, spec in decoding_model(model).params.items():
        scale = 1.0 if name.endswith(("scale", "table")) else spec.shape[-2] ** -0.5
        if name.endswith("query"):  # as T5 begins; sharper attention would amplify rounding
            scale *= sizes["head_dim"] ** -0.5
        value = scale * random.standard_normal(spec.shape, np.float32)
        if name == "output.kernel":
            value[:, [PAD, EOS]] = 0  # no answer ends
        params[name] = jnp.asarray(value)
        given = interchange.give(names.by_leaf(written=True)[name], value, None)
        theirs |= {n: torch.from_numpy(np.ascontiguousarray(piece)) for n, piece in given}
    config = transformers.SwitchTransformersConfig(**json.loads(names.files["config.json"]))
    with torch.device("meta"):
        peer: Any = transformers.SwitchTransformersForConditionalGeneration(config)
    peer.eval()
    peer.load_state_dict(theirs, assign=True)
    peer.generation_config.decoder_start_token_id = PAD

    search = jax.jit(make_generate(model, Decoding(), length, sizes["vocab_size"]))
    cases = {}
    for batch in BATCHES:
        words = random.integers(2, sizes["vocab_size"], (batch, 16), dtype=np.int32)
        inputs = {"encoder_inputs": words, "encoder_segments": np.ones_like(words)}

        def ours(inputs=inputs) -> Any:
            return np.asarray(search(params, {}, inputs)["words"])

        def other(words=words) -> Any:
            with torch.inference_mode():
                ids = torch.from_numpy(words).long()
                found = peer.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=length,
                    do_sample=False,
                )
            return found[:, 1:].numpy()

        cases[f"Switch, E {experts}, batch {batch}"] = ours, other
    return cases


def layers(sizes: dict[str, Any], experts: int, steps: int) -> dict[str, tuple[Call, Call, float]]:
    """Case -> (ours, a loop of torch, experts chosen in a step), each a call that returns outputs
    [steps, B, D] of inputs that change from step to step.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    from moe.layers.sparse import SparseFFN
    from moe.routing.config import RoutingConfig
    from trainlib.model import weights as nn

    routing = RoutingConfig(
        experts, capacity_factor_eval=float(experts), min_capacity=1, group_sequences=1
    )
    width, hidden = sizes["d_model"], sizes["d_ff"]
    layer = nn.abstract(SparseFFN(width, hidden, routing))
    random = np.random.default_rng(0)
    params, wide = {}, {}
    for name, spec in layer.params.items():
        value = spec.shape[-2] ** -0.5 * random.standard_normal(spec.shape, np.float32)
        params[name] = jnp.asarray(value if name == "router" else value[None])
        wide[name] = torch.from_numpy(np.ascontiguousarray(value.swapaxes(-1, -2)))
    into = torch.cat((wide["gate"], wide["up"]), dim=1)  # [E, 2 F, D], as Mixtral has it
    linear = torch.nn.functional.linear

    def loop(x: torch.Tensor) -> torch.Tensor:
        """[B, D] -> [B, D]."""
        probabilities = linear(x, wide["router"]).softmax(-1)
        gates, chosen = probabilities.topk(2)
        gates = gates / gates.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            token, choice = torch.where(chosen == expert)
            gate, up = linear(x[token], into[expert]).chunk(2, dim=-1)
            h = torch.nn.functional.gelu(gate, approximate="tanh") * up
            out = linear(h, wide["down"][expert])
            y.index_add_(0, token, out * gates[token, choice, None])
        return y

    one = jax.jit(lambda params, x: layer.bind(params, {})(x[:, None], period=0)[0][:, 0])
    cases = {}
    for batch in BATCHES:
        x = random.standard_normal((steps, batch, width), np.float32)
        best = np.argsort(-(x @ np.asarray(params["router"])), axis=-1)[..., :2]
        chosen = float(np.mean([len(np.unique(step)) for step in best]))
        parts = [jnp.asarray(step) for step in x]

        def ours(parts=parts) -> Any:
            return np.stack([np.asarray(one(params, part)) for part in parts])

        def theirs(x=x) -> Any:
            with torch.inference_mode():
                return np.stack([loop(step).numpy() for step in torch.from_numpy(x)])

        cases[f"a top-2 layer, E {experts}, batch {batch}"] = ours, theirs, chosen
    return cases


def measured(title: str, peer: str, most: float, cases: dict[str, tuple], rounds: int) -> int:
    """Compares and times cases of one kind; returns the exit code."""
    import numpy as np

    candidates, limits = {}, []
    for name, (ours, theirs, *_) in cases.items():
        found, expected = ours(), theirs()
        if not np.allclose(found, expected, atol=2e-5):
            sys.exit(f"{name}: ours and that of {peer} differ\n{found}\n{expected}")
        candidates |= {f"ours, {name}": ours, f"{peer}, {name}": theirs}
        limits.append(goals.Goal(f"ours, {name}", f"{peer}, {name}", most))
    kind = next(iter(cases)).split(", E ")[0]
    times = timing.fastest(candidates, rounds)
    for batch in BATCHES:
        growing = []
        for experts in EXPERTS:
            name = f"{kind}, E {experts}, batch {batch}"
            growing.append(f"ours, {name}")
            if len(cases[name]) > 2:  # a layer alone: what each expert costs that was chosen
                count = cases[name][2]
                growing[-1] = f"for each of {count:.1f} experts, {name}"
                times[growing[-1]] = times[f"ours, {name}"] / count
        limits.append(goals.Goal(growing[1], growing[0], MOST_GROWTH))
    return goals.report(title, times, limits)


def main() -> int:
    """Prints the row; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=24, help="words of an answer")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, for tests")
    options = parser.parse_args()
    timing.need_peers("torch", "transformers")
    timing.pin_one_thread()
    import torch

    torch.set_num_threads(1)
    torch_vision.prepare()  # which transformers imports where it is installed
    print(timing.header(("jax", "jaxlib", "torch", "transformers")))
    sizes = MODEL | (TINY if options.tiny else {})
    code = 0
    for title, peer, most, make in (
        ("greedy decoding of a Switch model", "transformers", MOST, switch),
        ("one sparse layer in decoding", "a loop in torch", MOST_OF_A_LOOP, layers),
    ):
        cases: dict[str, tuple] = {}
        for experts in EXPERTS:
            cases |= make(sizes, experts, options.length)
        shape = f"D {sizes['d_model']}, F {sizes['d_ff']}, {options.length} steps, float32"
        code |= measured(f"{title}, {shape}", peer, most, cases, options.rounds)
    return code


if __name__ == "__main__":
    sys.exit(main())
