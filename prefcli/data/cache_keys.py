"""The keys of prepared rows: digests of everything that the rows and their token ids depend on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from prefcli import __version__
from prefcli.data.digests import folder_digest, json_digest, tokenizer_digest
from prefcli.data.sources import read
from prefcli.errors import PrefcliError
from prefcli.methods import Method
from prefcli.recipe.paths import is_local
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import SftMix, Source

_FORMAT = 3


def splits_key(
    recipe: Recipe,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    mix: SftMix | None,
    stop_ids: Sequence[int],
) -> str | None:
    """Return the key of a run's splits; None if a source can't be read, so that reading it raises.

    It contains neither the limits of `data.checks` nor what only changes the speed of reading.
    """
    data = recipe.data
    sources = [*data.train, *data.eval_sources, *(mix.data if mix else [])]
    try:
        contents = [_content(source) for source in sources]
    except (OSError, PrefcliError):
        return None
    return json_digest(
        {
            "format": [_FORMAT, __version__],
            "data": data.model_dump(mode="json", exclude={"checks", "num_proc"}),
            "mix": [s.model_dump(mode="json") for s in mix.data] if mix else None,
            "contents": contents,
            "seed": recipe.seed,
            "tokenizer": tokenizer_digest(tokenizer),
            "ends": sorted(stop_ids),
            "method": [
                method.rows,
                method.trainer.prompt_margin,
                method.trainer.adds_special_tokens,
                method.trainer.max_merged_tokens,
                method.trainer.renders_tools,
                method.assistant_only,
                method.trainer.keeps_row_order,
                method.trainer.drops_longer_rows,
                method.margins_from,
                method.sampled_tokens,
                _batch_size(recipe, method),
            ],
        }
    )


def trl_map_key(recipe: Recipe, method: Method, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the key of trl's own preparation: everything that it depends on except the rows."""
    return json_digest(
        [
            __version__,
            method.name,
            tokenizer_digest(tokenizer),
            recipe.data.max_length,
            method.trains_prompt,
            method.assistant_only,
            method.packs,
            _batch_size(recipe, method),
        ]
    )


def _batch_size(recipe: Recipe, method: Method) -> int | None:
    """Return the device batch size if the method prepares rows in fixed batches."""
    return recipe.training.train_batch_size if method.pairs_neighbours else None


def _content(source: Source) -> str:
    """Digest a local file or folder, or the fingerprint that datasets gives a hub dataset."""
    if is_local(source.path):
        return folder_digest(Path(source.path).expanduser())
    return json_digest([part.fingerprint for part in read(source, "data").parts])
