"""Conversations with a model."""

from __future__ import annotations

import pytest

from prefcli.evaluation.chat import Chat
from prefcli.evaluation.generate import Sampling


@pytest.fixture
def talk(tiny_model):
    shown: list[str] = []
    return Chat(str(tiny_model), None, Sampling(3, 0.0), shown.append), shown


def test_chat_shows_the_answer_that_it_remembers(talk):
    chat, shown = talk
    chat.answer("red blue")
    assert chat.remembers
    assert chat.turns == [
        {"role": "user", "content": "red blue"},
        {"role": "assistant", "content": "".join(shown)},
    ]
    chat.restart()
    assert chat.turns == []


def test_chat_without_a_template_continues_text(talk, monkeypatch):
    chat, shown = talk
    monkeypatch.setattr(chat.tokenizer, "chat_template", None)
    chat.answer("red blue")
    assert chat.turns == []
    assert "".join(shown)
