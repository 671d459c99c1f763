//! Every kind of fault is found, and what is allowed is not called a fault.

use super::*;

struct Run {
    ledger: Ledger,
    reader: ReaderId,
}

fn stamp(sequence: u64, connection: u32) -> Stamp {
    Stamp { tenant: "acme".into(), publisher: 1, sequence, connection, sent_at: 5 }
}

fn at(sequence: u64) -> Option<Position> {
    Some(Position { partition: 0, term: 9, sequence, index: 0 })
}

/// Three messages of one publisher, sent and acknowledged on one connection.
fn three() -> Run {
    let ledger = Ledger::new();
    let reader = ledger.reader("acme");
    for sequence in 0..3 {
        ledger.sent(&stamp(sequence, 1));
        ledger.acked(1, sequence);
    }
    Run { ledger, reader }
}

impl Run {
    fn see(&self, sequence: u64, connection: u32, position: Option<Position>) {
        self.ledger.seen(self.reader, &stamp(sequence, connection).encode(64), position);
    }

    fn faults(&self) -> Vec<(&'static str, u64)> {
        self.ledger.verdict(self.reader).faults()
    }
}

#[test]
fn what_came_as_it_was_sent_balances() {
    let run = three();
    for n in 0..3 {
        assert!(!run.ledger.complete(run.reader));
        run.see(n, 1, at(n));
    }
    assert!(run.ledger.complete(run.reader));
    let verdict = run.ledger.verdict(run.reader);
    assert!(verdict.balanced(), "{verdict}");
    assert_eq!((verdict.sent, verdict.acked, verdict.seen), (3, 3, 3));
    assert_eq!(run.ledger.acked_count("acme"), 3);
}

#[test]
fn an_acknowledged_message_that_never_comes_is_lost() {
    let run = three();
    run.see(0, 1, at(0));
    run.see(2, 1, at(2));
    assert_eq!(run.faults(), [("lost", 1)]);
    assert!(!run.ledger.complete(run.reader));
}

#[test]
fn a_message_without_acknowledgement_may_be_missing_or_come() {
    let run = three();
    for sequence in [3, 4] {
        run.ledger.sent(&stamp(sequence, 1));
    }
    for n in [0, 1, 2, 4] {
        run.see(n, 1, at(n));
    }
    assert_eq!(run.faults(), []);
    run.ledger.acked(1, 4);
    assert!(run.ledger.complete(run.reader));
}

#[test]
fn one_message_at_two_positions_is_duplicated() {
    let run = three();
    for n in 0..3 {
        run.see(n, 1, at(n));
    }
    run.see(1, 1, at(7));
    assert_eq!(run.faults(), [("duplicated", 1)]);
}

#[test]
fn what_the_publisher_sent_again_may_be_stored_again() {
    let run = three();
    run.ledger.sent(&stamp(2, 2));
    for n in 0..3 {
        run.see(n, 1, at(n));
    }
    run.see(2, 2, at(3));
    assert_eq!(run.faults(), []);
    assert_eq!(run.ledger.verdict(run.reader).resent_duplicates, 1);
    run.see(2, 2, at(4));
    assert_eq!(run.faults(), [("duplicated", 1)], "but each sending only once");
}

#[test]
fn a_stored_record_may_be_handed_out_again() {
    let run = three();
    for n in [0, 1, 0, 1, 2] {
        run.see(n, 1, at(n));
    }
    assert_eq!(run.faults(), []);
    assert_eq!(run.ledger.verdict(run.reader).redelivered, 2);
}

#[test]
fn a_first_sighting_after_a_later_message_is_reordered() {
    let run = three();
    for n in [0, 2, 1] {
        run.see(n, 1, at(n));
    }
    assert_eq!(run.faults(), [("reordered", 1)]);
}

#[test]
fn a_record_stored_after_a_later_one_is_misplaced() {
    let run = three();
    run.see(0, 1, at(0));
    run.see(1, 1, at(2));
    run.see(2, 1, at(1));
    assert_eq!(run.faults(), [("misplaced", 1)]);
}

#[test]
fn a_publisher_in_two_partitions_is_misplaced() {
    let run = three();
    run.see(0, 1, at(0));
    run.see(1, 1, at(1));
    run.see(2, 1, Some(Position { partition: 1, term: 9, sequence: 2, index: 0 }));
    assert_eq!(run.faults(), [("misplaced", 1)]);
}

#[test]
fn an_old_connection_that_stores_after_a_new_one_is_stale() {
    let run = three();
    run.ledger.sent(&stamp(1, 2));
    run.ledger.sent(&stamp(2, 2));
    run.see(0, 1, at(0));
    run.see(1, 2, at(1));
    run.see(2, 2, at(2));
    assert_eq!(run.faults(), []);
    run.see(1, 1, at(3));
    assert_eq!(run.faults(), [("stale", 1)]);
}

#[test]
fn another_tenants_message_is_leaked_and_not_seen() {
    let run = three();
    let other = run.ledger.reader("other");
    run.ledger.seen(other, &stamp(0, 1).encode(64), at(0));
    assert_eq!(run.ledger.verdict(other).faults(), [("leaked", 1)]);
    assert_eq!(run.ledger.verdict(other).seen, 0);
}

#[test]
fn what_was_never_sent_is_invented() {
    let run = three();
    for n in 0..3 {
        run.see(n, 1, at(n));
    }
    run.see(9, 1, at(9));
    run.see(2, 5, at(10));
    assert_eq!(run.faults(), [("invented", 2)]);
}

#[test]
fn a_damaged_payload_is_corrupt() {
    let run = three();
    for n in 0..3 {
        run.see(n, 1, at(n));
    }
    run.ledger.seen(run.reader, b"PL2 acme 1 0 1 ....,.", at(5));
    assert_eq!(run.faults(), [("corrupt", 1)]);
}

#[test]
fn readers_are_judged_apart() {
    let run = three();
    let second = run.ledger.reader("acme");
    for n in 0..3 {
        run.see(n, 1, at(n));
    }
    assert_eq!(run.faults(), []);
    assert_eq!(run.ledger.verdict(second).faults(), [("lost", 3)]);
}

#[test]
fn a_subscriber_knows_no_positions_and_its_repeats_are_redeliveries() {
    let run = three();
    for n in [0, 0, 1, 2] {
        run.see(n, 1, None);
    }
    assert_eq!(run.faults(), []);
    assert_eq!(run.ledger.verdict(run.reader).redelivered, 1);
}

#[test]
fn a_message_for_another_client_is_misrouted() {
    let run = three();
    let hand = |recipient| {
        let payload = stamp(0, 1).encode(64);
        run.ledger.seeing(run.reader).see(&payload, Some(recipient), Sighting::Delivered { dup: false });
    };
    hand(2);
    assert_eq!(run.faults(), [("lost", 3), ("misrouted", 1)]);
    hand(1);
    assert_eq!(run.faults(), [("lost", 2), ("misrouted", 1)]);
}
