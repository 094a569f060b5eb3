"""Records read field by field: what each law lets through, and what it says when it does not."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.providers.records import ContractName, Record, UnusableRecordError, read_records

if TYPE_CHECKING:
    from collections.abc import Callable


def reason(read: Callable[[], object]) -> str:
    with pytest.raises(UnusableRecordError) as raised:
        read()
    return str(raised.value)


@pytest.mark.parametrize("value", [1.5, "1.5", "15e-1"])
def test_a_number_is_read_whether_it_comes_as_number_or_text(value: object) -> None:
    assert Record({"bid": value}).price("bid") == 1.5


@pytest.mark.parametrize("record", [{}, {"bid": None}])
def test_what_is_absent_or_null_is_none(record: dict[str, Any]) -> None:
    found = Record(record)
    assert {found.price("bid"), found.amount("bid"), found.signed("bid"), found.text("bid"), found.epoch("bid")} == {None}


def test_zero_is_an_amount_and_no_price() -> None:
    record = Record({"x": 0, "y": 0.0, "z": "0"})
    assert [record.price(name) for name in "xyz"] == [None] * 3
    assert [record.amount(name) for name in "xyz"] == [0.0] * 3


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-0.01, "bid is negative: -0.01"),
        (math.nan, "bid is not finite"),
        (math.inf, "bid is not finite"),
        (10**400, "bid is not finite"),
        ("NaN", "bid is no number: 'NaN'"),
        ("", "bid is no number: ''"),
        (True, "bid is no number: True"),
        ({"raw": 1}, "bid is no number: {'raw': 1}"),
    ],
)
def test_what_cannot_be_a_price_is_refused_in_words(value: object, said: str) -> None:
    assert reason(lambda: Record({"bid": value}).price("bid")) == said


def test_epochs_are_seconds_and_milliseconds_are_refused() -> None:
    assert Record({"at": 1740171602}).epoch("at") == datetime(2025, 2, 21, 21, 0, 2, tzinfo=UTC)
    assert Record({"at": 0}).epoch("at") is None
    assert "no time" in reason(lambda: Record({"at": 1740171602000}).epoch("at"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AAPL250228C00110000", ContractName("AAPL", date(2025, 2, 28), "C", 110.0)),
        ("SPXW260918P05432500", ContractName("SPXW", date(2026, 9, 18), "P", 5432.5)),
        ("AMD1240119C00100000", ContractName("AMD1", date(2024, 1, 19), "C", 100.0)),
        ("BRK.B250117C00400000", ContractName("BRK.B", date(2025, 1, 17), "C", 400.0)),
        ("F250117P00000500", ContractName("F", date(2025, 1, 17), "P", 0.5)),
    ],
)
def test_the_name_of_a_contract_says_class_day_right_and_strike(name: str, expected: ContractName) -> None:
    assert ContractName.of(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        *(None, 5, "", "AAPL", "AAPL250228X00110000", "250228C00110000", "AAPL251328C00110000", "AAPL250230C00110000"),
        *("AAPL250228C0011000", "aapl250228C00110000", "AAPL250228C00000000", "AAPL250228C00110000 "),
    ],
)
def test_a_name_that_is_none_is_refused(name: object) -> None:
    assert "contract" in reason(lambda: ContractName.of(name))


@given(
    st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=1, max_size=6),
    st.dates(date(2000, 1, 1), date(2099, 12, 31)),
    st.sampled_from("CP"),
    st.integers(1, 99_999_999),
)
def test_every_name_that_is_written_is_read_back(root: str, expiry: date, right: str, thousandths: int) -> None:
    name = f"{root}{expiry:%y%m%d}{right}{thousandths:08d}"
    assert ContractName.of(name) == ContractName(root, expiry, right, thousandths / 1000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.fixed_dictionaries({"name": st.sampled_from("abc"), "bid": JSON}) | JSON, max_size=8))
def test_every_record_is_kept_or_refused_and_what_is_refused_can_be_read_again(records: list[Any]) -> None:
    def read(record: Record) -> tuple[str, float | None]:
        name = record.text("name")
        if name is None:
            raise UnusableRecordError("no name")
        return name, record.price("bid")

    kept, refused = read_records(records, read, name=lambda pair: pair[0])
    assert len(kept) + len(refused) == len(records)
    assert len({name for name, _ in kept}) == len(kept)
    assert all(refusal.reason for refusal in refused)
    again = [json.dumps(json.loads(refusal.record)) for refusal in refused]
    assert again == [refusal.record for refusal in refused]


def test_of_two_records_with_one_name_the_first_is_kept_and_the_second_has_its_reason() -> None:
    def read(record: Record) -> tuple[str, float | None]:
        return str(record.fields["name"]), record.price("bid")

    kept, refused = read_records([{"name": "a", "bid": 1}, {"name": "a", "bid": 2}], read, name=lambda pair: pair[0])
    assert kept == [("a", 1.0)]
    assert [(json.loads(r.record)["bid"], r.reason) for r in refused] == [(2, "a second record of a")]
    assert read_records([{"name": "a", "bid": 2}], read, name=lambda pair: pair[0], known=kept)[0] == []
