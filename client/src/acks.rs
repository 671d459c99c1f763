//! Acknowledgements that wait to be sent, joined into ranges. Pure; the consumer's stream sends what `take` gives.
//!
//! Invariant: at most `HELD` ranges are held; beyond that new ones are dropped, which only means that those records come
//! again.

use std::{collections::BTreeMap, time::Duration};

use penstock_proto::messaging::{Acks, ConsumeRequest, Nacks, Range, consume_request::Kind};

use crate::message::Position;

/// Ranges in one request.
const A_REQUEST: usize = 64;
/// Ranges that wait, at most.
const HELD: usize = 200_000;

type EntryKey = (u32, u64, u64);

#[derive(Debug, Default)]
pub(crate) struct AckBuffer {
    /// Per entry: (first index, count), in the order of acknowledgement.
    acks: BTreeMap<EntryKey, Vec<(u32, u32)>>,
    held: usize,
    /// In the order of refusal.
    nacks: Vec<(u32, Range)>,
}

impl AckBuffer {
    pub(crate) fn ack(&mut self, position: Position) {
        if self.held >= HELD {
            return;
        }
        let key = (position.partition, position.term, position.sequence);
        let ranges = self.acks.entry(key).or_default();
        match ranges.last_mut() {
            Some((first, count)) if first.checked_add(*count) == Some(position.index) => *count += 1,
            _ => {
                ranges.push((position.index, 1));
                self.held += 1;
            }
        }
    }

    pub(crate) fn nack(&mut self, position: Position, delay: Duration) {
        if self.nacks.len() >= HELD {
            return;
        }
        let delay_ms = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
        let Position { partition, term, sequence, index } = position;
        self.nacks.push((delay_ms, Range { partition, term, sequence, index, count: 1 }));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.acks.is_empty() && self.nacks.is_empty()
    }

    /// The next request, None when nothing waits.
    pub(crate) fn take(&mut self) -> Option<ConsumeRequest> {
        let kind = if self.acks.is_empty() { self.take_nacks()? } else { self.take_acks() };
        Some(ConsumeRequest { kind: Some(kind) })
    }

    fn take_acks(&mut self) -> Kind {
        let mut out = Vec::with_capacity(A_REQUEST.min(self.held));
        while out.len() < A_REQUEST
            && let Some(mut entry) = self.acks.first_entry()
        {
            let (partition, term, sequence) = *entry.key();
            let room = (A_REQUEST - out.len()).min(entry.get().len());
            let ranges = entry.get_mut().drain(..room);
            out.extend(ranges.map(|(index, count)| Range { partition, term, sequence, index, count }));
            if entry.get().is_empty() {
                entry.remove();
            }
        }
        self.held = self.held.saturating_sub(out.len());
        Kind::Acks(Acks { ranges: out })
    }

    fn take_nacks(&mut self) -> Option<Kind> {
        let delay_ms = self.nacks.first()?.0;
        let same = self.nacks.iter().take(A_REQUEST).take_while(|(delay, _)| *delay == delay_ms).count();
        let ranges = self.nacks.drain(..same).map(|(_, range)| range).collect();
        Some(Kind::Nacks(Nacks { ranges, delay_ms }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: u32, sequence: u64, index: u32) -> Position {
        Position { partition, term: 7, sequence, index }
    }

    fn drain(buffer: &mut AckBuffer) -> Vec<Kind> {
        std::iter::from_fn(|| buffer.take()).filter_map(|request| request.kind).collect()
    }

    #[test]
    fn neighbours_of_one_entry_become_one_range_even_interleaved() {
        let mut buffer = AckBuffer::default();
        for index in 0..100 {
            buffer.ack(at(0, 1, index));
            buffer.ack(at(1, 5, index));
        }
        let kinds = drain(&mut buffer);
        let range = |partition, sequence| Range { partition, term: 7, sequence, index: 0, count: 100 };
        assert_eq!(kinds, [Kind::Acks(Acks { ranges: vec![range(0, 1), range(1, 5)] })]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_request_holds_at_most_its_number_and_nothing_is_forgotten() {
        let mut buffer = AckBuffer::default();
        for index in 0..150 {
            buffer.ack(at(0, 1, index * 2));
        }
        let sizes: Vec<usize> = drain(&mut buffer)
            .iter()
            .map(|kind| if let Kind::Acks(acks) = kind { acks.ranges.len() } else { 0 })
            .collect();
        assert_eq!(sizes, [64, 64, 22]);
        assert_eq!(buffer.held, 0);
    }

    #[test]
    fn nacks_are_joined_by_delay() {
        let mut buffer = AckBuffer::default();
        for (index, seconds) in [(0, 1), (1, 1), (2, 5)] {
            buffer.nack(at(0, 1, index), Duration::from_secs(seconds));
        }
        let delays: Vec<_> =
            drain(&mut buffer)
                .into_iter()
                .map(|kind| {
                    if let Kind::Nacks(nacks) = kind { (nacks.delay_ms, nacks.ranges.len()) } else { (0, 0) }
                })
                .collect();
        assert_eq!(delays, [(1_000, 2), (5_000, 1)]);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut buffer = AckBuffer::default();
        for sequence in 0..(HELD as u64 + 10) {
            buffer.ack(at(0, sequence, 0));
        }
        assert_eq!(buffer.held, HELD);
    }
}
