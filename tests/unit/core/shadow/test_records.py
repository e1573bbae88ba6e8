"""Which records a shadow takes: those that are declared to be for it, and no others."""

from __future__ import annotations

import pytest

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.wire.records import DECLARED, Closed, Record, SentAsked, Towards
from tests.support.transcript import settings


def test_every_record_for_a_shadow_has_a_handler_and_no_other() -> None:
    meant = {record for record in DECLARED.values() if record.towards in (Towards.SHADOW, Towards.EITHER)}
    assert set(ShadowTable(settings(), Outbox()).records.takes) == meant


@pytest.mark.parametrize("record", [Closed(1), SentAsked(1)])
def test_record_for_the_gate_is_let_go(record: Record) -> None:
    out = Outbox()
    ShadowTable(settings(), out).take(record, 1.0)
    assert not out.effects and not out.records
