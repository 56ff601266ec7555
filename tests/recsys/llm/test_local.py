"""A causal model in this process, and the same one behind HTTP: one answer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from llm_jobs import FakeTime, Free, call_of, job_of
from llm_server import Reply, serving
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recsys.errors import ConfigError
from recsys.llm.calls import Call, Message, Refused, Sampling, Usage
from recsys.llm.chat import ChatModel
from recsys.llm.endpoint import Endpoint, EndpointConfig
from recsys.llm.local import LocalModel
from recsys.llm.tokens import ByTokenizer, prompt_tokens

WORDS = ["[UNK]", "[END]", "system", "user", "assistant", ":", *"abcdefgh"]
CHAT = "{% for turn in messages %}{{ turn.role }} : {{ turn.content }} {% endfor %}assistant :"


def tiny_llama(folder: Path, chat: bool = True) -> Path:
    """A random one of these words."""
    plain = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", eos_token="[END]")
    tokenizer.chat_template = CHAT if chat else None
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        bos_token_id=1,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a chat template."""
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def question(text: str, **sampling: Any) -> Call:
    """A system and a user message."""
    messages = (Message(role="system", content="a b"), Message(role="user", content=text))
    return Call(messages=messages, sampling=Sampling(**{"max_tokens": 6, **sampling}))


def test_the_answer_is_the_likeliest_continuation(llama: Path) -> None:
    """Token by token, as the Hugging Face model alone says."""
    answer = LocalModel(str(llama)).answer(question("c d e"), Free())
    model = LlamaForCausalLM.from_pretrained(llama).eval()
    ids = [WORDS.index(word) for word in ["system", ":", "a", "b", "user", ":", "c", "d", "e", "assistant", ":"]]
    prompt = len(ids)
    with torch.no_grad():
        while len(ids) < prompt + 6 and ids[-1] != 1:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    said = ids[prompt:]
    assert answer.text == " ".join(WORDS[token] for token in said if token != 1)
    assert answer.usage == Usage(prompt=11, output=len(said))
    assert answer.truncated == (said[-1] != 1)


def test_the_same_model_behind_http_gives_the_same_answers(llama: Path) -> None:
    local = LocalModel(str(llama))

    def handler(_: str, body: dict[str, Any], __: int) -> Reply:
        messages = tuple(Message(role=turn["role"], content=turn["content"]) for turn in body["messages"])
        answer = local.answer(Call(messages=messages, sampling=Sampling(max_tokens=body["max_tokens"])), Free())
        assert answer.usage is not None
        usage = {"prompt_tokens": answer.usage.prompt, "completion_tokens": answer.usage.output}
        choice = {"message": {"content": answer.text}, "finish_reason": answer.finish_reason}
        return Reply({"choices": [choice], "usage": usage})

    with serving(handler) as server:
        served = ChatModel(Endpoint(EndpointConfig(url=server.url), FakeTime().clock), "llama")
        for text in ("a", "b c d", "h g f e d c b a"):
            one, other = served.answer(question(text), Free()), local.answer(question(text), Free())
            assert (one.text, one.usage, one.finish_reason) == (other.text, other.usage, other.finish_reason)
        served.close()


def test_a_drawn_answer_depends_on_its_seed_alone(llama: Path) -> None:
    model = LocalModel(str(llama))
    texts = [model.answer(question("c", temperature=1.5, seed=seed), Free()).text for seed in (1, 2, 1, 3)]
    assert texts[0] == texts[2]
    assert len(set(texts)) > 1


def test_a_model_without_a_chat_template_goes_on_from_the_text(tmp_path: Path) -> None:
    answer = LocalModel(str(tiny_llama(tmp_path, chat=False))).answer(question("c d"), Free())
    assert answer.usage is not None
    assert answer.usage.prompt == 4


def test_a_job_of_a_random_model_gives_up_and_says_why(llama: Path, tmp_path: Path) -> None:
    job = job_of(LocalModel(str(llama)), tmp_path / "answers.sqlite")
    outcomes = job.ask_all([call_of("a b", sampling=Sampling(max_tokens=4)), call_of("c " * 50)])
    assert [outcome.how for outcome in outcomes] == ["refused", "refused"]
    assert "are more than the model's 40" in str(outcomes[1].problem)
    assert job.account.calls == 1, "the first answer; its correction is too long"


def test_a_prompt_that_is_too_long_is_refused(llama: Path) -> None:
    with pytest.raises(Refused, match="43 tokens and an answer of 6 are more than the model's 40"):
        LocalModel(str(llama)).answer(question("c " * 35), Free())


def test_its_tokeniser_counts(llama: Path) -> None:
    counter = ByTokenizer(llama)
    assert counter.count("a b, c") == counter.most("a b, c") == 4
    assert prompt_tokens(question("c d e"), counter) == 3 + 4 + 2 + 4 + 3


def prompt_of(model: LocalModel) -> int:
    """Tokens of a prompt with its template."""
    usage = model.answer(question("a"), Free()).usage
    assert usage is not None
    return usage.prompt


def test_the_identity_is_that_of_the_weights(llama: Path, tmp_path: Path) -> None:
    identity = LocalModel(str(llama)).identity
    assert identity == LocalModel(str(llama)).identity
    torch.manual_seed(1)
    other = LlamaForCausalLM.from_pretrained(llama)
    other.model.norm.weight.data += 1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((llama / name).read_bytes())
    other.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    changed = LocalModel(str(tmp_path))
    changed_identity = changed.identity
    assert prompt_of(changed) == 3, "no chat template yet"
    (tmp_path / "chat_template.jinja").write_bytes((llama / "chat_template.jinja").read_bytes())
    again = LocalModel(str(tmp_path))
    assert len({identity, changed_identity, again.identity}) == 3
    assert prompt_of(again) == 9


@pytest.mark.parametrize("settings", [{"constrained": True}, {"sampling": Sampling(extra={"top_k": 2})}])
def test_what_only_a_server_can_do_is_refused(llama: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"leave out --constrained and --body, or serve the model and give its --end"):
        LocalModel(str(llama)).answer(call_of("a", **settings), Free())


def test_a_model_that_cannot_be_had_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"language model 'some/model': is no folder, .*set --revision"):
        LocalModel("some/model")
    with pytest.raises(ConfigError, match=r"language model .* cannot be loaded .*set --model to a folder"):
        LocalModel(str(tmp_path))
