//! Single cases of the dispatch: bounds, counts, entries that are gone, and what holds after a seek.

use penstock_common::store::Counts;
use penstock_router::groups::dispatch::Tally;

use super::*;

#[test]
fn a_slow_consumer_does_not_stop_the_partition() {
    let log = log(&(0..200).map(|n| vec![(n % 2, true)]).collect::<Vec<_>>());
    let mut dispatch = Dispatch::new(vec![], GroupCursor::default());
    dispatch.join(1, 1, 60_000);
    dispatch.join(2, 1, 60_000);
    let (mut acked, mut stuck) = (0, None);
    for entry in &log {
        dispatch.offer(entry);
        loop {
            let out = dispatch.pump(0);
            if out.is_empty() {
                break;
            }
            for out in out {
                // The first consumer that got something never acks.
                if *stuck.get_or_insert(out.consumer) != out.consumer {
                    dispatch.ack(out.entry, 0, 1);
                    acked += 1;
                }
            }
        }
    }
    assert_eq!(acked, 100);
}

#[test]
fn a_lone_consumer_gets_entries_undecoded_and_a_second_one_ends_that() {
    let log = log(&[vec![(0, true), (1, true)], vec![(0, true), (1, true)], vec![(0, true), (1, true)]]);
    let mut dispatch = Dispatch::new(vec![], GroupCursor::default());
    dispatch.join(1, 10, 60_000);
    dispatch.offer(&log[0]);
    let out = dispatch.pump(0);
    assert_eq!((out.len(), out[0].indexes.len()), (1, 0));
    assert_eq!(out[0].records, log[0].entry.records);
    // Both clients are in the hands of 1: 2 gets nothing of them.
    dispatch.join(2, 10, 60_000);
    dispatch.offer(&log[1]);
    assert!(dispatch.pump(0).iter().all(|out| out.consumer == 1));
    dispatch.leave(1);
    let again = dispatch.pump(0);
    assert!(again.iter().all(|out| out.consumer == 2 && out.counts.iter().all(|n| *n == 2)));
    assert_eq!(again.len(), 2);
}

#[test]
fn unread_bytes_are_passed_and_counted() {
    let mut broken = (*log(&[vec![(0, true); 3]])[0]).clone();
    broken.entry.records = Bytes::from_static(&[0xff, 1, 2]);
    let mut dispatch = Dispatch::new(vec![b"#".to_vec()], GroupCursor::default());
    dispatch.join(1, 10, 60_000);
    dispatch.offer(&Arc::new(broken));
    assert!(dispatch.pump(0).is_empty());
    assert_eq!(dispatch.take_tally().unreadable, 3);
    assert_eq!(dispatch.standing().done_up_to, EntryId::new(1, 1));
}

#[test]
fn the_look_ahead_is_bounded() {
    let log = log(&vec![vec![(0, true); 1_000]; 30]);
    let mut dispatch = Dispatch::new(vec![], GroupCursor::default());
    dispatch.join(1, 1, 60_000);
    dispatch.join(2, 12_000, 60_000);
    let mut offered = 0;
    for entry in &log {
        if !dispatch.wants() {
            break;
        }
        dispatch.offer(entry);
        dispatch.pump(0);
        offered += 1;
    }
    // All are of one client, whose first record is with 2: what is in its hands is not what waits.
    assert_eq!(offered, 22);
    dispatch.ack(log[0].id, 0, 1_000);
    dispatch.pump(0);
    assert!(dispatch.wants());
}

#[test]
fn entries_that_are_gone_are_passed_and_counted() {
    let log = log(&vec![vec![(0, true); 2]; 9]);
    let open = OpenEntry { done: vec![1], deliveries: vec![] };
    let cursor = GroupCursor {
        done_up_to: log[0].id,
        done_records: 2,
        counts: Counts { acked: 3, ..Counts::default() },
        open: [(log[2].id, open)].into(),
        ..GroupCursor::default()
    };
    let mut dispatch = Dispatch::new(vec![], cursor);
    dispatch.join(1, 3, 60_000);
    // Entries 2 to 4 are gone: five records that were not done. Then 5 is in somebody's hands while 6 and 7 go.
    dispatch.offer(&log[4]);
    assert_eq!(dispatch.pump(0).len(), 1);
    assert_eq!((dispatch.standing().done, dispatch.standing().counts.dropped), (8, 5));
    dispatch.pass(log[6].id, log[6].entry.totals.records);
    assert_eq!(dispatch.standing().counts.dropped, 5, "not before its turn");
    dispatch.offer(&log[7]);
    dispatch.ack(log[4].id, 0, 2);
    let standing = dispatch.standing();
    assert_eq!((standing.done_up_to, standing.done), (log[6].id, 14));
    assert_eq!((standing.counts.dropped, standing.counts.done()), (9, 14));
    assert_eq!(dispatch.take_tally().missed, 9);
}

#[test]
fn after_a_seek_only_what_is_handed_out_again_can_be_acknowledged() {
    let log = log(&vec![vec![(0, true), (1, true)]; 3]);
    let mut dispatch = Dispatch::sought(vec![], GroupCursor::default());
    dispatch.ack(log[0].id, 0, 2);
    dispatch.join(1, 1, 60_000);
    log.iter().for_each(|entry| dispatch.offer(entry));
    assert_eq!(dispatch.pump(0).len(), 1);
    for entry in &log {
        dispatch.ack(entry.id, 0, 2);
    }
    assert_eq!((dispatch.standing().done, dispatch.take_tally().acked), (1, 1));
}

#[test]
fn what_is_done_with_records_is_counted_once() {
    let log = log(&[vec![(0, true), (1, false), (2, true)], vec![(0, true)]]);
    let mut dispatch = Dispatch::new(vec![b"in/#".to_vec()], GroupCursor::default());
    dispatch.join(1, 10, ACK_TIMEOUT);
    log.iter().for_each(|entry| dispatch.offer(entry));
    dispatch.pump(0);
    assert_eq!(dispatch.take_tally(), Tally { handed_out: 3, filtered: 1, ..Tally::default() });
    dispatch.nack(log[0].id, 0, 3, 0, 0);
    // Acked before they go out again, and twice: counted once, and neither nacked nor handed out again.
    dispatch.ack(log[0].id, 1, 2);
    dispatch.ack(log[0].id, 1, 2);
    dispatch.pump(0);
    assert_eq!(dispatch.take_tally(), Tally { nacked: 2, acked: 1, redelivered: 1, ..Tally::default() });
    // Overdue ones come again without a nack.
    dispatch.pump(ACK_TIMEOUT);
    assert_eq!(dispatch.take_tally(), Tally { redelivered: 2, ..Tally::default() });
    assert_eq!(dispatch.take_tally(), Tally::default());
}

#[test]
fn records_of_entries_that_stay_whole_are_counted() {
    let log = log(&[vec![(0, true); 5]]);
    let mut dispatch = Dispatch::new(vec![], GroupCursor::default());
    dispatch.join(1, 10, ACK_TIMEOUT);
    dispatch.offer(&log[0]);
    dispatch.pump(0);
    dispatch.ack(log[0].id, 0, 5);
    dispatch.ack(log[0].id, 0, 5);
    assert_eq!(dispatch.take_tally(), Tally { handed_out: 5, acked: 5, ..Tally::default() });
}
