"""The table of metrics against what real runs log."""

from __future__ import annotations

from prefcli.methods import METHODS
from prefcli.metrics import EVAL_PREFIX, METRICS, ROW_FIELDS, is_eval
from tests.support.tiny_runs import trainer_of, write_jsonl


def test_metrics_table_is_exactly_what_runs_log(recipe_data, make_recipe, tmp_path):
    plain = make_recipe(recipe_data).recipe
    demonstrations = [{"prompt": "say red", "completion": " red"}] * 8
    path = write_jsonl(tmp_path / "sft.jsonl", demonstrations)
    mixed = make_recipe({**recipe_data, "sft_mix": {"data": {"path": str(path)}}}).recipe
    logged: set[str] = set()
    for name in METHODS:
        recipe = mixed if name == "dpo" else plain
        trainer, _ = trainer_of(recipe, name)
        trainer.train()
        trainer.evaluate()
        rows = [row for row in trainer.state.log_history if "train_runtime" not in row]
        evaluated = {key for row in rows if is_eval(row) for key in row}
        assert {*recipe.methods[name].eval_metrics} <= evaluated, name
        logged |= {key.removeprefix(EVAL_PREFIX) for row in rows for key in row}
    # These runs make no samples, and their model has no experts.
    others = {"samples_ended", "samples_repeated", "samples_distinct", "aux_loss"}
    assert logged - {*ROW_FIELDS} == METRICS.keys() - others
