"""A tiny random Llama of given words, as `save_pretrained` leaves it: 112,448 weights for a vocabulary of 300."""

from collections.abc import Sequence
from pathlib import Path

VOCABULARY = 300


def tiny_llama(folder: Path, words: Sequence[str], seed: int = 0) -> Path:
    """Weights, config and a tokeniser that knows these words, `"` and `,` and calls all else unknown."""
    import torch  # seconds with transformers, for the few tests that need it
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate(["<unk>", "<s>", "</s>", '"', ",", *words])}
    assert len(vocabulary) <= VOCABULARY
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,  # of 0.02 a head could not speak out, whatever adapters say
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
