"""All tables of one set of maps, for the code that passes single tables to their readers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracer.bpf.maps import Table
from tracer.tables.allowances import Allowances
from tracer.tables.c_structs import Layouts
from tracer.tables.counters import Counters
from tracer.tables.epochs import Epochs
from tracer.tables.events import Events
from tracer.tables.flight_recorder import FlightRecorder
from tracer.tables.fork_windows import ForkWindows
from tracer.tables.histogram import Histograms
from tracer.tables.ledger import Ledger
from tracer.tables.migrations import Migrations
from tracer.tables.other_mms import OtherMms
from tracer.tables.params import Params
from tracer.tables.protocol_table import ProtocolTable
from tracer.tables.stacks import Stacks
from tracer.tables.swap_types import SwapTypes
from tracer.tables.visits import Visits
from tracer.tables.window_times import WindowTimes


@dataclass(frozen=True)
class Tables:
    """One object for each table. Pass the single tables on, not this."""

    params: Params
    epochs: Epochs
    events: Events
    stacks: Stacks
    counters: Counters
    histograms: Histograms
    ledger: Ledger
    visits: Visits
    migrations: Migrations
    swap_types: SwapTypes
    other_mms: OtherMms
    protocol_table: ProtocolTable
    flight_recorder: FlightRecorder
    window_times: WindowTimes
    allowances: Allowances

    @classmethod
    def of(cls, maps: Mapping[str, Table], layouts: Layouts) -> Tables:
        """Open the tables of these maps. Maps of probe objects that are not loaded may lack."""
        params, fork_windows = Params(maps, layouts), ForkWindows(maps, layouts)
        allowances = Allowances(maps, layouts)
        return cls(
            params=params,
            epochs=Epochs(maps, params, fork_windows),
            events=Events(layouts),
            stacks=Stacks(maps),
            counters=Counters(maps, layouts),
            histograms=Histograms(maps, layouts),
            ledger=Ledger(maps, layouts, params),
            visits=Visits(maps, layouts),
            migrations=Migrations(maps, layouts),
            swap_types=SwapTypes(maps),
            other_mms=OtherMms(maps, layouts, fork_windows),
            protocol_table=ProtocolTable(maps, layouts),
            flight_recorder=FlightRecorder(maps, layouts, allowances),
            window_times=WindowTimes(maps, layouts),
            allowances=allowances,
        )
