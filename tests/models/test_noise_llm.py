"""LLM4DSR's detector on a tiny random Llama: the numeric checks of its specification."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from noisy_logs import NOUNS, clustered_log
from tiny import windows_of
from tiny_llm import tiny_llama

from models.noise_llm import NO_LABEL, NoiseLlm, NoiseLlmConfig, left_padded, positions, supervised
from recsys.errors import ConfigError, DataError
from recsys.noise import Judged, NoiseDetector
from recsys.noise_prompts import HEAD, TAIL

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""peft asks transformers for it."""
WORDS = (*NOUNS, "number", *map(str, range(61)))
TITLES = ["", *(f"{NOUNS[(row - 1) // 10]} number {row}" for row in range(1, 61))]
COUNTS = np.arange(61, dtype=np.int64)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny Llama that knows the titles' words."""
    return str(
        tiny_llama(tmp_path_factory.mktemp("llama"), [*WORDS, *dict.fromkeys(re.findall(r"\w+|[.:]", HEAD + TAIL))])
    )


@pytest.fixture
def detector(llama: str) -> NoiseLlm:
    """Fresh adapters on it."""
    torch.manual_seed(0)
    return NoiseLlm(NoiseLlmConfig(source=llama), TITLES, COUNTS).eval()


def judged(windows: list[list[int]]) -> Judged:
    """Windows as detectors get them."""
    padded = windows_of(windows)
    return Judged(padded.items, padded.lengths.astype(np.int64), np.zeros(len(windows), dtype=np.int64))


def randomise(detector: NoiseLlm) -> None:
    """Adapters that do something."""
    with torch.no_grad():
        for weight in detector.adapters.values():
            weight.normal_(std=0.1)


def test_fresh_adapters_change_nothing_and_only_they_learn(detector: NoiseLlm) -> None:
    tokens, mask = left_padded([detector.prompt([1, 2, 3])])
    with torch.no_grad(), detector.network.disable_adapter():
        base = detector.network(tokens, mask).logits
    with torch.no_grad():
        assert torch.equal(detector.network(tokens, mask).logits, base)
    assert sum(weight.numel() for weight in detector.parameters() if weight.requires_grad) == 3584
    assert sum(weight.numel() for weight in detector.network.parameters() if not weight.requires_grad) == 112_448
    assert sum(weight.numel() for weight in detector.state_dict().values()) == 3584


def test_merged_adapters_say_the_same(detector: NoiseLlm) -> None:
    randomise(detector)
    tokens, mask = left_padded([detector.prompt([1, 2, 3, 40])])
    with torch.no_grad():
        apart = detector.network(tokens, mask).logits
        merged = detector.network.merge_and_unload()(tokens, mask).logits
    assert float((apart - merged).abs().max()) < 1e-5 * float(apart.abs().max())
    assert float(apart.std()) > 0


def test_padding_on_the_left_changes_nothing(detector: NoiseLlm) -> None:
    randomise(detector)
    short, long = detector.prompt([1, 2, 3]), detector.prompt(list(range(1, 12)))
    alone, mask = left_padded([short])
    beside, wide = left_padded([short, long])
    with torch.no_grad():
        one = detector.network(alone, mask, position_ids=positions(mask)).logits[0, -1].log_softmax(dim=0)
        both = detector.network(beside, wide, position_ids=positions(wide)).logits[0, -1].log_softmax(dim=0)
    assert float((one - both).abs().max()) < 1e-5
    windows = [[1, 2, 3], list(range(1, 12)), [7, 8, 30, 9]]
    together = detector.naming(judged(windows))
    for window, row in zip(windows, together, strict=True):
        np.testing.assert_allclose(detector.naming(judged([window]))[0], row[: len(window)], atol=1e-5)


def test_probabilities_sum_to_one_and_are_those_of_whole_titles(detector: NoiseLlm) -> None:
    """Titles of a cluster share two tokens: what tells them apart is read after those, as if each text stood alone."""
    randomise(detector)
    assert isinstance(detector, NoiseDetector)
    window = [1, 2, 12, 3, 2]
    (found,) = detector.naming(judged([window]))
    assert abs(float(found.sum()) - 1) < 1e-6
    assert found[1] == found[4]
    prompt = detector.prompt(window)
    with torch.no_grad():
        first = detector.network(torch.tensor([prompt])).logits[0, -1].double()
        river, engine = (detector.answers[row][0] for row in (1, 12))
        is_river = torch.stack([first[river], first[engine]]).softmax(dim=0)[0]
        after = detector.network(torch.tensor([[*prompt, *detector.answers[1][:2]]])).logits[0, -1].double()
    numbers = [detector.answers[row][2] for row in (1, 2, 3)]
    expected = is_river * after[numbers].softmax(dim=0)
    np.testing.assert_allclose([found[0], found[1] * 2, found[3]], expected.numpy(), rtol=1e-4)


def test_training_and_scoring_share_their_prompt_to_the_token(detector: NoiseLlm) -> None:
    batch = detector.training_batch(windows_of([[1, 2, 3, 4], [11, 12, 13]]), np.random.default_rng(0))
    prompts = [detector.prompt(row[:n].tolist()) for row, n in zip(batch.history, batch.lengths.tolist(), strict=True)]
    places = (batch.target != 0).int().argmax(dim=1).tolist()
    answers = [detector.answers[int(row[place])] for row, place in zip(batch.history, places, strict=True)]
    tokens, mask, labels = supervised(prompts, answers)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        real = tokens[row][mask[row] == 1].tolist()
        assert real == [*prompt, *answer]
        assert int((labels[row] != NO_LABEL).sum()) == len(answer) == len(detector.prompts.title(TITLES[1])) + 2
        assert labels[row][labels[row] != NO_LABEL].tolist() == list(answer)
    text = detector.prompts._tokenizer.decode(prompts[1])
    assert text.endswith('The item that does not fit : "')


def test_only_answers_are_in_the_loss(detector: NoiseLlm) -> None:
    """By hand: the mean of the answer's tokens' cross-entropies."""
    randomise(detector)
    batch = detector.training_batch(windows_of([[1, 2, 3, 4]]), np.random.default_rng(0))
    place = int((batch.target[0] != 0).int().argmax())
    prompt, answer = detector.prompt(batch.history[0].tolist()), detector.answers[int(batch.history[0, place])]
    with torch.no_grad():
        logits = detector.network(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(dim=1)
        expected = -np.mean([float(logits[len(prompt) + step - 1, token]) for step, token in enumerate(answer)])
        assert detector.loss(batch).item() == pytest.approx(expected, abs=1e-5)


def test_a_long_prompt_loses_its_oldest_titles_never_the_question(llama: str) -> None:
    config = NoiseLlmConfig(source=llama, max_tokens=70, title_tokens=4)
    prompts = NoiseLlm(config, TITLES, COUNTS).prompts
    whole, tail = prompts.prompt(TITLES[1:4]), prompts.prompt([])[-3:]
    many = prompts.prompt(TITLES[1:40])
    assert len(many) + len(prompts.answer(TITLES[1])) <= 70
    assert many[-3:] == whole[-3:] == tail
    kept = prompts.prompt(TITLES[39:40])
    assert many[-20:-3][-6:] == kept[-9:-3]
    with pytest.raises(ConfigError, match=r"denoise: max_tokens=30 leaves .* tokens for titles of up to"):
        NoiseLlm(replace(config, max_tokens=30), TITLES, COUNTS)


def test_it_learns_to_name_what_is_wrong(llama: str) -> None:
    """64 windows by heart: accuracy 100 %. No two titles share a token, so the trie alone tells nothing."""
    torch.manual_seed(0)
    everything = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    config = NoiseLlmConfig(source=llama, rank=32, lora_alpha=64, lora_dropout=0.0, targets=everything)
    detector = NoiseLlm(config, ["", *map(str, range(1, 61))], COUNTS)
    log = clustered_log(64, length=4, rate=0)
    batch = detector.training_batch(windows_of(log.clean), np.random.default_rng(0))
    windows = Judged(batch.history.numpy(), np.full(64, 4), np.zeros(64, dtype=np.int64))
    places = (batch.target != 0).int().argmax(dim=1).numpy()
    assert (detector.naming(windows).argmax(axis=1) == places).mean() < 0.5
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-2, weight_decay=0)
    detector.train()
    for _ in range(60):
        optimizer.zero_grad()
        loss = detector.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        if loss.item() < 0.05:
            break
    assert (detector.naming(windows).argmax(axis=1) == places).all()


def test_what_cannot_be_used_is_explained(llama: str) -> None:
    with pytest.raises(ConfigError, match="has no modules called query for adapters; name its own by --llm-targets"):
        NoiseLlm(NoiseLlmConfig(source=llama, targets=("query",)), TITLES, COUNTS)
    with pytest.raises(DataError, match="denoise: no item has a text for a language model to read"):
        NoiseLlm(NoiseLlmConfig(source=llama), [""] * 61, COUNTS)
    with pytest.raises(ConfigError, match=r"a hub model needs its revision .* set --llm-revision"):
        _ = NoiseLlmConfig(source="some/model").identity
