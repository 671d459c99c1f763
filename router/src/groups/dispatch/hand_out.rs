//! Handing out: which waiting record goes to whom, one by one or as whole entries. Pure.

use super::{
    super::{
        chunks::{Chunks, HandOut},
        clients::{ConsumerId, Position},
        held::{ClientHash, Held, Place, Shape},
    },
    Dispatch, WHOLE_BYTES,
};

impl Dispatch {
    /// Hands out what can be handed out: acknowledgements that are overdue come back first.
    pub fn pump(&mut self, now: u64) -> Vec<HandOut> {
        self.clients.tick(now);
        let settled = self.settle_reserved(now);
        for absent in self.reserved.overdue(now) {
            self.leave(absent);
        }
        while let Some(number) = self.book.overdue(now) {
            self.take_back(number);
        }
        if !settled {
            self.advance();
            return Vec::new();
        }
        let (mut chunks, mut whole) = (Chunks::default(), Vec::new());
        loop {
            if let Some((at, client, consumer)) = self.next() {
                self.hand_out(&mut chunks, at, client, consumer, now);
            } else if !self.take_up(&mut whole, now) {
                break;
            }
        }
        self.advance();
        let mut all = whole;
        all.extend(chunks.build(|entry| self.find(entry).and_then(|at| self.held.get(at))));
        // To each consumer in the order of the log; the chunks of an entry stay as they are.
        all.sort_by_key(|hand_out| (hand_out.consumer, hand_out.entry));
        all
    }

    /// The oldest waiting record that some consumer may have.
    fn next(&self) -> Option<(Position, ClientHash, ConsumerId)> {
        let (most, _) = self.book.most_free()?;
        let free = self.clients.next_free().map(|(at, client)| (at, client, most));
        let with = |id| self.clients.next_with(id).map(|(at, client)| (at, client, id));
        self.book.ready().filter_map(with).chain(free).min_by_key(|(at, ..)| *at)
    }

    fn hand_out(
        &mut self,
        chunks: &mut Chunks,
        at: Position,
        client: ClientHash,
        consumer: ConsumerId,
        now: u64,
    ) {
        let (entry, index) = at;
        self.clients.hand_out(client, at, consumer);
        let Some(place) = self.find(entry) else { return };
        let Some(held) = self.held.get_mut(place) else { return };
        match held.deliveries.contains_key(&index) {
            true => self.tally.redelivered += 1,
            false => self.tally.handed_out += 1,
        }
        let size = held.size(index);
        let key = chunks.key(consumer, entry, size);
        let number = match chunks.number(&key) {
            Some(number) => number,
            None => self.book.open(consumer, entry, now),
        };
        chunks.add(key, number, index, size);
        self.book.add(number, 1);
        if let Some(piece) = self.held.get_mut(place).and_then(|held| held.piece(index)) {
            piece.place = Place::Out(number);
        }
        if let Some(held) = self.held.get_mut(place) {
            held.out += 1;
        }
    }

    /// Makes the records of the next untouched entry available, or hands all of it out as it is. False: there is none, or
    /// nobody has credit.
    fn take_up(&mut self, whole: &mut Vec<HandOut>, now: u64) -> bool {
        let Some((consumer, free)) = self.book.most_free() else { return false };
        let at = self.first_untouched();
        let Some(held) = self.held.get(at) else { return false };
        let (count, entry) = (held.done.count(), held.id);
        let alone =
            self.book.consumers() == 1 && self.clients.waiting() == 0 && self.reserved.allow_whole(entry);
        if !(alone && held.fresh() && count <= free && held.bytes() <= WHOLE_BYTES) {
            self.split(at);
            return true;
        }
        let records = held.all();
        let number = self.book.open(consumer, entry, now);
        self.book.add(number, count);
        self.tally.handed_out += u64::from(count);
        if let Some(held) = self.held.get_mut(at) {
            held.shape = Shape::WholeOut(number);
            held.out = count;
        }
        whole.push(HandOut { consumer, entry, records, indexes: Vec::new(), counts: Vec::new() });
        true
    }

    pub(super) fn first_untouched(&mut self) -> usize {
        let touched = |held: &Held| !matches!(held.shape, Shape::Untouched);
        while self.held.get(self.touched).is_some_and(touched) {
            self.touched += 1;
        }
        self.touched
    }
}
