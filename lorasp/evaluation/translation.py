"""Translation: beam search, then sacreBLEU and ROUGE against the untokenised references."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU
from transformers import PreTrainedTokenizerBase

from lorasp.data.load import load_split
from lorasp.errors import UsageError, WorkError
from lorasp.evaluation.batches import map_by_length
from lorasp.evaluation.uncertainty import RESAMPLES, SEED, error_of_mean
from lorasp.models import autocast, device_of

EXAMPLES = 5
Resolved = dict[str, Any]


def evaluate(
    resolved: Resolved,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Path,
    dataset: Path,
    batch_size: int,
) -> dict[str, Any]:
    """The scores of every split in the task's `evaluate`, sacreBLEU's signature, some examples.

    Sources come from the folder of tokens, references from the data set itself: what the
    tokeniser cannot write must count against the model.
    """
    task = resolved["task"]
    if "generation" not in task:
        raise UsageError(f"tasks.{task['name']} needs `generation`: how its beam search is run")
    splits, examples, signature = {}, [], ""
    for split in task["evaluate"]:
        rows, raw = load_split(tokens, split), load_split(dataset, split)
        if len(rows) != len(raw):
            raise WorkError(
                f"{tokens / split} has {len(rows)} rows and {dataset} has {len(raw)}; "
                "delete the tokens and prepare them again"
            )
        references = list(raw[task["label"]])
        hypotheses = translate(resolved, model, tokenizer, rows, batch_size, split)
        scores, signature = score(hypotheses, references)
        kept = {name: scores[name] for name in task["metrics"]}
        splits[split] = {"n": len(references), "metrics": kept}
        texts = zip(raw[task["text"][0]], references, hypotheses, strict=True)
        examples += [
            {"source": source, "reference": reference, "hypothesis": hypothesis}
            for source, reference, hypothesis in list(texts)[:EXAMPLES]
        ]
    return {"splits": splits, "signature": signature, "examples": examples}


def translate(
    resolved: Resolved,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    batch_size: int,
    title: str = "translate",
) -> list[str]:
    """One translation a row by beam search, as the task's `generation` says, in the rows' order."""

    def run(batch: dict[str, torch.Tensor]) -> list[str]:
        with autocast(resolved):
            ids = model.generate(**batch, **resolved["task"]["generation"], do_sample=False)  # type: ignore[operator]
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    return map_by_length(run, rows, tokenizer, batch_size, device_of(resolved), title)


def score(
    hypotheses: list[str], references: list[str]
) -> tuple[dict[str, dict[str, float | None]], str]:
    """Corpus BLEU and mean ROUGE F with standard errors, 0 to 100, and BLEU's signature."""
    bleu = BLEU()
    value = bleu.corpus_score(hypotheses, [references]).score
    scores = {"bleu": {"value": value, "stderr": bleu_error(hypotheses, references)}}
    for name, values in rouge(hypotheses, references).items():
        scores[name] = {"value": float(values.mean()), "stderr": error_of_mean(values)}
    return scores, str(bleu.get_signature())


def bleu_error(hypotheses: list[str], references: list[str]) -> float | None:
    """Standard error of corpus BLEU over seeded resamples of the sentences.

    Each sentence's n-gram counts are taken once, so a resample is a sum: sacreBLEU's own bootstrap
    does the same, but gives the confidence interval only.
    """
    size, bleu = len(references), BLEU()
    if size < 2:
        return None
    single = [
        bleu.corpus_score([hypothesis], [[reference]])
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]
    counts = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in single])
    draws = np.random.default_rng(SEED).multinomial(size, np.full(size, 1 / size), RESAMPLES)
    order = bleu.max_ngram_order
    spread = [
        BLEU.compute_bleu(
            correct=list(sums[:order]),
            total=list(sums[order : 2 * order]),
            sys_len=int(sums[-2]),
            ref_len=int(sums[-1]),
            smooth_method=bleu.smooth_method,
        ).score
        for sums in draws @ counts
    ]
    return float(np.std(spread, ddof=1))


class Words(Tokenizer):  # type: ignore[misc]
    """Lower-case runs of letters and digits of any alphabet.

    rouge_score's default keeps [a-z0-9] alone: it would cut the Romanian 'țară' into 'ar', and so
    count half-words as matches. Stemming is left out for the same reason: the stemmer is English.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words of a text in their order."""
        return re.findall(r"\w+", text.lower())


def rouge(hypotheses: list[str], references: list[str]) -> dict[str, np.ndarray]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F of each pair, (n,) each, 0 to 100."""
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())
    pairs = [
        scorer.score(reference, hypothesis)
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]
    return {
        name: np.array([100 * pair[name].fmeasure for pair in pairs])
        for name in ("rouge1", "rouge2", "rougeL")
    }
