"""Item texts into the store: once each, and what a killed run has done stays."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from builders import random_rows, write_dataset
from command_line import run_recsys
from llm_server import embedding, serving
from safetensors.torch import load_file
from tiny import tiny_bert
from training import trained
from transformers import GPT2Config, GPT2Model

from pipelines.embed import EmbedConfig, embed
from pipelines.prepare import PrepareConfig, prepare
from pipelines.reporter import Reporter
from recsys.errors import ConfigError
from recsys.prepared import Prepared
from recsys.text_vectors import SentenceEncoder

QUIET = Reporter(quiet=True)
LETTERS = tuple("abcdefghij")


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """25 items: one without a title, two with the same."""
    monkeypatch.setenv("RECSYS_TEXT_VECTORS", str(tmp_path / "vectors.sqlite"))
    rows = random_rows(1, 30, 25, 600)
    names = sorted({item for _, item, _ in rows})
    titles = [None, "a b", "a b", *(f"{LETTERS[n % 10]} {LETTERS[n // 10]} c" for n in range(3, len(names)))]
    dataset = write_dataset(tmp_path / "dataset", rows, pl.DataFrame({"item_id": names, "title": titles}))
    return prepare(PrepareConfig(dataset=dataset, out=tmp_path / "prepared"))


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    """A random BERT."""
    return str(tiny_bert(tmp_path / "encoder", LETTERS))


@pytest.fixture
def decoder(tmp_path: Path) -> str:
    """A random GPT-2 with BERT's words, whose tokeniser knows no padding and pads in front."""
    folder = tiny_bert(tmp_path / "decoder", LETTERS)
    GPT2Model(
        GPT2Config(vocab_size=15, n_embd=12, n_layer=2, n_head=2, n_positions=70, bos_token_id=2, eos_token_id=3)
    ).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"pad_token": None, "eos_token": "[SEP]", "padding_side": "left"}
    config["model_input_names"] = ["input_ids", "attention_mask"]
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def test_every_text_is_encoded_once_and_training_finds_all(
    prepared: Prepared, tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_items = len(prepared.items)
    counts = embed(EmbedConfig(data=prepared.folder, encoder=encoder), QUIET)
    assert (counts["items"], counts["distinct_texts"], counts["encoded"]) == (
        num_items - 1,
        num_items - 2,
        num_items - 2,
    )
    assert counts["width"] == 12

    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(SentenceEncoder, "encode", refuse)
    assert embed(EmbedConfig(data=prepared.folder, encoder=encoder), QUIET)["encoded"] == 0
    assert embed(EmbedConfig(data=tmp_path / "dataset", encoder=encoder), QUIET)["encoded"] == 0
    trained(prepared, tmp_path / "run", "model.items=gated", f"model.text_encoder={encoder}", "model.text_width=12")


def test_a_killed_run_goes_on(prepared: Prepared, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.text_vectors.BATCH_TEXTS", 5)
    encode, asked = SentenceEncoder.encode, []

    def killed(self: SentenceEncoder, texts: Sequence[str]) -> np.ndarray:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(SentenceEncoder, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        embed(EmbedConfig(data=prepared.folder, encoder=encoder), QUIET)
    monkeypatch.setattr(SentenceEncoder, "encode", encode)
    assert embed(EmbedConfig(data=prepared.folder, encoder=encoder), QUIET)["encoded"] == len(prepared.items) - 2 - 15


def test_a_decoder_gives_the_state_of_its_last_token(decoder: str) -> None:
    """As the Hugging Face model alone says of each text; padding, which the tokeniser would put in front, is unseen."""
    import torch

    texts = ["a", "b c d e f g", "a j"]
    found = SentenceEncoder(decoder, pooling="last").encode(texts)
    model, words = GPT2Model.from_pretrained(decoder).eval(), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([[2, *(words.index(word) for word in text.split()), 3]])
        with torch.no_grad():
            state = model(ids).last_hidden_state[0, -1]
        np.testing.assert_allclose(vector, (state / state.norm()).numpy(), atol=1e-5)


def test_poolings_are_kept_apart(prepared: Prepared, encoder: str) -> None:
    mean = embed(EmbedConfig(data=prepared.folder, encoder=encoder), QUIET)
    last = embed(EmbedConfig(data=prepared.folder, encoder=encoder, pooling="last"), QUIET)
    assert mean["encoded"] == last["encoded"] > 0
    assert mean["encoder"] != last["encoder"]


def test_the_command_says_how_much_and_how_fast(prepared: Prepared, encoder: str) -> None:
    code, output, _ = run_recsys("embed", prepared.folder, "--encoder", encoder, "--json")
    counts = json.loads(output)
    assert (code, counts["encoded"]) == (0, len(prepared.items) - 2)
    assert counts["texts_per_second"] > 0
    assert counts["store"].endswith("vectors.sqlite")
    code, output, _ = run_recsys("embed", prepared.folder, "--encoder", encoder)
    assert code == 0
    assert "encoded: 0\n" in output


def test_a_server_encodes_once_and_trainings_need_it_no_more(prepared: Prepared, tmp_path: Path) -> None:
    with serving(embedding) as server:
        command = ("embed", prepared.folder, "--endpoint", server.url, "--encoder", "org/bge", "--json")
        code, output, error = run_recsys(*command)
        assert code == 0, error
        counts, asked = json.loads(output), len(server.requests)
        assert (counts["encoded"], counts["width"], asked) == (len(prepared.items) - 2, 5, 1)
        assert json.loads(run_recsys(*command)[1])["encoded"] == 0
        assert len(server.requests) == asked
        assert run_recsys(*command, "--dimensions", 3, "--revision", "v2")[0] == 0
    settings = ("model.items=gated", f"model.text_encoder={counts['text_encoder']}")
    run = trained(prepared, tmp_path / "run", *settings, "model.text_width=5", "model.text_components=2")
    matrices = [value for name, value in load_file(run.folder / "model.safetensors").items() if "whitening.mat" in name]
    assert [matrix.shape for matrix in matrices] == [(5, 2)]
    assert matrices[0].any(), "fitted on training items and kept with the run"
    fewer = ("model.text_encoder=endpoint:org/bge?dimensions=3", "model.text_revision=v2", "model.text_width=3")
    trained(prepared, tmp_path / "fewer", "model.items=gated", *fewer)
    with pytest.raises(ConfigError, match=r"model.text_width=4, and the encoder's vectors have 5 numbers"):
        trained(prepared, tmp_path / "wrong", *settings, "model.text_width=4")
    with pytest.raises(ConfigError, match="the store of vectors lacks 23 texts or more; fill it first with"):
        trained(prepared, tmp_path / "other", "model.items=gated", "model.text_encoder=endpoint:other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing",), "missing has no items.parquet; name the output of `recsys ingest` or `recsys prepare`"),
        (("bare",), "bare has no item text; ingest an item table with --items"),
        (("prepared", "--encoder", "some/model"), "is no folder, and a hub model needs its revision"),
        (("prepared", "--dimensions", "3"), "--dimensions 3: is for a server's vectors; give its --endpoint"),
        (("prepared", "--endpoint", "http://x/v1"), "--endpoint: name the model with --encoder"),
        (("prepared", "--endpoint", "x", "--encoder", "bge"), "endpoint 'x': is no address"),
    ],
)
def test_what_cannot_be_done_is_explained(
    prepared: Prepared, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    write_dataset(tmp_path / "bare", random_rows(1, 5, 5, 50))
    assert prepared.folder == tmp_path / "prepared"
    code, _, error = run_recsys("embed", tmp_path / arguments[0], *arguments[1:])
    assert code == 1 if len(arguments) == 1 else code != 0
    assert message in " ".join(error.split())
