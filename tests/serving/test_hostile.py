"""Some of what `python -m benchmarks.hostile` sends, over real sockets: never a 5xx, and no markup comes back."""

from collections import Counter
from collections.abc import Iterator

import pytest
from listening import listening

from benchmarks.hostile import KINDS, Attack, Outcome, attacks, request, sent
from serving.settings import Settings

EACH = 20


@pytest.fixture(scope="module")
def port(sasrec, tmp_path_factory) -> Iterator[int]:
    with listening(sasrec.folder, Settings(state=tmp_path_factory.mktemp("state") / "state.sqlite")) as port:
        yield port


def test_no_attack_is_answered_by_a_5xx_or_by_markup(port) -> None:
    outcomes = [sent(port, attack) for attack in attacks(7, EACH * len(KINDS), huge=False)]
    assert {done.complaint: done.attack.content[:200] for done in outcomes if done.complaint} == {}
    assert set(Counter(done.attack.name for done in outcomes).values()) == {EACH}
    assert {200, 202, 400, 404, 405, 422} <= {done.status for done in outcomes}
    assert sent(port, Attack("well", request("GET", "/health/ready"))).status == 200


@pytest.mark.parametrize(
    ("status", "head", "body", "complaint"),
    [
        (200, b"HTTP/1.1 200 OK\r\nContent-Type: text/html", b"&lt;script>", None),
        (200, b"HTTP/1.1 200 OK\r\nContent-Type: text/html", b"<b><script>alert(1)", "markup came back unescaped"),
        (200, b"HTTP/1.1 200 OK\r\nContent-Type: application/json", b"<script>", None),
        (200, b"HTTP/1.1 200 OK\r\nX: \r\nSet-Cookie: a=b", b"", "a header came back that was sent"),
        (500, b"HTTP/1.1 500 No", b"", "status 500"),
        (0, b"", b"", "no answer"),
    ],
)
def test_what_counts_as_a_wrong_answer(status, head, body, complaint) -> None:
    assert Outcome(Attack("test", b""), status, head, body).complaint == complaint


def test_attacks_follow_from_the_seed() -> None:
    assert list(attacks(3, 40, huge=False)) == list(attacks(3, 40, huge=False)) != list(attacks(4, 40, huge=False))
