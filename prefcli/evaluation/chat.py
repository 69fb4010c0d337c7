"""A conversation with a model, turn by turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from transformers import TextStreamer

from prefcli.evaluation.generate import Sampling, generate, load_named
from prefcli.formats.chat import Message


class Chat:
    """A model and what has been said to it.

    Without a chat template a model does not know turns: each text is continued on its own.
    """

    def __init__(
        self,
        name: str,
        chat_template: str | None,
        options: Sampling,
        show: Callable[[str], None],
        *,
        system: str | None = None,
    ) -> None:
        """name: a hub id, a folder, or a run. show: takes the pieces of an answer."""
        self._model, self.tokenizer = load_named(name, chat_template)
        self._options = options
        self._streamer = _Streamer(self.tokenizer, show)
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.turns: list[Message] = []
        self._answers = 0

    @property
    def remembers(self) -> bool:
        """Check for a chat template: an answer depends on earlier turns."""
        return bool(self.tokenizer.chat_template)

    def restart(self) -> None:
        """Forget all turns."""
        self.turns = []

    def answer(self, text: str) -> None:
        """Show the model's answer."""
        turns: list[Message] = [*self.turns, {"role": "user", "content": text}]
        prompt = [*self._system, *turns] if self.remembers else text
        # Another seed for each answer, or the same question would have the same answer.
        options = replace(self._options, seed=self._options.seed + self._answers)
        self._answers += 1
        (answer,) = generate(
            self._model, self.tokenizer, [prompt], options, streamer=self._streamer
        )
        if self.remembers:
            self.turns = [*turns, {"role": "assistant", "content": answer.text}]


class _Streamer(TextStreamer):  # type: ignore[misc]  # transformers is untyped
    """Passes on the words of an answer as they are generated."""

    def __init__(self, tokenizer: object, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._show = show

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._show(text)
