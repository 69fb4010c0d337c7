"""The model card of literal run folders."""

from __future__ import annotations

import json
import re

import yaml

from prefcli.report.model_card import write_card
from prefcli.report.run_page import write_report
from tests.support.run_dirs import RECIPE, RUN, dpo_run, eval_row, sample_rows, write_run

ABOUT = "Direct Preference Optimization (Rafailov et al. 2023,\n    arXiv:2305.18290, eq. 7)."


def card_of(folder, about=ABOUT, **files):
    (folder / "model").mkdir()
    for name, content in files.items():
        path = folder / "model" / name.replace("__", ".")
        path.write_text(json.dumps(content), encoding="utf-8")
    path = write_card(folder, about)
    assert path == folder / "model" / "README.md"
    text = path.read_text("utf-8")
    front = re.match(r"---\n(.*?)---\n", text, re.DOTALL)
    return yaml.safe_load(front[1]), text[front.end() :]


def test_card_of_a_complete_run_has_every_section(tmp_path):
    front, text = card_of(dpo_run(tmp_path / "zephyr"))
    assert front == {
        "base_model": "mistralai/Mistral-7B-v0.1",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["prefcli", "trl", "dpo"],
        "datasets": ["HuggingFaceH4/ultrafeedback_binarized"],
    }
    for line in (
        "\n# zephyr\n",
        "`sft` trained with `dpo` by prefcli 0.1.0",
        "\nDirect Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).\n",
        "`mistralai/Mistral-7B-v0.1` -> sft (`sft`) -> dpo (this model)",
        "\n| train: `HuggingFaceH4/ultrafeedback_binarized` (train_prefs) | 5000 | 4990 |\n",
        "\n| eval: `eval.jsonl` | 400 | 400 |\n",
        "\n| dpo.beta | `0.1` |\n",
        "\n| training.learning_rate | `5e-07` |\n",
        "\n| steps | `200` |\n",
        "\n| perplexity | 2.860 | 3.530 |\n",
        "\n| loss | 0.5100 | 0.4868 to 0.5083 (outside) |\n",
        "on 400 held-out rows",
        "\n- torch 2.13.0\n",
    ):
        assert line in text, line


def test_card_does_not_name_private_folders(tmp_path):
    recipe = RECIPE.replace("runs/sft/model", str(tmp_path / "secret" / "sft" / "model"))
    lineage = [
        {"stage": "start", "model": "/home/ada/llama"},
        {"stage": "sft", "model": "/home/ada/runs/sft/model", "adapter": "stack"},
    ]
    run = {**RUN, "lineage": lineage}
    rows = [eval_row(0), eval_row(200)]
    folder = write_run(tmp_path / "z", recipe=recipe, run=run, rows=rows, samples=sample_rows(0, 1))
    front, text = card_of(folder)
    assert "base_model" not in front
    assert "/home/" not in text
    assert str(tmp_path) not in text
    assert "`llama` -> sft (`sft`, adapter: stack) -> dpo (this model)" in text


def test_card_of_an_adapter_names_its_base_model(tmp_path):
    config = {"base_model_name_or_path": "mistralai/Mistral-7B-v0.1"}
    lora = RECIPE + "lora: {rank: 8, target_modules: [q_proj, v_proj]}\n"
    folder = write_run(tmp_path / "z", run={**RUN, "lineage": []}, recipe=lora)
    front, text = card_of(folder, adapter_config__json=config)
    assert front["base_model"] == "mistralai/Mistral-7B-v0.1"
    assert front["library_name"] == "peft"
    assert front["tags"] == ["prefcli", "trl", "dpo", "lora"]
    assert "model = AutoPeftModelForCausalLM.from_pretrained(folder)" in text
    assert "\n| lora.rank | `8` |\n" in text
    assert "\n| lora.target_modules | `['q_proj', 'v_proj']` |\n" in text


def test_card_snippet_uses_the_chat_template_if_there_is_one(tmp_path):
    _, text = card_of(
        write_run(tmp_path / "a"), tokenizer_config__json={"chat_template": "{{ x }}"}
    )
    assert "tokenizer.apply_chat_template(" in text
    _, text = card_of(write_run(tmp_path / "b"))
    assert 'tokenizer("How are you?", return_tensors="pt")' in text


def test_card_fences_model_output(tmp_path):
    rows = sample_rows(0, 9)
    rows[-1]["policy"]["greedy"] = "```\n# Heading\n````\n\x1b[2J \ud800"
    _, text = card_of(write_run(tmp_path / "a", samples=rows))
    assert "`````text\n```\n# Heading\n````\n\\x1b[2J \\ud800\n`````" in text


def test_card_escapes_table_cells(tmp_path):
    recipe = RECIPE.replace("loss_type: sigmoid", 'loss_type: "a|b`c"')
    _, text = card_of(write_run(tmp_path / "a", recipe=recipe))
    assert "\n| dpo.loss_type | `` a\\|b`c `` |\n" in text


def test_card_of_an_empty_run_folder_is_written(tmp_path):
    front, text = card_of(write_run(tmp_path / "a", run={}, recipe=None, rows=[]), about="")
    assert front["tags"] == ["prefcli", "trl"]
    assert "How this run ended is unknown, since it has no run.json." in text


def test_card_and_page_hide_secrets_and_escape_what_rows_and_recipe_hold(tmp_path):
    token = "hf_" + "a1B2" * 6
    rows = [eval_row(0), eval_row(200)]
    samples = [
        {**row, "prompt": f"use {token} \x1b[31m", "greedy": f"key {token}"}
        for row in sample_rows(0, 1)
    ]
    recipe = RECIPE.replace("split: train_prefs", "split: '<b>x</b>'")
    folder = write_run(tmp_path / "z", recipe=recipe, rows=rows, samples=samples)
    _, text = card_of(folder)
    page = write_report(folder).read_text("utf-8")
    assert token not in text + page
    assert "(hidden)" in text
    assert "\x1b" not in text + page
    assert "<b>x" not in text
