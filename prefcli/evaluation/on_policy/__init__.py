"""On-policy data: completions that a model samples, judged, and made into rows to train on."""

from prefcli.evaluation.on_policy.pairs import check_pairs, make_pairs
from prefcli.evaluation.on_policy.policy import policy_of
from prefcli.evaluation.on_policy.summary import PairsSummary

__all__ = ["PairsSummary", "check_pairs", "make_pairs", "policy_of"]
