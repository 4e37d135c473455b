"""BLEU and ROUGE against the libraries' own calls, beam search against one sentence at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer

from lorasp.config import Cell, Config, data_folder, resolve
from lorasp.data.load import load_split
from lorasp.errors import UsageError
from lorasp.evaluation import translation
from lorasp.evaluation.uncertainty import RESAMPLES, SEED
from lorasp.models import load_tokenizer

REFERENCES = [
    "Țara aceasta are munți înalți și ape repezi.",
    "Pisica strălucitoare doarme pe casa cea veche.",
    "Câinele vede un râu, iar noi vedem câinele.",
    "El citește o carte despre munți.",
]
HYPOTHESES = [
    "Țara aceasta are munți și ape repezi.",
    "Pisica doarme pe o casă veche.",
    "Câinele vede un râu, iar noi vedem pisica.",
    "Ea citește cărți despre munții înalți.",
]


def test_bleu_is_sacrebleus_own_with_its_signature() -> None:
    scores, signature = translation.score(HYPOTHESES, REFERENCES)
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert 0 < expected < 100
    assert scores["bleu"]["value"] == expected
    assert "tok:13a" in signature and sacrebleu.__version__ in signature


def test_a_perfect_translation_scores_a_hundred_without_error() -> None:
    scores, _ = translation.score(REFERENCES, REFERENCES)
    for name in ("bleu", "rouge1", "rouge2", "rougeL"):
        assert scores[name]["value"] == pytest.approx(100)
        assert scores[name]["stderr"] == pytest.approx(0, abs=1e-9)


def test_the_error_of_bleu_is_that_of_whole_corpora_drawn_again() -> None:
    size = len(REFERENCES)
    draws = np.random.default_rng(SEED).multinomial(size, [1 / size] * size, RESAMPLES)
    spread = [
        sacrebleu.corpus_bleu(
            np.repeat(HYPOTHESES, counts).tolist(), [np.repeat(REFERENCES, counts).tolist()]
        ).score
        for counts in draws
    ]
    assert translation.bleu_error(HYPOTHESES, REFERENCES) == pytest.approx(np.std(spread, ddof=1))
    assert translation.bleu_error(HYPOTHESES[:1], REFERENCES[:1]) is None


def test_rouge_by_hand() -> None:
    # bigrams: 'țara are' of 'țara are' in both, 1 of 2 and 1 of 3; unigrams 3 of 3 and 3 of 4
    found = translation.rouge(["țara are munți"], ["țara are și munți"])
    assert found["rouge1"] == pytest.approx(100 * 2 * 1 * 0.75 / 1.75)
    assert found["rouge2"] == pytest.approx(100 * 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert found["rougeL"] == pytest.approx(100 * 2 * 1 * 0.75 / 1.75)


def test_rouge_keeps_letters_that_the_default_tokeniser_drops() -> None:
    # the two share no word, but 'țar' and 'șar' are both 'ar' to rouge_score's default
    default = RougeScorer(["rouge1"]).score("țar", "șar")["rouge1"].fmeasure
    assert default == 1
    assert translation.rouge(["șar"], ["țar"])["rouge1"] == pytest.approx(0)


def test_rouge_equals_the_library_on_plain_ascii() -> None:
    reference, hypothesis = "the cat sat on the mat", "a cat sat on that mat"
    library = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, hypothesis)
    for name, values in translation.rouge([hypothesis], [reference]).items():
        assert values == pytest.approx(100 * library[name].fmeasure)


def test_translations_are_those_of_each_sentence_alone(config: Config, trained: Callable) -> None:
    cell, model = trained("t5-tiny", "wmt16-en-ro", "lora")
    resolved = resolve(config, cell)
    rows = load_split(data_folder(config, "tokens", "t5-tiny", "wmt16-en-ro"), "test")
    tokenizer = load_tokenizer(data_folder(config, "models", "t5-tiny"))
    beam = config["tasks"]["wmt16-en-ro"]["generation"]
    expected = []
    with torch.no_grad():
        for row in rows:
            ids = model.generate(input_ids=torch.tensor([row["input_ids"]]), **beam)
            expected.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    assert len(set(expected)) > 1, "equal translations would hide a wrong order"
    for size in (1, 5, 64):
        assert translation.translate(resolved, model, tokenizer, rows, size) == expected


def test_a_translation_task_must_say_how_to_generate(config: Config, tmp_path: Path) -> None:
    resolved = resolve(config, Cell("smoke", "t5-tiny", "wmt16-en-ro", "base", "none", 0))
    del resolved["task"]["generation"]
    with pytest.raises(UsageError, match=r"tasks\.wmt16-en-ro needs `generation`"):
        translation.evaluate(resolved, None, None, tmp_path, tmp_path, 1)
