"""What picks expect and no event confirms is forgotten, where events would have told."""

import pytest

from extproc.index import Expired
from extproc.serve.expectations import MOST, Expectations
from extproc.terms import InstanceId, PackedKeys

A, B = InstanceId("a"), InstanceId("b")
KEYS = [PackedKeys(bytes([number]) * 8) for number in range(4)]


def everybody(_: InstanceId) -> bool:
    return True


def test_it_expires_when_it_is_due_and_once() -> None:
    book = Expectations()
    book.add(A, KEYS[0], due=10)
    book.add(B, KEYS[1], due=20)
    assert book.expired(9.9, everybody) == []
    assert book.expired(10, everybody) == [Expired(A, KEYS[0])]
    assert book.expired(10, everybody) == []
    assert book.expired(99, everybody) == [Expired(B, KEYS[1])]


def test_on_an_instance_without_a_live_stream_it_is_left_to_the_capacity() -> None:
    book = Expectations()
    book.add(A, KEYS[0], due=10)
    book.add(B, KEYS[1], due=10)
    assert book.expired(10, lambda instance: instance == B) == [Expired(B, KEYS[1])]
    assert book.expired(11, everybody) == []


def test_beyond_the_bound_the_oldest_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extproc.serve.expectations.MOST", 2)
    assert MOST > 10_000
    book = Expectations()
    for number in range(3):
        book.add(A, KEYS[number], due=number)
    assert book.expired(99, everybody) == [Expired(A, KEYS[1]), Expired(A, KEYS[2])]
    assert book.overrun == 1
