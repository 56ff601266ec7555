"""LLM4DSR's detector (arXiv:2408.08208): a language model names the odd item of a window by its title.

Reference: WANGBohaO-jpg/LLM4DSR, which has no licence; written from the paper and its description.
Deviates on purpose:
  - a window's titles compete by all their tokens (`recsys.title_trie`), not by the first one;
  - one function makes the prompts of training and of scoring, and prompts are no part of the loss;
  - wrong items are drawn by popularity ** alpha and never are the item that was there;
  - no titles are generated: what replaces an item is chosen from the catalogue (`recsys.corrections`).
Adapters of rank `rank` (LoRA) on queries and values learn; they are all of the weights that are kept.
Dimensions: B windows, L positions, T tokens, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int
from torch import Tensor, nn

from recsys.batches import TrainBatch, WindowShape
from recsys.corruption import NoiseSource, corrupt_one
from recsys.errors import ConfigError, DataError
from recsys.noise import Judged
from recsys.noise_prompts import TEMPLATE, NamingPrompts
from recsys.pretrained import Pretrained
from recsys.sequences import IntArray, Windows
from recsys.title_trie import Answer, answer_probabilities, steps_to_read
from recsys.training import TrainingConfig

NO_LABEL = -100
WINDOWS_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class NoiseLlmConfig:
    """Any causal model of Hugging Face: a folder, or a hub name with its `revision`; and its fine-tuning.

    `windows` of `length` events are drawn for each of `epochs`, none of them for the model as it comes.
    """

    source: str
    revision: str | None = None
    length: int = 11
    rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    max_tokens: int = 512
    title_tokens: int = 32
    alpha: float = 0.5
    windows: int = 5000
    epochs: int = 10
    batch_size: int = 128
    micro_batches: int = 16
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("rank", "title_tokens", "windows", "batch_size", "micro_batches", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"denoise: llm {name}={getattr(self, name)} must be above 0.")

    @property
    def pretrained(self) -> Pretrained:
        """Where the model lies."""
        return Pretrained(self.source, self.revision, "language model", ("--llm", "--llm-revision"))

    @property
    def identity(self) -> str:
        """Of weights, tokeniser and prompt."""
        return f"{self.pretrained.identity}, prompt {TEMPLATE}"

    def training(self) -> TrainingConfig:
        """How adapters learn."""
        return TrainingConfig(
            epochs=self.epochs,
            epoch_batches=-(-self.windows // self.batch_size),
            batch_size=self.batch_size,
            accumulation=min(self.micro_batches, self.batch_size),
            learning_rate=self.learning_rate,
            warmup_steps=20,
        )


class NoiseLlm(nn.Module):
    """A frozen language model with adapters; `titles` are of all item rows, padding's first."""

    def __init__(self, config: NoiseLlmConfig, titles: Sequence[str], counts: IntArray) -> None:
        super().__init__()
        if not any(titles):
            raise DataError(
                "denoise: no item has a text for a language model to read; ingest an item table with --items."
            )
        self.config, self.titles = config, list(titles)
        self.max_len = config.length
        pretrained = config.pretrained
        self.prompts = NamingPrompts(pretrained.tokenizer, config.max_tokens, config.title_tokens)
        self.source = NoiseSource(counts, config.alpha)
        self._network = (with_adapters(pretrained.causal.float(), config),)  # in a tuple: no part of the weights
        learned = {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}
        self.adapters = nn.ParameterDict({name.replace(".", "/"): weight for name, weight in learned.items()})

    @property
    def network(self) -> Any:
        """The language model with its adapters."""
        return self._network[0]

    def train(self, mode: bool = True) -> "NoiseLlm":
        """Turns the adapters' dropout on or off."""
        super().train(mode)
        self.network.train(mode)
        return self

    @cached_property
    def answers(self) -> list[Answer]:
        """Of every item row."""
        return [tuple(self.prompts.answer(title)) for title in self.titles]

    @property
    def window(self) -> WindowShape:
        """Side by side."""
        return WindowShape(length=self.config.length, overlap=0)

    @property
    def reads_times(self) -> bool:
        """Times are not looked at."""
        return False

    def learn_popularity(self, counts: IntArray) -> None:
        """All it needs to know of popularity it was made with."""

    def training_batch(self, windows: Windows, rng: np.random.Generator) -> TrainBatch:
        """One event of each window is another item; the target stands at its place and is the row that was there."""
        corrupted = corrupt_one(windows.items, windows.lengths.astype(np.int64), self.source, rng)
        chosen = np.arange(windows.items.shape[1]) == corrupted.places[:, None]
        return TrainBatch(
            history=torch.from_numpy(corrupted.items),
            timestamps=torch.from_numpy(windows.timestamps),
            target=torch.from_numpy(np.where(chosen, windows.items, 0)),
            lengths=torch.from_numpy(windows.lengths),
        )

    def loss(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """Cross-entropy of the answers' tokens, a mean over each answer and over the batch."""
        asked = (batch.target != 0).any(dim=1)
        items, lengths = batch.history[asked].cpu(), batch.lengths[asked].tolist()
        places = (batch.target[asked] != 0).int().argmax(dim=1).tolist()
        prompts = [self.prompt(row[:length].tolist()) for row, length in zip(items, lengths, strict=True)]
        answers = [self.answers[int(row[place])] for row, place in zip(items, places, strict=True)]
        tokens, mask, labels = supervised(prompts, answers)
        device = batch.history.device
        logits = self._logits(tokens.to(device), mask.to(device))[:, :-1].float()
        wanted = labels[:, 1:].to(device)
        losses = F.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=NO_LABEL, reduction="none")
        return (losses.sum(dim=1) / (wanted != NO_LABEL).sum(dim=1)).mean()

    def prompt(self, items: Sequence[int]) -> list[int]:
        """Tokens of a window's prompt: the same in training and in scoring."""
        return self.prompts.prompt([self.titles[row] for row in items])

    @torch.no_grad()
    def naming(self, windows: Judged) -> Float[np.ndarray, "N L"]:
        """See `recsys.noise.NoiseDetector`; items with the same title share its probability."""
        self.eval()
        result = np.zeros(windows.items.shape, dtype=np.float32)
        for first in range(0, len(windows), WINDOWS_AT_ONCE):
            part = slice(first, first + WINDOWS_AT_ONCE)
            lengths = windows.lengths[part].tolist()
            rows = [row[:length].tolist() for row, length in zip(windows.items[part], lengths, strict=True)]
            for number, named in enumerate(self._named(rows), start=first):
                result[number, : len(named)] = named
        return result

    def _named(self, windows: Sequence[list[int]]) -> list[np.ndarray]:
        """Probabilities of the events of some windows, prompts read once and shared by all titles."""
        tokens, mask = left_padded([self.prompt(items) for items in windows])
        device = next(self.parameters()).device
        mask = mask.to(device)
        read = self.network.to(device)(tokens.to(device), mask, position_ids=positions(mask), use_cache=True)
        choices = [sorted({self.answers[row] for row in items}) for items in windows]
        steps = max(map(steps_to_read, choices))
        owner = torch.tensor([number for number, choice in enumerate(choices) for _ in choice], device=device)
        logits = read.logits[owner, -1:].float()
        if steps > 1:
            begun = [answer[: steps - 1] for choice in choices for answer in choice]
            logits = torch.cat([logits, self._continued(read.past_key_values, begun, owner, mask)], dim=1)
        return [
            shared_by_title([self.answers[row] for row in items], choice, answer_probabilities(own, choice))
            for items, choice, own in zip(windows, choices, logits.split([len(c) for c in choices]), strict=True)
        ]

    def _continued(
        self, cache: Any, begun: Sequence[Answer], owner: Int[Tensor, " R"], mask: Int[Tensor, "B T"]
    ) -> Float[Tensor, "R K V"]:
        """Logits after each of the first tokens of answers, behind the prompts of their `owner`."""
        cache.batch_select_indices(owner)
        width = max(map(len, begun))
        tokens = torch.tensor([[*answer, *[0] * (width - len(answer))] for answer in begun], device=owner.device)
        known = mask[owner]
        places = known.sum(dim=1, keepdim=True) + torch.arange(width, device=owner.device)
        mask = torch.cat([known, torch.ones_like(tokens)], dim=1)
        logits: Tensor = self.network(tokens, mask, position_ids=places, past_key_values=cache, use_cache=True).logits
        return logits.float()

    def _logits(self, tokens: Int[Tensor, "B T"], mask: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        logits: Tensor = self.network.to(tokens.device)(tokens, mask, position_ids=positions(mask)).logits
        return logits


def with_adapters(network: Any, config: NoiseLlmConfig) -> Any:
    """The network with LoRA on its `targets`; nothing else learns."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ConfigError("denoise: fine-tuning a language model needs peft; pip install 'recsys[llm]'.") from None
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.targets),
    )
    try:
        return get_peft_model(network, lora)
    except ValueError:
        raise ConfigError(
            f"denoise: {config.source} has no modules called {', '.join(config.targets)} for adapters; name its own "
            "by --llm-targets."
        ) from None


def supervised(
    prompts: Sequence[list[int]], answers: Sequence[Answer]
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Tokens padded on the left, which of them are any, and labels: the answers' tokens alone."""
    tokens, mask = left_padded([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)])
    labels = torch.full_like(tokens, NO_LABEL)
    for row, answer in enumerate(answers):
        labels[row, -len(answer) :] = torch.tensor(answer)
    return tokens, mask, labels


def left_padded(rows: Sequence[list[int]]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Tokens that end together, and a mask of those that are real."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*[0] * (width - len(row)), *row] for row in rows])
    mask = torch.tensor([[*[0] * (width - len(row)), *[1] * len(row)] for row in rows])
    return tokens, mask


def positions(mask: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Places counted from the first real token, so that padding changes nothing."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def shared_by_title(own: Sequence[Answer], choice: Sequence[Answer], probabilities: Float[Tensor, " A"]) -> np.ndarray:
    """Of each event: its title's probability, divided among the events that have the same title."""
    by_title = dict(zip(choice, probabilities.tolist(), strict=True))
    return np.array([by_title[answer] / own.count(answer) for answer in own], dtype=np.float32)
