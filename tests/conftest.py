"""Shared by all tests: one torch thread, patient hypothesis, and where the real data lies."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("recsys", deadline=None, derandomize=True)
settings.load_profile("recsys")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Folder of one real dataset below RECSYS_DATA; skips the test where it is absent."""
    root = Path(os.environ.get("RECSYS_DATA", REPOSITORY.parent / "shared" / "data"))

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"real dataset {name!r} is not below {root}; set RECSYS_DATA to the folder that holds it")
        return root / name

    return folder
