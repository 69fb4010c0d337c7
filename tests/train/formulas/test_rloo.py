"""RLOO, by trl's trainer with prefcli's sampling and judges."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tests.support.formula_cases import gradients
from tests.support.judge import count_vowels
from tests.support.oracle import deviation

both = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
PROMPTS = [{"prompt": "say red"}, {"prompt": "say yes dog please"}]
K = 4


@pytest.fixture
def sampled(build):
    """Build a trainer, and a batch of completions of a policy that is not the reference."""

    def sample(lora=False, **section):
        options = {"num_generations": K, "max_completion_length": 6, "beta": 0.3, **section}
        batch = {"global_batch_size": 2 * K, "per_device_train_batch_size": 2 * K}
        case = build("rloo", options, PROMPTS, lora=lora, **batch)
        trainer = case.trainer
        trainer.model.train()
        rows = [trainer.train_dataset[i] for i, _ in product(range(2), range(K))]
        return case, trainer._generate_and_score_completions(rows)

    return sample


def log_probs(case, batch, score):
    """Return the token log-probabilities of each completion by an exact function."""
    result = []
    for i in range(2 * K):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i] == 1].tolist()
        completion = batch["completion_ids"][i][batch["completion_mask"][i] == 1].tolist()
        result.append(score(prompt, completion).sum())
    return torch.stack(result)


def advantages(case, batch, beta):
    """Reward minus the mean reward of the other completions of its prompt (Ahmadian et al. 2024,
    arXiv:2402.14740, eq. 8), where a reward is the score minus beta times the log-ratio (eq. 2)."""
    policy, reference = (
        log_probs(case, batch, score) for score in (case.oracle.policy, case.oracle.reference)
    )
    texts = [
        case.trainer.processing_class.decode(ids[mask == 1], skip_special_tokens=True)
        for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    scores = torch.tensor(count_vowels(None, texts), dtype=torch.float64)
    assert len(scores.unique()) > 2
    rewards = (scores - beta * (policy - reference).detach()).view(-1, K)
    baseline = (rewards.sum(1, keepdim=True) - rewards) / (K - 1)
    return policy, (rewards - baseline).flatten()


@both
def test_rloo_matches_the_formula(sampled, lora):
    case, batch = sampled(lora)
    policy, expected = advantages(case, batch, beta=0.3)
    assert batch["advantages"].double().tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert batch["old_logps"].double().tolist() == pytest.approx(policy.tolist(), abs=1e-5)
    # On the policy itself the loss is 0, and its gradient is that of REINFORCE (eq. 6).
    loss, trl_gradients = step(case, batch)
    assert loss == pytest.approx(0.0, abs=1e-6)
    surrogate = -(expected * policy).mean()
    assert deviation(trl_gradients, case.oracle.gradients(surrogate)) < 1e-5


def test_rloo_off_the_policy_is_weighted_by_the_clipped_ratio(sampled):
    """PPO's clipped objective over complete responses (Schulman et al. 2017, arXiv:1707.06347,
    eq. 7), with trl's epsilon of 0.2."""
    case, batch = sampled()
    old, expected = advantages(case, batch, beta=0.3)
    case.move(seed=5, size=0.01)
    ratio = (log_probs(case, batch, case.oracle.policy) - old.detach()).exp()
    clipped = ratio.clamp(0.8, 1.2)
    assert (ratio != clipped).any()
    assert (ratio == clipped).any()
    loss = -torch.minimum(ratio * expected, clipped * expected).mean()
    trl_loss, trl_gradients = step(case, batch)
    assert deviation(trl_loss, loss) < 1e-5
    assert deviation(trl_gradients, case.oracle.gradients(loss)) < 1e-5


def test_completions_are_the_same_in_smaller_batches(sampled):
    _, batch = sampled()
    _, other = sampled(sampling_batch_size=3)
    for name in ("completion_ids", "completion_mask"):
        assert torch.equal(batch[name], other[name])


def test_rloo_normalizes_clips_and_masks(sampled):
    case, batch = sampled(
        normalize_advantages=True, reward_clip_range=[0.0, 1.0], mask_truncated_completions=True
    )
    assert float(batch["advantages"].mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(batch["advantages"].std()) == pytest.approx(1.0, abs=1e-3)
    stops = set(case.trainer.eos_token_ids)
    for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True):
        ended = bool(stops & set(ids.tolist()))
        assert ended == bool(mask.any())


def step(case, batch):
    model = case.trainer.model.train()
    model.zero_grad()
    loss = case.trainer.compute_loss(model, batch)
    loss.backward()
    return float(loss.detach()), gradients(model)
