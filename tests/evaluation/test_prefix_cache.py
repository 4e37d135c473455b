"""The model that runs shared prefixes once, against lm-eval's own `hf` model and brute force."""

import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lorasp import LoraSpConfig
from lorasp.data.tiny_models import train_tokenizer
from lorasp.evaluation import prefix_cache
from lorasp.evaluation.prefix_cache import PrefixCacheLM, can_share

VOCABULARY, WINDOW = 300, 96
Requests = list[tuple[tuple[str, str], list[int], list[int]]]
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "max_position_embeddings": WINDOW,
    "initializer_range": 0.3,  # so that an answer depends on all that was read
}
SHORTER: dict[str, Any] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": WINDOW}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, initializer_range=0.3)),
    "mistral, a window of 16": lambda: MistralForCausalLM(
        MistralConfig(**SIZES, sliding_window=16)
    ),
    "qwen2, a window in one layer": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=16)),
    "gemma3, looking ahead": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, head_dim=16, use_bidirectional_attention=True)
    ),
    "bert, looking ahead": lambda: BertLMHeadModel(BertConfig(**SIZES, is_decoder=False)),
    "rope by length": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=SHORTER)),
    "mamba": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    ),
}
UNCACHED = ("rope by length", "mamba")
LOOKING_AHEAD = ("gemma3, looking ahead", "bert, looking ahead")


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["one two three four", "the cat sees the river", "A B C D"]
    return train_tokenizer("llama", words, VOCABULARY)


@cache
def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def answered(make: type[HFLM], model: Any, requests: Requests, **settings: Any) -> list:
    settings = {"batch_size": 4} | settings
    lm = make(pretrained=model, tokenizer=tokenizer(), **settings)
    return lm._loglikelihood_tokens(requests, disable_tqdm=True)


def assert_same(model: Any, requests: Requests, within: float = 1e-4, **settings: Any) -> None:
    # with its own cache of logits, 'hf' reads the wrong places where one of two choices with the
    # same tokens scores more of them
    settings = {"logits_cache": False} | settings
    expected = answered(HFLM, model, requests, **settings)
    found = answered(PrefixCacheLM, model, requests, **settings)
    assert [answer[0] for answer in found] == pytest.approx(
        [answer[0] for answer in expected], abs=within
    )
    assert [answer[1] for answer in found] == [answer[1] for answer in expected]


def made(
    seed: int,
    prefixes: tuple[int, ...] = (50, 40),
    questions: int = 6,
    continuation: int = 5,
) -> Requests:
    """Questions after prefixes of these lengths: half with letters, half with longer choices."""
    rng = random.Random(seed)

    def tokens(size: int) -> list[int]:
        return [rng.randrange(4, VOCABULARY) for _ in range(size)]

    requests = []
    for length in prefixes:
        prefix = tokens(length)
        for number in range(questions):
            context = prefix + tokens(rng.randint(1, 20))
            for letter in range(3):
                size = rng.randint(1, continuation)
                choice = [4 + letter] if number % 2 else tokens(size)
                requests.append(((str(context), str(choice)), context, choice))
            # the same tokens, of which one more is scored
            moved = [context[-1], *choice]
            requests.append(((str(context), str(moved)), context[:-1] or [4], moved))
    rng.shuffle(requests)
    return requests


class Counted:
    """Tokens that a model was given, and rows that its head turned into logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.tokens = self.rows = 0
        self.hooks = [
            model.get_input_embeddings().register_forward_hook(self.given),
            model.get_output_embeddings().register_forward_hook(self.read),
        ]

    def given(self, _: Any, inputs: tuple[torch.Tensor], __: Any) -> None:
        self.tokens += inputs[0].numel()

    def read(self, _: Any, __: Any, logits: torch.Tensor) -> None:
        self.rows += logits.shape[:-1].numel()

    def stop(self) -> tuple[int, int]:
        for hook in self.hooks:
            hook.remove()
        return self.tokens, self.rows


def spent(make: type[HFLM], model: Any, requests: Requests) -> tuple[int, int]:
    counted = Counted(model)
    answered(make, model, requests)
    return counted.stop()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10**6),
    prefixes=st.lists(st.integers(0, 70), min_size=1, max_size=4).map(tuple),
    questions=st.integers(1, 9),
    continuation=st.integers(1, 12),
    batch_size=st.integers(1, 9),
    overhead=st.sampled_from([0, 8, 64]),
)
def test_answers_equal_those_of_hf(
    seed: int,
    prefixes: tuple[int, ...],
    questions: int,
    continuation: int,
    batch_size: int,
    overhead: int,
) -> None:
    requests = made(seed, prefixes, questions, continuation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(prefix_cache.OVERHEAD, "cpu", overhead)
        assert_same(model_of("llama"), requests, batch_size=batch_size)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in LOOKING_AHEAD])
def test_other_architectures_are_right_or_left_alone(name: str) -> None:
    model, requests = model_of(name), made(1)
    assert can_share(model) == (name not in UNCACHED)
    assert_same(model, requests)
    cached, whole = spent(PrefixCacheLM, model, requests), spent(HFLM, model, requests)
    assert cached == whole if name in UNCACHED else cached[0] < whole[0] / 2


@pytest.mark.parametrize("name", LOOKING_AHEAD)
def test_models_that_look_ahead_are_found_out(name: str, caplog: pytest.LogCaptureFixture) -> None:
    # all of one length: that they see the padding of a batch too would give them away
    prefix = list(range(10, 60))
    requests = [((str(n), "A"), [*prefix, *range(n, n + 10)], [4]) for n in range(100, 112)]
    assert can_share(model_of(name))
    with caplog.at_level(logging.WARNING):
        assert_same(model_of(name), requests)
    assert "not exact" in caplog.text


def test_several_processes_run_as_in_hf() -> None:
    model, requests = model_of("llama"), made(1)
    lm = PrefixCacheLM(pretrained=model, tokenizer=tokenizer(), batch_size=4)
    lm._world_size = 2
    counted = Counted(model)
    lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert counted.stop() == spent(HFLM, model, requests)


def test_a_layer_has_no_more_keys_than_all_layers_of_hf(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(prefix_cache.SharedLayer):
        def update(self, *states: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
            keys, values = super().update(*states, **named)
            held.append(keys.shape[0] * keys.shape[2])
            return keys, values

    held: list[int] = []
    monkeypatch.setattr(prefix_cache, "SharedLayer", Watched)
    size, layers, prefix = 2, SIZES["num_hidden_layers"], list(range(10, 90))
    requests = [((str(n), "A"), [*prefix, n, n], [4]) for n in range(100, 160)]
    assert_same(model_of("llama"), requests, batch_size=size)
    assert max(held) == size * layers * len(requests[0][1])  # as much as it may be


@pytest.mark.parametrize(
    "config",
    [
        LoraSpConfig(r=4, target_modules=["q_proj", "v_proj"]),
        LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
    ],
    ids=["LoRA-SP", "LoRA, on the head too"],
)
def test_adapters_are_part_of_the_model(config: Any) -> None:
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    requests = made(2)
    assert_same(model, requests)
    adapted = answered(PrefixCacheLM, model, requests)
    with model.disable_adapter():
        plain = answered(PrefixCacheLM, model, requests)
    assert max(abs(a[0] - b[0]) for a, b in zip(adapted, plain, strict=True)) > 0.1
    assert spent(PrefixCacheLM, model, requests)[0] < spent(HFLM, model, requests)[0] / 2


def test_prompt_tuning_and_encoder_decoders_run_as_in_hf() -> None:
    tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    torch.manual_seed(0)
    tuned = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), tuning).eval()
    assert not can_share(tuned)
    sizes = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2}
    t5 = T5Config(**sizes, num_layers=2, decoder_start_token_id=0)
    assert_same(T5ForConditionalGeneration(t5).eval(), made(3, prefixes=(20,)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model, requests = model_of("llama"), made(4)
    given = {"mixed_precision_dtype": dtype, "softmax_dtype": torch.float32}
    exact = answered(HFLM, model, requests, logits_cache=False)
    whole = answered(HFLM, model, requests, logits_cache=False, **given)
    cached = answered(PrefixCacheLM, model, requests, **given)
    lm = PrefixCacheLM(pretrained=model, tokenizer=tokenizer(), **given)
    lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert lm._agrees
    noise = max(abs(a[0] - b[0]) for a, b in zip(exact, whole, strict=True))
    assert noise > 1e-3, "autocast did nothing"
    assert max(abs(a[0] - b[0]) for a, b in zip(exact, cached, strict=True)) < 2 * noise


def test_what_is_longer_than_the_window_is_cut_from_the_left() -> None:
    requests = made(5, prefixes=(WINDOW - 10, 2 * WINDOW))
    kept = [min(WINDOW, len(context) + len(choice) - 1) for _, context, choice in requests]
    assert kept.count(WINDOW) > len(kept) / 2
    for name in ("llama", "gpt2"):
        assert_same(model_of(name), requests)


@pytest.mark.parametrize("prefixes", [(0,), (50,) * 5], ids=["no prefix", "one question each"])
def test_what_shares_nothing_costs_what_it_costs_in_hf(prefixes: tuple[int, ...]) -> None:
    requests = [
        (key, context, choice[:1])
        for key, context, choice in made(6, prefixes, questions=9 if prefixes == (0,) else 1)
    ]
    assert_same(model_of("llama"), requests)
    assert spent(PrefixCacheLM, model_of("llama"), requests) == spent(
        HFLM, model_of("llama"), requests
    )


def test_only_outputs_that_are_scored_go_through_the_head() -> None:
    requests = made(7, prefixes=(50,), questions=12)
    distinct = {}
    for _, context, choice in requests:
        key = tuple(context + choice[:-1])
        distinct[key] = max(distinct.get(key, 0), len(choice))
    _, rows = spent(PrefixCacheLM, model_of("llama"), requests)
    shortest = sorted(distinct, key=len)[:2]
    # once each; to see that the cache is exact, the two shortest again, one of them without it too
    checked = [distinct[key] for key in shortest]
    assert rows == sum(distinct.values()) + sum(checked) + checked[1]
    assert rows < spent(HFLM, model_of("llama"), requests)[1] / 10


def test_a_cache_that_is_not_exact_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forgetful(self: Any, keys: torch.Tensor, values: torch.Tensor, *_: Any) -> Any:
        size = len(keys)
        return (
            torch.cat([0 * self.keys.expand(size, -1, -1, -1), keys], -2),
            torch.cat([self.values.expand(size, -1, -1, -1), values], -2),
        )

    monkeypatch.setattr(prefix_cache.SharedLayer, "update", forgetful)
    with caplog.at_level(logging.WARNING):
        assert_same(model_of("llama"), made(8))
    assert "not exact" in caplog.text


def test_every_answer_reaches_the_request_cache_of_lm_eval() -> None:
    texts = [("the cat sees the river one two three four " * 3 + word, " A") for word in "abcdefgh"]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=arguments, idx=0)
        for arguments in [(context, letter) for context, _ in texts for letter in (" A", " B")]
    ]
    lm = PrefixCacheLM(pretrained=model_of("llama"), tokenizer=tokenizer(), batch_size=4)
    kept = {}
    lm.cache_hook.add_partial = lambda kind, arguments, answer: kept.update({arguments: answer})
    found = lm.loglikelihood(requests, disable_tqdm=True)
    stock = HFLM(pretrained=model_of("llama"), tokenizer=tokenizer(), batch_size=4)
    assert lm._agrees
    assert kept == dict(zip([request.args for request in requests], found, strict=True))
    expected = stock.loglikelihood(requests, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([s for s, _ in expected], abs=1e-4)
    rolling = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(context,), idx=0)
        for context, _ in texts
    ]
    assert lm.loglikelihood_rolling(rolling, disable_tqdm=True) == pytest.approx(
        stock.loglikelihood_rolling(rolling, disable_tqdm=True), abs=1e-3
    )


def test_lm_eval_knows_it_by_name(tmp_path: Path) -> None:
    model_of("llama").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    lm = get_model("hf-prefix-cache").create_from_arg_string(
        f"pretrained={tmp_path},device=cpu", {"batch_size": 4}
    )
    assert isinstance(lm, PrefixCacheLM)


TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [A, B]
doc_to_target: answer
"""


@pytest.mark.slow
def test_its_command_is_lm_evals_with_one_more_model(tmp_path: Path) -> None:
    model_of("llama").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    rows = [{"question": "the cat sees " * 10 + "river" * n, "answer": n % 2} for n in range(9)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(
        TASK.replace("QUESTIONS", str(tmp_path / "questions.jsonl"))
    )
    command = "-m lorasp.evaluation.prefix_cache run --model hf-prefix-cache --device cpu"
    done = subprocess.run(
        [
            *(sys.executable, *command.split()),
            *("--tasks", tmp_path / "task.yaml", "--model_args", f"pretrained={tmp_path}"),
        ],
        env=os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "|tiny" in done.stdout and "with shared prefixes: 100%" in done.stderr
