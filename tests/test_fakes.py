"""The fakes keep the same contracts as the real sources and sinks."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tensorport_hub.ports import Sink
from tests.contracts.sink import SinkContract, SinkOf
from tests.contracts.source import SourceContract, SourceOf
from tests.fakes import MemorySink, MemorySource


class TestMemorySource(SourceContract):
    """`MemorySource` is a source."""

    @pytest.fixture
    def source_of(self) -> SourceOf:
        return MemorySource


class TestMemorySink(SinkContract):
    """`MemorySink` is a sink."""

    @pytest.fixture
    def sink_of(self) -> SinkOf:
        visible: dict[str, bytes] = {}
        return lambda: MemorySink(visible)

    def published(self, sink: Sink) -> Mapping[str, bytes]:
        assert isinstance(sink, MemorySink)
        return sink.visible
