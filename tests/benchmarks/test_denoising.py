"""Windows become sequences in which every event stands once; the page says what was recovered."""

from benchmarks.denoising_data import Window, stitched
from benchmarks.denoising_page import detection_table, share, training_table


def window(first: int, day: int, user: str = "7", noise: dict[int, int] | None = None) -> Window:
    """Eleven items from `first` on; `noise` puts others at some of them."""
    clean = tuple(range(first, first + 11))
    noisy = tuple((noise or {}).get(item, item) for item in clean)
    return Window(user, clean, noisy, tuple(int(a != b) for a, b in zip(clean, noisy, strict=True)), day)


def test_overlapping_windows_become_one_sequence() -> None:
    noise = {13: 99}
    found = stitched([window(4, 3, noise=noise), window(1, 1, noise=noise), window(40, 9), window(50, 2, "8")])
    first, second = found
    assert first.clean == [*range(1, 15), *range(40, 51)]
    assert first.noisy == [99 if item == 13 else item for item in first.clean]
    assert first.mask == [int(item == 13) for item in first.clean]
    assert first.times == [1] * 11 + [3] * 3 + [9] * 11
    assert (second.user_id, second.clean) == ("8", list(range(50, 61)))


def test_windows_of_the_same_items_follow_each_other() -> None:
    same = Window("7", (5,) * 11, (5,) * 11, (0,) * 11, 1)
    (found,) = stitched([same, same])
    assert found.clean == [5] * 12


def test_what_is_recovered_is_a_share_of_the_loss() -> None:
    assert share(0.03, 0.02, 0.04) == "+50%"
    assert share(0.01, 0.02, 0.04) == "-50%"
    assert share(0.03, 0.04, 0.04) == "no loss"
    arms = {
        "clean": {"0": {"noisy": 0.05, "clean": 0.06}, "1": {"noisy": 0.03, "clean": 0.04}},
        "noisy": {"0": {"noisy": 0.03, "clean": 0.03}, "1": {"noisy": 0.02, "clean": 0.02}},
        "drop": {"0": {"noisy": 0.04, "clean": 0.03}, "1": {"noisy": 0.02, "clean": 0.02}},
    }
    text = training_table("sasrec", arms)
    assert "### sasrec, 2 seeds" in text
    assert "| drop | 0.0300 (0.0200 to 0.0400) | 0.0250 (0.0200 to 0.0300) | +33% (+50%, +0%) |" in text
    assert "| noisy | 0.0250 (0.0200 to 0.0300) | 0.0250 (0.0200 to 0.0300) |  |" in text


def test_detectors_have_a_row_each() -> None:
    one = {"auc": 0.7, "top1": 0.25, "strata": [0.5, 0.6, 0.7]}
    text = detection_table({"critic": {"0": one, "1": one | {"auc": 0.8}}})
    assert "| critic | 0.750 (0.700 to 0.800) | 0.250 | 0.500, 0.600, 0.700 |" in text
