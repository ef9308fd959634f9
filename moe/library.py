"""Models by name, and trained runs as Python objects: `moe.create_model`, `moe.load`."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from moe import models
from moe.models.transformer import Transformer
from moe.routing.config import RoutingConfig
from trainlib import extension, paths
from trainlib.errors import DataError, shown

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from moe.decoding.answer import Answerer, Scored
    from moe.decoding.generate import DecodingOptions
    from moe.decoding.waiting import Question
    from moe.models.architecture import Architecture
    from moe.text.vocabulary import Vocabulary
    from trainlib.step.plan import Plan


def list_models(pattern: str = "") -> list[str]:
    """Returns the names that `create_model` takes and that contain `pattern`, in which `*` and `?`
    stand for other letters; sorted. `moe.models.sizes` has their sources.

    Example:
      >>> moe.list_models("st_moe")
      ['st_moe_32b', 'st_moe_base', 'st_moe_l', 'st_moe_tiny']
    """
    return sorted(name for name in models.SIZES if fnmatch.fnmatchcase(name, f"*{pattern}*"))


def create_model(
    name: str,
    *,
    rngs: nnx.Rngs | None,
    routing: Mapping[str, Any] | RoutingConfig | None = None,
    **overrides: Any,
) -> Transformer:
    """A model by its name, as a module of Flax.

    It takes encoder and decoder tokens and gives logits and the losses of its routers, under
    `nnx.jit` and with `nnx.Optimizer` as any other module; see `moe.Transformer`.

    Example:
      >>> model = moe.create_model("st_moe_tiny", rngs=nnx.Rngs(0), routing={"num_experts": 8})
      >>> decoder_inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))  # shifted right, 0 begins
      >>> out = model(encoder_inputs, decoder_inputs, train=True, key=jax.random.key(1))
      >>> losses = optax.softmax_cross_entropy_with_integer_labels(out.logits, targets)
      >>> loss = losses.mean() + out.auxiliary_loss

    Args:
      name: one of `list_models()`.
      rngs: keys of the weights, which are made at once on the default device; None makes no array
        and leaves the weights abstract, for counts and sharded initialisation.
      routing: options of the router that differ, by the names of `moe.RoutingConfig`, or a whole
        `RoutingConfig`; num_experts=0 makes every block dense.
      **overrides: fields of `moe.Architecture` that differ, such as vocab_size, encoder_blocks,
        dropout or dtype.

    Raises:
      ConfigError: an unknown name or option (names the nearest), or values that cannot work.
    """
    if isinstance(routing, RoutingConfig):
        routing = {f.name: getattr(routing, f.name) for f in dataclasses.fields(routing)}
    return Transformer(models.named(name, routing, **overrides), rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one text; the fields are those of a line that `launch.predict` writes.

    Attributes:
      text: the answer; the likeliest, or the first that was drawn, where there are several.
      score: its log-probability, the end of the sequence included.
      truncated: the text lost its end, since it is longer than data.encoder_length.
      unfinished: the answer ends because no more tokens were allowed.
      all: every answer, `text`, `cut` (unfinished), `score` and `rank_score` of each: as many as
        num_return_sequences, and fewer where so many beams did not end within max_length.
    """

    text: str
    score: float
    truncated: bool
    unfinished: bool
    all: tuple[Scored, ...]


class LoadedModel:
    """A trained model with its vocabulary; see `moe.load`.

    Attributes:
      config: the configuration of the run.
      step: of the weights.
      model: the encoder-decoder with the trained weights, a module of Flax. What `answer` and
        `score` use are the weights as they were loaded.
    """

    def __init__(
        self, plan: Plan[Architecture], weights: Mapping[str, jax.Array], step: int, origin: Path
    ):
        self.config: ConfigDict = plan.config
        self.step = step
        self._plan, self._weights, self._origin = plan, dict(weights), origin
        self.model: Transformer = plan.abstract.bind(self._weights, {})
        self._answerers: dict[tuple, Answerer] = {}
        self._warned = False

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """What texts are written in: `encode(text)` gives int32 ids without EOS, `decode(ids)` the
        text. It is read when it is first needed.

        Raises:
          DataError: its file cannot be read, or it has more ids than the model.
          ConfigError: the package sentencepiece is needed and not installed.
        """
        from moe.data import check_vocabulary, make_vocabulary

        vocabulary = make_vocabulary(self.config.data)
        check_vocabulary(vocabulary, self._plan.model.vocab_size)
        return vocabulary

    def __repr__(self) -> str:
        return f"LoadedModel({str(self._origin)!r}, step={self.step})"

    def answer(
        self, texts: Iterable[str], *, batch_size: int = 0, **options: Unpack[DecodingOptions]
    ) -> list[Answer]:
        """Answers texts, in their order: those that `launch.predict` gives to the same lines.

        Example:
          >>> answers = moe.load("runs/superglue").answer(["copa premise: The glass fell. .."])
          >>> best = loaded.answer(texts, num_beams=4, num_return_sequences=2, max_length=16)
          >>> print(best[0].text, best[0].score, [other.text for other in best[0].all])

        A run of pre-training answers as well: after span corruption with what would fill gaps, the
        words that it gives between sentinels, put together; as a prefix language model with how
        the text goes on. It says so once as a warning.

        Args:
          texts: what the encoder reads, in the form in which the run was trained, such as "rte
            hypothesis: .. premise: ..".
          batch_size: texts that are decoded together; 0 takes that of the run's evaluation. Answers
            do not depend on it in a fine-tuned run, whose groups of the router are one sequence.
            With larger groups the encoder's experts may drop other tokens.
          **options: of decoding, in place of those of the run; see `moe.generate`. Draws follow
            from `seed` and from the number of a text in the list.

        Raises:
          DataError: no list of texts, or one that is empty; or the vocabulary cannot be read.
          ConfigError: an option that cannot work, or a model without a decoder.
          NumericAbort: the model gives NaN.
        """
        given = _texts(texts)
        if self.config.task != "finetune" and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._origin} was pre-trained ({self.config.data.objective}) and not fine-tuned "
                "on questions: its answers are what it would fill into gaps, or how it goes on.",
                stacklevel=2,
            )
        answerer = self._answerer(batch_size, options)
        questions = _questions(answerer, given, [()] * len(given))
        found = answerer.search(self._weights, questions)
        return [
            Answer(answers[0].text, answers[0].score, question.cut, answers[0].cut, tuple(answers))
            for question, answers in zip(questions, found, strict=True)
        ]

    def score(
        self,
        texts: Iterable[str],
        candidates: Sequence[str] | Sequence[Sequence[str]],
        *,
        batch_size: int = 0,
    ) -> list[np.ndarray]:
        """The log-probability of given answers, without decoding.

        Example:
          >>> scores = loaded.score(["rte hypothesis: .."], ["entailment", "not_entailment"])
          >>> chosen = scores[0].argmax()

        Args:
          texts: as of `answer`.
          candidates: answers for every text, or a list of them for each text.
          batch_size: as of `answer`.

        Returns:
          For each text float32 [candidates]: the sum of the log-probabilities of the tokens of each
          candidate, EOS included; the `score` that `answer` gives the same words.

        Raises:
          DataError: no list of texts, an empty one, or no candidates for one.
        """
        given = _texts(texts)
        if not given:
            return []
        if candidates and all(isinstance(candidate, str) for candidate in candidates):
            candidates = [candidates] * len(given)  # pyright: ignore[reportAssignmentType]
        if len(candidates) != len(given) or not all(candidates):
            raise DataError(
                f"{len(given)} texts and {len(candidates)} lists of candidates: give every text a "
                "list of at least one, or one list of texts that serves all."
            )
        answerer = self._answerer(batch_size, {})
        questions = _questions(answerer, given, candidates)
        return list(answerer.scores(self._weights, questions))

    def _answerer(self, batch_size: int, options: Mapping[str, Any]) -> Answerer:
        """Compiled searches, shared by calls with the same options."""
        from moe.decoding.answer import Answerer
        from moe.decoding.generate import with_options
        from moe.decoding.model import Decoding

        decoding = with_options(Decoding(**self.config.decoding.to_dict()), options)
        key = (batch_size, decoding)
        if key not in self._answerers:
            config = self.config.copy_and_resolve_references()
            config.decoding.update(dataclasses.asdict(decoding))
            plan = dataclasses.replace(self._plan, config=config)
            self._answerers[key] = Answerer(plan, self.vocabulary, batch_size)
        return self._answerers[key]


def _texts(given: Iterable[str]) -> list[str]:
    """Texts as a list, whatever they come in.

    Raises:
      DataError: see `LoadedModel.answer`.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise DataError(
            f"Texts come as a list, such as ['rte hypothesis: ..'], and not as "
            f"{shown(repr(given), 60)}."
        )
    texts = list(given)
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"texts[{number}] is {shown(repr(text), 60)}: every entry is a text that is not "
                "empty."
            )
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError(
                f"texts[{number}] is {shown(repr(text), 60)}: it holds half of a character."
            )
    return texts


def _questions(
    answerer: Answerer, texts: Sequence[str], candidates: Sequence[Any]
) -> list[Question]:
    """Texts as tokens."""
    pairs = zip(texts, candidates, strict=True)
    return [answerer.question(text, n, answers) for n, (text, answers) in enumerate(pairs)]


def load(
    directory: str | os.PathLike[str],
    step: int | None = None,
    *,
    mesh: Mesh | None = None,
    trust_code: Sequence[str] = (),
) -> LoadedModel:
    """Reads a trained model: the workdir of a training or an import, or an export in our own names.

    Args:
      directory: it holds config.json, and checkpoints or safetensors.
      step: of the checkpoints; None is the newest.
      mesh: of `trainlib.sharding.mesh.make_mesh`, to lay the weights over several devices by the
        rules of the run; None takes one device, or the mesh of the configuration in a job of
        several processes.
      trust_code: modules that the configuration of the run may import, for policies and tasks of
        your own (`routing.second_policy=my_policies:TOP_P`); see `trainlib.extension.trust`.

    Raises:
      ConfigError: no run of this family there, a step of an export, or the configuration names code
        that nobody trusts.
      CheckpointError: there is no checkpoint, or not that one, or it is damaged.

    Example:
      >>> loaded = moe.load("runs/superglue")
      >>> loaded.answer(["copa premise: The glass fell. .."])[0].text
      'True'
      >>> out = loaded.model(encoder_inputs, decoder_inputs)  # a module of Flax
    """
    extension.trust(*trust_code)
    from moe import plan as plan_lib
    from moe.config import schema
    from trainlib.formats.load import load_weights, saved_config
    from trainlib.sharding.mesh import make_mesh

    directory = paths.resolve(directory, "directory")
    config = saved_config(directory, "moe", schema)
    if mesh is None and jax.process_count() == 1:
        mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    plan = plan_lib.make(config, mesh)
    loaded = load_weights(directory, step, plan.abstract, plan.shardings)
    return LoadedModel(plan, loaded.weights, loaded.step, directory)
