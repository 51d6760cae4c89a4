"""Queries that are computed ahead are those of the frame that is asked for, and their errors are not lost."""

from __future__ import annotations

import pytest
import torch

from model.inference.device_copies import begin_download, own_stream, uploaded
from model.inference.fast_network import PreparedQuery, Query
from stm_plugin.propagation.queries_ahead import QueriesAhead


def query(frame: int) -> Query:
    nothing = torch.zeros(1, 1, 1, 1)
    return Query(PreparedQuery(nothing, nothing, nothing, nothing), frame, 1)


def test_a_query_that_was_begun_here_is_not_computed_again() -> None:
    asked: list[int] = []

    def compute(frame: int) -> Query:
        asked.append(frame)
        return query(frame)

    with QueriesAhead(compute) as queries:
        queries.begin_here(1002)
        assert asked == [1002]
        assert queries.take(1002).height == 1002 and asked == [1002]
        queries.begin_here(1003)
        assert queries.take(1009).height == 1009 and asked == [1002, 1003, 1009]


def test_its_error_comes_when_the_frame_is_asked_for() -> None:
    def broken(frame: int) -> Query:
        raise KeyError(frame)

    with QueriesAhead(broken) as queries:
        queries.begin_here(1002)
        with pytest.raises(KeyError):
            queries.take(1002)


def test_on_a_processor_nothing_is_copied_to_and_fro() -> None:
    values = torch.rand(3, 4).numpy()
    with own_stream(torch.device("cpu")):
        tensor = uploaded(values, torch.device("cpu"))
    assert tensor.data_ptr() == values.ctypes.data
    assert begin_download(tensor)().data_ptr() == tensor.data_ptr()
