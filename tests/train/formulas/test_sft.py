"""Supervised fine-tuning: which tokens count, and how much each."""

from __future__ import annotations

import pytest
import torch

from tests.support.formula_cases import COMPLETIONS

TEXTS = [{"text": row["prompt"] + row["completion"]} for row in COMPLETIONS]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": "say red"},
            {"role": "assistant", "content": " blue"},
            {"role": "user", "content": "and big"},
            {"role": "assistant", "content": " small kind thanks"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "say yes please"},
            {"role": "assistant", "content": " no"},
        ]
    },
]
both = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


def nll(tokens):
    """Next-token cross-entropy: the mean over the tokens that count."""
    return -tokens.mean()


def dft(tokens):
    """Dynamic Fine-Tuning: each weighed by its own probability, as a constant."""
    return -(tokens.exp().detach() * tokens).mean()


LOSSES = {"nll": nll, "dft": dft}


def completions(case):
    ids = [
        case.oracle.ids(row["prompt"], row["completion"], max_length=case.max_length)
        for row in case.rows
    ]
    return torch.cat([case.oracle.policy(*row_ids) for row_ids in ids])


@both
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_sft_completions_match_the_formula(build, packing, loss, lora):
    """The likelihood of the completions (nll: GPT, Radford et al. 2018, eq. 1, no arXiv number),
    and DFT (Wu et al. 2025, arXiv:2508.05629, its loss for single tokens).

    Packed rows share a sequence, and must not see each other without flash attention either.
    """
    case = build(
        "sft", {"packing": packing, "loss_type": loss}, COMPLETIONS, max_length=32, lora=lora
    )
    assert (len(case.trainer.train_dataset) < len(COMPLETIONS)) == packing
    case.agrees(LOSSES[loss](completions(case)))


@pytest.mark.parametrize("loss", LOSSES)
def test_sft_truncated_rows_match_the_formula(build, loss):
    """The same (DFT: arXiv:2508.05629) over the tokens that max_length leaves."""
    case = build("sft", {"loss_type": loss}, COMPLETIONS, max_length=10)
    tokens = completions(case)
    case.max_length = 64
    assert len(tokens) < len(completions(case))
    case.agrees(LOSSES[loss](tokens))


@pytest.mark.parametrize("loss", LOSSES)
def test_sft_with_prompts_matches_the_formula(build, loss):
    """The same over all tokens but the first, which nothing predicts, where
    completion_only_loss is off; and DFT (arXiv:2508.05629) likewise."""
    case = build("sft", {"completion_only_loss": False, "loss_type": loss}, COMPLETIONS)
    tokens = []
    for row in case.rows:
        prompt, completion = case.oracle.ids(row["prompt"], row["completion"], max_length=64)
        tokens.append(case.oracle.policy(prompt[:1], prompt[1:] + completion))
    case.agrees(LOSSES[loss](torch.cat(tokens)))


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_sft_whole_texts_match_the_formula(build, packing):
    """The likelihood of every token of a text but the first (GPT, Radford et al. 2018, eq. 1)."""
    case = build("sft", {"packing": packing}, TEXTS, max_length=32)
    tokens = []
    for row in case.rows:
        _, ids = case.oracle.ids("", row["text"], max_length=32)
        tokens.append(case.oracle.policy(ids[:1], ids[1:]))
    case.agrees(nll(torch.cat(tokens)))


@pytest.mark.parametrize("loss", LOSSES)
def test_sft_assistant_turns_match_the_formula(build, loss):
    """The same over what assistants say and the end token behind it, in every turn; and DFT
    (arXiv:2508.05629) likewise."""
    case = build("sft", {"assistant_only_loss": True, "loss_type": loss}, CHATS)
    tokenizer = case.oracle.tokenizer
    tokens = []
    for row in case.rows:
        text, spans = tokenizer.bos_token, []
        for message in row["messages"]:
            if message["role"] == "assistant":
                text += "A:"
                spans.append((len(text), len(text + message["content"] + tokenizer.eos_token)))
                text += message["content"] + tokenizer.eos_token
            else:
                text += f"U:{message['content']}\n"
        ids = tokenizer(text, return_offsets_mapping=True)
        counted = [
            any(start <= a and b <= end for start, end in spans) for a, b in ids["offset_mapping"]
        ]
        assert 0 < sum(counted) < len(counted) - 1
        scores = case.oracle.policy(ids["input_ids"][:1], ids["input_ids"][1:])
        tokens.append(scores[torch.tensor(counted[1:])])
    case.agrees(LOSSES[loss](torch.cat(tokens)))
