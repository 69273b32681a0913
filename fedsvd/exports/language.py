"""A finished run as a language model."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from fedsvd.data.conversation import conversation
from fedsvd.data.endings import joined
from fedsvd.errors import InputError
from fedsvd.exports.parts import description, put_together, with_adapter
from fedsvd.exports.texts import rows_of
from fedsvd.models.decoder import body_of, load_language_model
from fedsvd.models.usable import fit_tokenizer
from fedsvd.objectives.answers import Answers, judged
from fedsvd.objectives.generation import BATCH, MOST, Prompt, continued, prompt_tokens
from fedsvd.objectives.language import FILE, FOLDER
from fedsvd.objectives.said import encoded
from fedsvd.settings import ModelSettings


@final
@dataclass(frozen=True)
class LoadedLanguageModel:
    """Tokeniser and language model with its adapter of a finished run, in float32.

    Attributes:
        tokenizer: the tokeniser.
        network: the model with its adapter.
        model: the settings of the model.
        messages: whether rows are conversations.
        columns: how many texts a row has otherwise: 1 for plain texts, 2 for a prompt and its
            completion.
        chooses: whether it was trained to choose among endings.
    """

    tokenizer: Any
    network: nn.Module
    model: ModelSettings
    messages: bool
    columns: int
    chooses: bool = False

    @torch.inference_mode()
    def score(self, rows: Any) -> Tensor:
        """Return the loss (n,) of each row, as in training: the mean of -log p of tokens that count.

        Args:
            rows: a list of rows like those of the run: texts, pairs of prompt and completion, or
                lists of messages; for a choice pairs of a context and an ending. Longer rows are cut
                as in training.

        Raises:
            InputError: a row cannot be used. The message has the number (from 1) of the first
                such row.
        """
        texts: Sequence[tuple[str, ...]] = (
            self._conversations(rows) if self.messages else rows_of(rows, self.columns)
        )
        name, longest = self.model.name, self.model.max_length
        if self.chooses:
            texts = [(context, joined(context, ending)) for context, ending in texts]
        table = encoded(
            self.tokenizer, texts, longest, name, messages=self.messages, ends=not self.chooses
        )
        if table.faults:
            number = min(table.faults)
            raise InputError(f"texts: number {number + 1}: {table.faults[number]}")
        known: Any = self.network
        losses = torch.zeros(len(texts))
        for row in range(len(texts)):
            batch = table.batch([row], self._device)
            logits = known(**batch.inputs).logits[0, :-1].float()
            each = nn.functional.cross_entropy(
                logits, batch.inputs["input_ids"][0, 1:], reduction="none"
            )
            assert batch.counted is not None
            losses[row] = each[batch.counted[0, 1:]].mean()
        return losses

    def choose(self, rows: Sequence[tuple[str, Sequence[str]]]) -> list[int]:
        """Return the number (from 0) of the likeliest ending of each row (context, endings).

        It is the ending with the largest mean of log p over its tokens.

        Raises:
            InputError: the model was not trained with task=choice, or a row cannot be used.
        """
        if not self.chooses:
            raise InputError("choose: this model was not trained with task=choice; use score")
        return [
            int(self.score([(context, ending) for ending in endings]).argmin())
            for context, endings in rows
        ]

    def generate(self, prompts: Any, max_new_tokens: int = 64, batch: int = BATCH) -> list[str]:
        """Return the model's continuation of each prompt, with the likeliest token at each step.

        Args:
            prompts: a text or a list of texts; where rows are conversations, a list of messages or a
                list of such.
            max_new_tokens: the most tokens of a continuation, if the model does not end it before.
            batch: how many prompts are continued at once.
        """
        asked = self._asked(prompts)
        return continued(self.network, self.tokenizer, asked, max_new_tokens, batch)

    def answer(
        self,
        rows: Sequence[tuple[Any, str | Sequence[str]]],
        max_new_tokens: int = MOST,
        batch: int = BATCH,
    ) -> Answers:
        """Generate an answer to each row's prompt; return the answers, their exact match and F1.

        Args:
            rows: prompts as for `generate`, each with the accepted answer, or with several.
            max_new_tokens: the most tokens of an answer.
            batch: how many prompts are continued at once.

        Raises:
            InputError: there is no row, or one has no accepted answer.
        """
        said = self.generate([prompt for prompt, _ in rows], max_new_tokens, batch)
        return judged(said, [accepted for _, accepted in rows])

    def save(self, folder: str | Path) -> None:
        """Write the model with its adapter merged into its weights, in float32, and the tokeniser.

        `AutoModelForCausalLM`, `pipeline("text-generation")` and servers of models in Transformers'
        form read the folder.
        """
        network: Any = copy.deepcopy(self.network)
        if hasattr(network, "merge_and_unload"):
            network = network.merge_and_unload()
        network.config.use_cache = True  # as for generation
        network.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _asked(self, prompts: Any) -> list[list[int]]:
        """Return the tokens of each prompt."""
        given: list[Prompt] = []
        if self.messages:
            given = [prompts] if _is_conversation(prompts) else list(prompts)
        else:
            given = [row[0] for row in rows_of(prompts, 1)]
        return prompt_tokens(self.tokenizer, given, self.messages)

    def _conversations(self, rows: Any) -> list[tuple[str]]:
        given = [rows] if _is_conversation(rows) else list(rows)
        return [(conversation(row, f"texts: number {i}"),) for i, row in enumerate(given, 1)]


def _is_conversation(value: Any) -> bool:
    """Return whether a value is one list of messages, and not a list of such."""
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping)


def load_language(folder: Path, device: torch.device | None = None) -> LoadedLanguageModel:
    """Return the language model of a finished run's folder; see `fedsvd.exports.load.load`."""
    told, model = description(folder, FOLDER, FILE)
    network, tokenizer = put_together(folder, told, model, load_language_model, body_of)
    fit_tokenizer(model.name, body_of(network), tokenizer)
    network = with_adapter(folder, told, network).to(device)
    return LoadedLanguageModel(
        tokenizer,
        network,
        model,
        bool(told["messages"]),
        int(told["text_columns"]),
        told.get("task") == "choice",
    )
