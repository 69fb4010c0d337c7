"""A 7B model by its config: parameters and the bytes of a step, computed by hand.

Mistral-7B: 32 layers of 4096 hidden and 14336 inner numbers, 32 heads of 128, 8 of them for keys.
Of a layer: 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336 weights, and two norms of 4096.
Outside: two embeddings of 32000 * 4096, and a norm.
"""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from transformers import MistralConfig

from prefcli.memory.fake_models import Architectures
from prefcli.memory.fake_quantized import PackedLinear, pack
from prefcli.memory.model_info import describe_model
from prefcli.model import Device, check_model, load_base_config
from prefcli.recipe import load
from prefcli.training.simulation import simulate_run_step
from tests.support.tiny_runs import ANYTHING, pairs, write_jsonl

LINEAR = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336
LAYER = LINEAR + 2 * 4096
EMBEDDINGS = 2 * 32000 * 4096
PARAMETERS = 7_241_732_096
# Rank 16, in + out of q, k, v, o, gate, up and down.
ADAPTER = 16 * (8192 + 5120 + 5120 + 8192 + 3 * (4096 + 14336))
# torch also holds two tables of 64 frequencies, 512 bytes each.
ROTARY = 2 * 512
GPU = Device("cuda", "a GPU", bfloat16=True)


def test_constants_of_this_file_agree():
    assert 32 * LAYER + EMBEDDINGS + 4096 == PARAMETERS
    assert 32 * ADAPTER == 41_943_040


@pytest.fixture
def mistral(tiny_model, tmp_path):
    """Make a recipe for a folder that contains only a config and a tokenizer."""

    def make(layers: int, method: str = "dpo") -> dict:
        folder = tmp_path / "mistral"
        folder.mkdir(exist_ok=True)
        for file in tiny_model.glob("tokenizer*"):
            (folder / file.name).write_bytes(file.read_bytes())
        config = {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
            "sliding_window": None,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        (folder / "config.json").write_text(json.dumps(config))
        return {
            "output_dir": str(tmp_path / "run"),
            "model": {"name_or_path": str(folder), "init": "random"},
            method: {},
            "data": {
                "train": {"path": str(write_jsonl(tmp_path / "rows.jsonl", pairs(32)))},
                "checks": ANYTHING,
            },
            # One micro-batch: a second would only take longer to simulate.
            "training": {"global_batch_size": 16, "per_device_train_batch_size": 16},
            "check_sft": {"on_fail": "skip"},
        }

    return make


@pytest.mark.slow
@pytest.mark.memory
def test_dry_run_of_all_weights_exceeds_the_memory(mistral, dry_run):
    data = mistral(4)
    data["training"]["optim"] = "adamw_torch_fused"
    code, document, printed = dry_run(data, "dpo", "--gpu-memory", "15GiB")
    assert document["architecture"] == "MistralForCausalLM"
    parameters = 4 * LAYER + EMBEDDINGS + 4096
    assert document["parameters"] == document["trainable"] == parameters
    memory = document["memory"]
    parts = memory["parts"]
    assert sum(parts.values()) == memory["allocated"]
    assert parts["weights"] == 4 * parameters + ROTARY
    # The last gradient, of the embeddings, is an activation still: it is just being made.
    assert parts["gradients"] == 4 * (parameters - 32000 * 4096)
    assert parts["activations"] > 4 * 32000 * 4096
    # Two moments, and a counter for each of 9 tensors a layer and 3 outside.
    assert parts["optimizer"] == 8 * parameters + 512 * (9 * 4 + 3)
    # Embeddings and norms in float32, projections in bfloat16, as autocast multiplies them.
    outside = 32000 * 4096 + 9 * 4096
    assert parts["reference"] == 2 * parameters + 2 * outside
    # 4 + 4 + 2 + 8 bytes a parameter are 19.3 GiB.
    assert 19.2 * 2**30 < memory["allocated"] < memory["needed"]
    assert (memory["fits"], memory["gpu_memory"]) == (False, 15 * 2**30)

    assert (code, document["will_run"], document["exit_code"]) == (3, False, 3)
    changes = document["remedies"]
    assert [change["change"] for change in changes] == [
        "reference.precompute=true",
        "training.optim=adamw_8bit",
    ]
    assert [change["fits"] for change in changes] == [False, True]
    needed = memory["needed"]
    for change in changes:
        assert change["saved"] == needed - change["needed"]
        assert change["saved"] > 0
        needed = change["needed"]
    assert needed <= 15 * 2**30
    (problem,) = document["problems"]
    assert problem["hint"] == "this fits: reference.precompute=true training.optim=adamw_8bit"
    assert printed.splitlines()[-1] == "will not run: 1 problem above"


def test_describe_model_with_an_adapter_counts_its_parameters(mistral, tmp_path):
    data = mistral(32) | {"lora": {"rank": 16}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    recipe = load(str(tmp_path / "recipe.yaml")).recipe
    result = describe_model(
        recipe, check_model(recipe.model, recipe.lora), load_base_config(recipe.model)
    )
    assert (result.parameters, result.trainable) == (PARAMETERS, 32 * ADAPTER)
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert result.adapted == dict.fromkeys(names, 32)
    assert result.sizes.policy == PARAMETERS + 32 * ADAPTER
    assert result.sizes.reference == 0  # the policy, with the adapter off
    assert result.sizes.layer == LAYER
    assert result.sizes.root == EMBEDDINGS + 4096


@pytest.mark.memory
@pytest.mark.slow
def test_dry_run_of_an_adapter_fits(mistral, dry_run):
    data = mistral(2) | {"lora": {"rank": 16}}
    code, document, _ = dry_run(data, "dpo", "--gpu-memory", "80GiB")
    assert (code, document["will_run"]) == (0, True)
    assert "remedies" not in document
    total, trained = 2 * LAYER + EMBEDDINGS + 4096, 2 * ADAPTER
    assert (document["parameters"], document["trainable"]) == (total, trained)
    parts = document["memory"]["parts"]
    assert sum(parts.values()) == document["memory"]["allocated"]
    # Frozen ones in bfloat16, trained ones in float32; 2 matrices on each of 7 layers.
    assert parts["weights"] == 2 * total + 4 * trained + ROTARY
    assert parts["reference"] == 0
    assert parts["optimizer"] == 8 * trained + 512 * 2 * 7 * 2


def test_simulate_run_step_of_4bit_weights_counts_packed_bytes(mistral, tmp_path):
    data = mistral(2, "sft") | {"lora": {"rank": 16}}
    data["model"] |= {"init": "pretrained", "quantization": "4bit"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    recipe = load(str(tmp_path / "recipe.yaml")).recipe
    config = MistralConfig.from_pretrained(recipe.model.name_or_path)
    result = simulate_run_step(recipe, recipe.sft, Architectures(config), GPU, length=64)
    # 4 bits a weight, 8 for 64 of them, 32 for 256 of those; all else stays in bfloat16.
    packed = 2 * (LINEAR // 2 + LINEAR // 64 + 4 * LINEAR // (64 * 256))
    rest = 2 * (EMBEDDINGS + 4096 + 2 * 2 * 4096)
    assert result.passes.parts["weights"] == packed + rest + 4 * 2 * ADAPTER + ROTARY


@pytest.mark.parametrize(("rows", "columns"), [(256, 512), (1024, 1024)])
def test_packed_linear_has_the_size_of_bitsandbytes(rows, columns):
    bnb = pytest.importorskip("bitsandbytes")
    plain = torch.nn.Linear(columns, rows, bias=False)

    four = bnb.nn.Linear4bit(columns, rows, bias=False, quant_type="nf4", compress_statistics=True)
    four.weight = bnb.nn.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
    weight = four.to("cpu").weight
    state = weight.quant_state
    stored = [
        weight,
        state.absmax,
        state.code,
        state.offset,
        state.state2.absmax,
        state.state2.code,
    ]
    size = PackedLinear(plain, "4bit").weight.nbytes
    assert size == pytest.approx(sum(tensor.nbytes for tensor in stored), rel=0.02)
    assert size == rows * columns * (8192 + 256 + 4) // (64 * 256)

    eight = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False)
    eight.weight = bnb.nn.Int8Params(
        plain.weight.data.half(), requires_grad=False, has_fp16_weights=False
    )
    eight(torch.ones(1, columns, dtype=torch.float16))
    expected = eight.weight.nbytes + eight.state.SCB.nbytes
    assert PackedLinear(plain, "8bit").weight.nbytes == expected == rows * columns + 4 * rows


def test_pack_does_not_quantize_the_head():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU())
            self.head = torch.nn.Linear(32, 10, bias=False)

        def get_output_embeddings(self):
            return self.head

    model = Model()
    bias = model.inner[0].bias
    pack(model, "8bit")
    packed = model.inner[0]
    assert isinstance(packed, PackedLinear)
    assert (packed.in_features, packed.out_features) == (64, 32)
    assert packed.bias is bias
    assert type(model.head) is torch.nn.Linear
    assert packed(torch.ones(3, 64)).shape == (3, 32)
