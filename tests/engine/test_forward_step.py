"""A forward told to another rank says there what it says here."""

from __future__ import annotations

from outrider_runtime.model.batch import SequenceRows
from outrider_runtime.model.forward_step import ForwardStep
from outrider_runtime.model.kv_pool import BlockCopy, KVPool
from outrider_runtime.model.layer_reading import LayerReading


def test_a_step_that_is_told_is_the_same_step() -> None:
    pool = KVPool(8, 4)
    first, second = pool.create(), pool.create()
    pool.append_all([(first, 6), (second, 3)])
    asked = LayerReading(1, hidden_of=range(2), logits_of=[1], weights=True)
    batch = [SequenceRows(first, (1, 2), 1, [asked]), SequenceRows(second, [3], 0)]
    copies = [BlockCopy(0, 5)]
    told = ForwardStep.from_message(ForwardStep(batch, 2, {second: 7}, copies, pool).to_message())

    assert [item[:3] for item in told.batch] == [(first, [1, 2], 1), (second, [3], 0)]
    (reading,) = told.batch[0].readings
    assert (reading.num_rows, reading.layers, reading.weights) == (1, {0, 1}, True)
    assert (told.num_layers, told.first_positions, told.copies) == (2, {second: 7}, copies)
    for handle, length in ((first, 6), (second, 3)):
        assert told.places.length(handle) == length
        assert told.places.table(handle) == pool.table(handle)
        assert told.places.slots(handle, 0, length) == pool.slots(handle, 0, length)
