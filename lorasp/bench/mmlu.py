"""5-shot MMLU with the shared prefix run once, against lm-eval's `hf`: `lorasp bench mmlu`."""

import math
import random
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lorasp.bench import measure
from lorasp.data import tiny_models
from lorasp.data.generated import BAD, GOOD, NOUNS, VERBS, Row
from lorasp.data.mmlu import file_name
from lorasp.evaluation.mmlu import SHOTS, score, subject_tasks
from lorasp.evaluation.prefix_cache import PrefixCacheLM
from lorasp.evaluation.prefixes import common

ROUNDS = 3
SUBJECT = "anatomy"
# As the smallest subjects of MMLU have; their mean, 246, would favour the cache.
QUESTIONS = 100
# MMLU's means in tokens, and the standard deviation of a question's over its mean.
PREFIX, QUESTION, SPREAD = 495, 102, 0.5
# Wide and shallow, for matrix products to take the time that they take in a large model. The
# vocabulary is 2 % of the weights, as in LLaMA-7B: with more the cache, which seldom uses the
# head, would gain more.
SIZES = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 2048,
    "initializer_range": 0.05,  # wide enough for answers that differ clearly
}
BATCH_SIZES = (1, 4, 16)
# To find the one at which the peer is fastest. Its choices A to D are one row of a batch, so that
# so many questions fill two of the largest batches.
TRIAL = 2 * max(BATCH_SIZES)
TRIAL_ROUNDS = 2
ALLOWED = 1e-3  # between log-likelihoods
Answers = list[tuple[float, bool]]  # log-likelihood and is_greedy, four a question


def bench(
    rounds: int,
    cores: int,
    questions: int = QUESTIONS,
    trial: int = TRIAL,
    sizes: dict[str, Any] = SIZES,
) -> dict[str, Any]:
    """Time both models through lm-eval's own tasks and scoring, at the peer's best batch size."""
    torch.set_num_threads(cores)
    texts = tiny_models.generated_texts()
    tokenizer = tiny_models.train_tokenizer("llama", texts, tiny_models.VOCABULARY)
    model = random_llama(len(tokenizer), sizes)
    peer, ours = (
        partial(make, pretrained=model, tokenizer=tokenizer) for make in (HFLM, PrefixCacheLM)
    )
    with tempfile.TemporaryDirectory(prefix="lorasp-bench-") as folder:
        few = generated_tasks(Path(folder, "few"), tokenizer, trial)
        tasks = generated_tasks(Path(folder, "all"), tokenizer, questions)
    tried = measure.in_turn(
        {str(size): partial(asked, peer, few, size) for size in BATCH_SIZES},
        TRIAL_ROUNDS,
        warmup=0,  # the faster round counts
    )
    best = min(BATCH_SIZES, key=lambda size: min(tried[str(size)]))
    answers: dict[str, Answers] = {}

    def answer(name: str, make: partial[LM]) -> None:
        answers[name] = asked(make, tasks, best)

    seconds = measure.in_turn(
        {
            "lm-eval's hf": partial(answer, "hf", peer),
            "hf-prefix-cache": partial(answer, "hf-prefix-cache", ours),
        },
        rounds,
        warmup=0,  # that was the trial
    )
    prefix, rest = lengths(tasks, tokenizer)
    bound = (prefix * questions + sum(rest)) / (prefix + sum(rest))
    low, high = np.quantile(rest, (0.1, 0.9))
    what = (
        f"a subject of 5-shot MMLU with {questions} questions of random words: a prefix of "
        f"{prefix} tokens, and {np.mean(rest):.0f} more in a question, {low:.0f} to {high:.0f} in "
        f"the middle 80 %; a LLaMA with {model.num_parameters() / 1e6:.0f} M random weights in "
        f"fp32; batches of {best}, the fastest of {', '.join(map(str, BATCH_SIZES))} for hf in "
        f"the better of {TRIAL_ROUNDS} rounds of {trial} questions; {rounds} rounds on {cores} "
        f"cores. At one cost for every token the ratio would be {bound:.1f}, and "
        f"{1 + PREFIX / QUESTION:.1f} for a subject without end"
    )
    theirs, mine = seconds.values()
    each = {
        name: measure.quartiles([1000 * value / len(rest) for value in values])
        for name, values in seconds.items()
    }
    return measure.result(
        "mmlu",
        what,
        [{"case": "time of a question", "unit": "ms", "values": each}],
        {"mmlu.speed": measure.ratios(theirs, mine)},
        checks(answers["hf"], answers["hf-prefix-cache"]),
    )


def random_llama(vocabulary: int, sizes: dict[str, Any]) -> LlamaForCausalLM:
    """A LLaMA whose weights transformers draws under seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes)).eval()


def asked(make: partial[LM], tasks: dict[str, ConfigurableTask], batch_size: int) -> Answers:
    """The answers of a new model to all requests of some tasks, in their order."""
    score(make(batch_size=batch_size), tasks)
    return [request.resps[0] for task in tasks.values() for request in task.instances]


def generated_tasks(
    folder: Path, tokenizer: PreTrainedTokenizerBase, questions: int
) -> dict[str, ConfigurableTask]:
    """lm-eval's task of a subject with random questions of the lengths that MMLU's have."""
    rng = random.Random("bench mmlu")

    def size(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    title = f"The following are multiple choice questions (with answers) about {SUBJECT}.\n\n"
    frame = size(as_text(row(1, rng))) - 1  # the tokens of a question beside its own words
    shot = (PREFIX - size(title)) // SHOTS - size(" A\n\n") - frame
    sigma = math.sqrt(math.log(1 + SPREAD**2))
    drawn = [rng.lognormvariate(math.log(QUESTION) - sigma**2 / 2, sigma) for _ in range(questions)]
    words = {"dev": [shot] * SHOTS, "test": [max(1, round(tokens) - frame) for tokens in drawn]}
    (folder / SUBJECT).mkdir(parents=True)
    for split, counts in words.items():
        rows = Dataset.from_list([row(count, rng) for count in counts])
        rows.to_parquet(folder / file_name(f"{SUBJECT}/{split}"))
    return subject_tasks(folder)


def row(words: int, rng: random.Random) -> Row:
    """A question of so many words with choices of two words each, in MMLU's columns."""
    known = [*NOUNS, *VERBS, *GOOD, *BAD]
    choices = [" ".join(rng.choices(known, k=2)) for _ in range(4)]
    question = " ".join(rng.choices(known, k=words))
    return {"question": question, "choices": choices, "answer": rng.randrange(4)}


def as_text(question: Row) -> str:
    """A question as MMLU's prompts have it, up to its answer."""
    choices = "\n".join(
        f"{letter}. {text}" for letter, text in zip("ABCD", question["choices"], strict=True)
    )
    return f"{question['question']}\n{choices}\nAnswer:"


def lengths(
    tasks: dict[str, ConfigurableTask], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, list[int]]:
    """Tokens of the prefix of a subject, and those of each of its questions after it."""
    requests = tasks[SUBJECT].instances
    prompts = sorted(tokenizer(request.args[0]).input_ids for request in requests[::4])
    prefix = common(prompts[0], prompts[-1])
    return prefix, [len(prompt) - prefix for prompt in prompts]


def checks(theirs: Answers, ours: Answers) -> list[dict[str, Any]]:
    """Whether both have found the same: what they compute, choose, and hold for greedy."""
    one, other = (np.array(answers).reshape(-1, 4, 2) for answers in (theirs, ours))
    (one, greedy_one), (other, greedy_other) = (
        (answers[..., 0], answers[..., 1]) for answers in (one, other)
    )
    furthest = float(np.abs(one - other).max())
    ordered = np.sort(one)
    margin = float((ordered[:, 3] - ordered[:, 2]).min())
    chosen = one.argmax(1)
    unlike = int((chosen != other.argmax(1)).sum())
    letters = ", ".join(f"{letter} {(chosen == n).sum()}" for n, letter in enumerate("ABCD"))
    greedy = int((greedy_one != greedy_other).sum())
    return [
        {
            "what": f"log-likelihoods of {one.size} choices in fp32",
            "found": f"they differ by {furthest:.1e} at most",
            "allowed": f"{ALLOWED:g}",
            "met": furthest <= ALLOWED,
        },
        {
            "what": f"predictions for {len(one)} questions ({letters})",
            "found": f"{unlike} differ; the closest two choices lie {margin:.1e} apart",
            "allowed": "none",
            "met": unlike == 0,
        },
        {
            "what": "which choices the model would write itself",
            "found": f"{greedy} differ",
            "allowed": "none",
            "met": greedy == 0,
        },
    ]
