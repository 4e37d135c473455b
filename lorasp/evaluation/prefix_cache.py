"""An lm-eval model that runs what prompts share once: `python -m lorasp.evaluation.prefix_cache`.

The command is `lm_eval` itself with `hf-prefix-cache` among its models; docs/mmlu.md has examples.
"""

import inspect
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from torch.nn.functional import log_softmax
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lorasp.evaluation.prefixes import passes, shared_prefixes

# A pass through a model costs as much as so many tokens more than it has, for its launches and the
# weights that it reads: measured on a CPU (100 tokens take 1.6 times as long each as 800), a guess
# for accelerators.
OVERHEAD = {"cpu": 64}
OVERHEAD_ELSEWHERE = 512
# Of the first answers with and without a cache, as `near` compares them.
TOLERANCE = 1e-4
TOLERANCE_OF = {torch.float16: 0.02, torch.bfloat16: 0.1}
# The frequencies of these rotary embeddings depend on the length of the whole sequence.
ROPE_BY_LENGTH = {"dynamic", "longrope"}
log = logging.getLogger(__name__)

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[float, bool]


class Question(NamedTuple):
    """What the model reads, and the requests that are answered from its last `scored` outputs."""

    tokens: tuple[int, ...]
    scored: int
    requests: list[int]


class SharedLayer(DynamicLayer):
    """Keys and values of one prefix for every row of a batch; what follows it is not kept."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        # each (1, heads, length of the prefix, size)
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prefix and new states, (batch, heads, length, size)."""
        pairs = ((self.keys, key_states), (self.values, value_states))
        keys, values = (
            torch.cat([prefix.expand(len(new), -1, -1, -1), new], dim=-2) for prefix, new in pairs
        )
        return keys, values


@register_model("hf-prefix-cache")
class PrefixCacheLM(HFLM):
    """lm-eval's `hf` model, with the same arguments and answers, for prompts that share prefixes.

    The keys and values of a token prefix that many prompts share are computed once; the rest of
    the prompts runs on them in batches, and only the outputs that a continuation is scored by go
    through the model's head. Whatever would gain nothing, or cannot be cached exactly, is left to
    `hf`: short or rare prefixes, encoder-decoders, recurrent states, prompt tuning, rotary
    embeddings that depend on the length, a model whose first answers differ, and several processes:
    what they exchange must happen equally often in each.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._agrees: bool | None = None  # with `hf`: found out with the first group of questions
        self._overhead = OVERHEAD.get(self.device.type, OVERHEAD_ELSEWHERE)
        # lm-eval encodes a context once for each choice, with the whole prompt in between
        self.tok_encode = lru_cache(maxsize=2)(super().tok_encode)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """Log-likelihood of each continuation, and whether it is what the model would write."""
        found: dict[int, Answer] = {}
        if (
            self.world_size == 1
            and self._agrees is not False
            and self.backend == "causal"
            and can_share(self.model)
        ):
            found = self._shared(requests, disable_tqdm, override_bs)
        rest = [index for index in range(len(requests)) if index not in found]
        if rest:
            asked = [requests[index] for index in rest]
            answers = super()._loglikelihood_tokens(asked, disable_tqdm, override_bs)
            found.update(zip(rest, answers, strict=True))
        return [found[index] for index in range(len(requests))]

    def _shared(
        self, requests: list[Request], disable_tqdm: bool, override_bs: int | None
    ) -> dict[int, Answer]:
        """The answers of those requests for which sharing a prefix pays."""
        questions = questions_of(requests, self.max_length)
        size = override_bs or self.batch_size
        if size == "auto" and questions:
            longest = max(requests, key=lambda request: len(request[1]) + len(request[2]))
            size = self._detect_batch_size([longest])
        groups = shared_prefixes(
            [question.tokens for question in questions],
            [len(question.tokens) - question.scored for question in questions],
            self._overhead,
        )
        found: dict[int, Answer] = {}
        bar = tqdm(
            total=sum(len(questions[at].requests) for group in groups for at in group.members),
            disable=disable_tqdm or self.rank != 0 or not groups,
            desc="Running loglikelihood requests with shared prefixes",
        )
        for length, members in groups:
            for batch, scores in self._batches([questions[at] for at in members], length, size):
                for index, answer in answers_of(batch, scores, requests).items():
                    found[index] = answer
                    if requests[index][0] is not None:  # None: a window of loglikelihood_rolling
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
                    bar.update()
        bar.close()
        return found

    def _batches(
        self, questions: list[Question], length: int, size: int
    ) -> Iterator[tuple[list[Question], torch.Tensor]]:
        """Batches of questions whose first `length` tokens are the same, with their `_scores`.

        Yields nothing where the model's cache has been found not to be exact.
        """
        if self._agrees is False:
            return
        # The shortest question runs whole, and leaves what the others need. Without the model's
        # configuration a cache keeps all keys of a layer, even if it sees only a window of them.
        shortest, *others = sorted(questions, key=lambda question: len(question.tokens))
        whole = DynamicCache()
        scores = self._scores([shortest], whole)
        cache = cropped(whole, length)
        if self._agrees is None:
            # One that goes on differently too: in a model that looks ahead, the shortest question
            # has left keys that are right for itself alone.
            after = shortest.tokens[length]
            other = next((one for one in others if one.tokens[length] != after), others[0])
            again = self._scores([shortest, other], cache, length)
            dtype = self.mixed_precision_dtype or self.model.dtype
            tolerance = TOLERANCE_OF.get(dtype, TOLERANCE)
            self._agrees = near(again[: len(scores)], scores, tolerance) and near(
                again[len(scores) :], self._scores([other], DynamicCache()), tolerance
            )
            if not self._agrees:
                log.warning("this model's cache is not exact: hf-prefix-cache runs it as hf does")
                return
        yield [shortest], scores
        # A pass has no more tokens than `size` whole prompts, and a layer, where the prefix is
        # copied for each row, no more keys than all layers have for these prompts. The longest come
        # first: if memory is short, it shows at once.
        others.reverse()
        tails = [len(question.tokens) - length for question in others]
        tokens = size * (length + tails[0])
        keys = tokens * len(cache.layers)
        for part in passes(tails, length, tokens, keys, self._overhead):
            yield others[part], self._scores(others[part], cache, length)

    def _scores(
        self, questions: Sequence[Question], cache: DynamicCache, skipped: int = 0
    ) -> torch.Tensor:
        """Log-probabilities (n, vocabulary) at all n scored places, one question after another.

        Args:
            cache: of the first `skipped` tokens; an empty one is filled.
        """
        tails = [torch.tensor(question.tokens[skipped:]) for question in questions]
        rows: list[int] = []
        places: list[int] = []
        for row, (tail, question) in enumerate(zip(tails, questions, strict=True)):
            rows += [row] * question.scored
            places += range(len(tail) - question.scored, len(tail))
        # padding comes last, where no token that is scored can see it
        tokens = pad_sequence(tails, batch_first=True).to(self.device)
        with (
            torch.no_grad(),
            torch.autocast(
                device_type=self.device.type,
                dtype=self.mixed_precision_dtype,
                enabled=self.mixed_precision_dtype is not None,
            ),
            only_these(self.model.get_output_embeddings(), rows, places),
        ):
            seen = self.model(input_ids=tokens, past_key_values=cache, use_cache=True)
        return log_softmax(seen.logits[0], dim=-1, dtype=self.softmax_dtype)


def answers_of(
    questions: Sequence[Question], scores: torch.Tensor, requests: Sequence[Request]
) -> dict[int, Answer]:
    """The answers, by request, that the scores of some questions hold."""
    rows: list[int] = []
    targets: list[int] = []
    spans, end = {}, 0
    for question in questions:
        end += question.scored
        for index in question.requests:
            continuation = requests[index][2]
            spans[index] = slice(len(targets), len(targets) + len(continuation))
            rows += range(end - len(continuation), end)
            targets += continuation
    places = torch.tensor(rows, device=scores.device)
    wanted = torch.tensor(targets, device=scores.device)
    likelihoods = scores[places, wanted].tolist()
    greedy = (scores.argmax(-1)[places] == wanted).tolist()
    return {index: (sum(likelihoods[span]), all(greedy[span])) for index, span in spans.items()}


def cropped(cache: DynamicCache, length: int) -> DynamicCache:
    """The first `length` tokens of a cache, for any number of sequences that go on from them."""
    shared = DynamicCache()
    # clones, or the rest would be kept alive with them
    shared.layers = [
        SharedLayer(*(states[..., :length, :].clone() for states in (keys, values)))
        for keys, values, _ in cache
    ]
    return shared


def near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> bool:
    """Whether log-probabilities differ by less than a share of their standard deviation."""
    if ours.shape != theirs.shape:  # the head did not see what it was given
        return False
    difference = (ours.float() - theirs.float()).abs().mean() / theirs.float().std()
    return bool(difference <= tolerance)


def can_share(model: PreTrainedModel | PeftModel) -> bool:
    """Whether keys and values of a prefix are all that a model needs to know of it."""
    base: Any = model
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:  # its own tokens come before the prefix
            return False
        base = model.get_base_model()
    if "past_key_values" not in inspect.signature(base.forward).parameters:
        return False
    config = base.config.get_text_config(decoder=True)
    if getattr(config, "attention_chunk_size", None) or ROPE_BY_LENGTH & rope_types(config):
        return False
    layers = DynamicCache(config=config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return plain and base.get_output_embeddings() is not None


def rope_types(config: PretrainedConfig) -> set[str]:
    """The kinds of rotary embeddings of a model: one, one for each kind of layer, or none."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return {kind["rope_type"] for kind in kinds if "rope_type" in kind}


def questions_of(requests: Sequence[Request], window: int) -> list[Question]:
    """The distinct inputs of some requests, cut from the left to the `window` as `hf` does.

    Choices of one token after the same context are one question.
    """
    asked: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (_, context, continuation) in enumerate(requests):
        # 'hf' has its own words for what cannot be asked
        if context and 0 < len(continuation) <= window:
            asked[tuple((context + continuation)[-(window + 1) : -1])].append(index)
    return [
        Question(tokens, max(len(requests[index][2]) for index in indices), indices)
        for tokens, indices in asked.items()
    ]


@contextmanager
def only_these(head: torch.nn.Module, rows: list[int], places: list[int]) -> Iterator[None]:
    """Let a model's head see only some of its inputs: (batch, length, n) becomes (1, some, n)."""

    def select(_: torch.nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (given[0][rows, places][None],)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
