"""The page of head and beam search says what its figures say."""

import torch
from contract import NUM_ITEMS
from lite import make

from benchmarks.beam_search import Way, in_turn, page, ways
from benchmarks.generative_ids import IdTokens


def test_the_page_says_what_the_head_saves() -> None:
    row = {"length": 5, "users": 1, "head": 1.0, "beam": 50.0}
    metrics = {"ndcg@10": 0.08, "hit_rate@10": 0.12}
    training = {"epochs": 12, "best_epoch": 7, "seconds": 300.0}
    written = page({
        "milliseconds": [row],
        "item_cache": {"milliseconds_a_text": 2.0, "adapter_seconds": 0.05},
        "items": 4000,
        "data": "scientific",
        "config": {"num_blocks": 1, "embedding_dim": 256},
        "token_sizes": [64, 9],
        "parameters": {"blocks": 12_345},
        "training": {"head": training, "beam": training},
        "generators": [{"dropout": 0.5, "ndcg@10": 0.03}],
        "quality": {"head": metrics, "beam 20": metrics},
        "created": "2026-11-22T00:00:00+00:00",
        "commit": None,
        "torch": "2.13",
    })
    assert "| 5 | 1 | 98.0% |" in written
    assert "2.0 ms each, 8 s for all 4,000" in written
    assert "| head | 0.0800 | 0.1200 | 12 (7) | 300 |" in written


def test_all_ways_answer_with_items_of_the_catalogue() -> None:
    model = make(num_heads=3, positions="none").eval()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(NUM_ITEMS + 1, 6, generator=generator).numpy()
    tried = ways(model, IdTokens.of_vectors(vectors, 3, 4))
    items = torch.randint(1, NUM_ITEMS + 1, (2, 4), generator=generator)
    with torch.no_grad():
        for way in tried:
            assert way.answer(items) is not None, way.name
    assert len(tried) == 5


def test_a_slow_way_is_asked_less_often() -> None:
    asked = {"fast": 0, "slow": 0}

    def ask(name: str) -> Way:
        return Way(name, lambda _: asked.__setitem__(name, asked[name] + 1), share=0.2 if name == "slow" else 1.0)

    taken = in_turn([ask("fast"), ask("slow")], [torch.zeros(1, 1)] * 10)
    assert asked == {"fast": 10, "slow": 2}
    assert taken.keys() == asked.keys()
