"""Independent float64 arithmetic, one unpadded row at a time, without prefcli and trl.

A trainer's loss and gradient are float32 sums over a padded batch; these are the exact values.
"""

from __future__ import annotations

import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoTokenizer


class Oracle:
    """The weights of a trained model as float64 leaves, and its initial weights."""

    def __init__(self, folder, model, *, lora_scale=None):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.net = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="sdpa"
        ).requires_grad_(False)
        for module in self.net.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.forward = _norm(module)
        self.leaves = {
            name: parameter.detach().cpu().double().requires_grad_()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.weights = self.leaves if lora_scale is None else self._adapted(lora_scale)

    def _adapted(self, scale):
        """W + (alpha / r) B A (arXiv:2106.09685, eq. 3 and sec. 4.1), without peft."""
        start = dict(self.net.named_parameters())
        weights = {}
        for name, a in self.leaves.items():
            if ".lora_A." in name:
                b = self.leaves[name.replace(".lora_A.", ".lora_B.")]
                path = name.removeprefix("base_model.model.").replace(".lora_A.default", "")
                weights[path] = start[path] + scale * (b @ a)
        assert 2 * len(weights) == sum(".lora_" in name for name in self.leaves)
        return weights

    def ids(self, prompt, completion, *, max_length, bos=False):
        """Return (prompt, completion) as token ids, with an EOS at the end, cut at max_length."""
        start = [self.tokenizer.bos_token_id] if bos else []
        before = start + self.tokenizer(prompt)["input_ids"]
        sequence = self.tokenizer(prompt + completion + self.tokenizer.eos_token)["input_ids"]
        sequence = (start + sequence)[:max_length]
        assert sequence[: len(before)] == before
        return before, sequence[len(before) :]

    def policy(self, prompt, completion):
        """Return log p of each completion token, with its graph."""
        return self._score(self.weights, prompt, completion)

    def reference(self, prompt, completion):
        """Return the same under the weights that training started from."""
        return self._score({}, prompt, completion)

    def reward(self, prompt, completion):
        """Return the product of the head and the last hidden state, with its graph."""
        (head,) = (weight for name, weight in self.leaves.items() if "score" in name)
        decoder = {
            name.removeprefix("model."): w
            for name, w in self.weights.items()
            if name.startswith("model.")
        }
        call = {"input_ids": torch.tensor([prompt + completion]), "use_cache": False}
        hidden = functional_call(self.net.model, decoder, (), call).last_hidden_state
        return (head @ hidden[0, -1]).squeeze()

    def _score(self, weights, prompt, completion):
        ids = torch.tensor([prompt + completion])
        call = {"input_ids": ids, "use_cache": False}
        logits = functional_call(self.net, weights, (), call).logits[0]
        assert logits.dtype == torch.float64
        scores = torch.log_softmax(logits, -1)
        at = torch.arange(len(prompt), ids.shape[1])
        return scores[at - 1, ids[0, at]]

    def gradients(self, loss):
        return dict(
            zip(self.leaves, torch.autograd.grad(loss, list(self.leaves.values())), strict=True)
        )


def _norm(module):
    """Return an RMSNorm in float64; the one of transformers always computes in float32."""

    def forward(hidden):
        mean = hidden.pow(2).mean(-1, keepdim=True)
        return module.weight * hidden * torch.rsqrt(mean + module.variance_epsilon)

    return forward


def log_sigmoid(x):
    return -torch.log1p(torch.exp(-x))


def deviation(actual, expected):
    """Return the difference relative to the expected scalar or to the norm of the gradients."""
    if not isinstance(expected, dict):
        return abs(float(actual) - float(expected)) / abs(float(expected))
    assert actual.keys() == expected.keys()
    difference = sum(
        float((actual[name].double() - expected[name]).pow(2).sum()) for name in expected
    )
    size = sum(float(gradient.pow(2).sum()) for gradient in expected.values())
    assert size > 0, "the expected gradient is zero"
    return (difference / size) ** 0.5
