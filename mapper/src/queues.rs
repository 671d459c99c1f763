//! The messages in hand, by device. Pure: messages, ends of jobs and the time go in, shares of work come out. A queue is a
//! device's messages in the order of the log, worked on by one job at a time.
//!
//! Invariants:
//! * A message is in one place: waiting, or taken by the queue's one job.
//! * When a message goes back to the group, all later ones of its device go with it, and those that are still under way to us
//!   follow when they come: nothing overtakes it.
//! * A queue that has nothing and remembers nothing is gone.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use penstock_client::{Message, Position};
use tokio::time::Instant;

/// See the module.
#[derive(Debug, Default)]
pub struct Queues {
    queues: HashMap<Arc<str>, Queue>,
    /// Queues with messages and no job, the longest waiting first.
    ready: VecDeque<Arc<str>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// In the order of the log.
    waiting: VecDeque<Message>,
    /// What the queue's job has.
    taken: Vec<Position>,
    returned: Option<Returned>,
}

/// Messages from here on are with the group until then.
#[derive(Debug, Clone, Copy)]
struct Returned {
    from: Position,
    until: Instant,
}

/// What became of a message that came.
#[derive(Debug, PartialEq, Eq)]
pub enum Offered {
    /// It waits.
    Taken,
    /// It is here already: the group gave it out again.
    Held,
    /// An earlier one of its device is with the group: it has to go back for so long.
    Early(Duration),
}

/// Messages of one device, for a job.
#[derive(Debug)]
pub struct Share {
    /// Whose.
    pub client: Arc<str>,
    /// In order.
    pub messages: Vec<Message>,
}

impl Queues {
    /// A message comes.
    pub fn offer(&mut self, message: Message, now: Instant) -> Offered {
        let client: Arc<str> = message.client_id.as_str().into();
        let queue = self.queues.entry(Arc::clone(&client)).or_default();
        if let Some(returned) = queue.returned {
            if message.position > returned.from && now < returned.until {
                return Offered::Early(returned.until - now);
            }
            queue.returned = None;
        }
        if queue.taken.contains(&message.position) {
            return Offered::Held;
        }
        match queue.waiting.binary_search_by_key(&message.position, |held| held.position) {
            Ok(_) => return Offered::Held,
            Err(at) => queue.waiting.insert(at, message),
        }
        if queue.taken.is_empty() && queue.waiting.len() == 1 {
            self.ready.push_back(client);
        }
        Offered::Taken
    }

    /// Queues that wait for a job.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Work for one job: of up to `queues` queues, together up to `messages` messages, at least one a queue.
    pub fn take(&mut self, queues: usize, messages: usize) -> Vec<Share> {
        let queues = queues.min(self.ready.len()).min(messages).max(1);
        let each = (messages / queues).max(1);
        let clients: Vec<_> = self.ready.drain(..queues.min(self.ready.len())).collect();
        let mut shares = Vec::with_capacity(clients.len());
        for client in clients {
            let Some(queue) = self.queues.get_mut(&client) else { continue };
            let messages: Vec<_> = queue.waiting.drain(..each.min(queue.waiting.len())).collect();
            queue.taken = messages.iter().map(|message| message.position).collect();
            shares.push(Share { client, messages });
        }
        shares
    }

    /// The queue's job has ended, all of its messages are settled.
    pub fn done(&mut self, client: &Arc<str>) {
        let Some(queue) = self.queues.get_mut(client) else { return };
        queue.taken.clear();
        if !queue.waiting.is_empty() {
            self.ready.push_back(Arc::clone(client));
        } else if queue.returned.is_none() {
            self.queues.remove(client);
        }
    }

    /// The queue's job has ended, and its messages from this one on go back until then. Gives those that waited here.
    pub fn given_back(&mut self, client: &Arc<str>, from: Position, until: Instant) -> Vec<Position> {
        let Some(queue) = self.queues.get_mut(client) else { return Vec::new() };
        queue.taken.clear();
        queue.returned = Some(Returned { from, until });
        queue.waiting.drain(..).map(|message| message.position).collect()
    }

    /// Forgets what was returned and must be back by now.
    pub fn tidy(&mut self, now: Instant) {
        self.queues.retain(|_, queue| {
            queue.returned = queue.returned.filter(|returned| now < returned.until);
            queue.returned.is_some() || !queue.waiting.is_empty() || !queue.taken.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::plain;

    fn message(client: &str, sequence: u64) -> Message {
        let mut message = plain("t", client, b"");
        message.position = at(sequence);
        message
    }

    fn at(sequence: u64) -> Position {
        Position { partition: 0, term: 1, sequence, index: 0 }
    }

    fn taken(shares: &[Share]) -> Vec<(&str, Vec<u64>)> {
        shares
            .iter()
            .map(|share| {
                (&*share.client, share.messages.iter().map(|message| message.position.sequence).collect())
            })
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn one_job_has_a_device_and_what_comes_meanwhile_waits_in_order() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        for (client, sequence) in [("a", 1), ("b", 2), ("a", 3)] {
            assert_eq!(queues.offer(message(client, sequence), now), Offered::Taken);
        }
        let first = queues.take(10, 100);
        assert_eq!(taken(&first), [("a", vec![1, 3]), ("b", vec![2])]);
        assert_eq!(queues.offer(message("a", 5), now), Offered::Taken);
        assert_eq!(queues.offer(message("a", 4), now), Offered::Taken);
        assert_eq!(queues.offer(message("a", 3), now), Offered::Held, "given out again by the group");
        assert_eq!(queues.offer(message("a", 4), now), Offered::Held);
        assert!(queues.take(10, 100).is_empty(), "the device has a job");
        queues.done(&first[0].client);
        assert_eq!(taken(&queues.take(10, 100)), [("a", vec![4, 5])]);
        queues.done(&first[1].client);
        queues.done(&first[0].client);
        assert!(queues.queues.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn shares_are_bounded_and_fair() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        for sequence in 0..100 {
            queues.offer(message("busy", sequence), now);
        }
        queues.offer(message("b", 100), now);
        assert_eq!(taken(&queues.take(2, 10)), [("busy", (0..5).collect()), ("b", vec![100])]);
        assert_eq!(queues.ready(), 0);
        queues.done(&"busy".into());
        assert_eq!(taken(&queues.take(9, 3)), [("busy", (5..8).collect())]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_overtakes_what_went_back() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        let second = Duration::from_secs(1);
        for sequence in 1..=3 {
            queues.offer(message("a", sequence), now);
        }
        let share = queues.take(1, 2);
        assert_eq!(taken(&share), [("a", vec![1, 2])]);
        assert_eq!(queues.given_back(&share[0].client, at(2), now + second), [at(3)]);
        assert_eq!(queues.offer(message("a", 4), now), Offered::Early(second), "it was under way");
        assert_eq!(queues.offer(message("b", 4), now), Offered::Taken, "another device is not held up");
        assert_eq!(queues.offer(message("a", 2), now), Offered::Taken, "back");
        assert_eq!(queues.offer(message("a", 3), now), Offered::Taken);
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_comes_back_holds_nothing_up_for_ever() {
        let (mut queues, now) = (Queues::default(), Instant::now());
        let second = Duration::from_secs(1);
        queues.offer(message("a", 1), now);
        let share = queues.take(1, 1);
        queues.given_back(&share[0].client, at(1), now + second);
        queues.tidy(now);
        assert_eq!(queues.queues.len(), 1);
        assert_eq!(queues.offer(message("a", 2), now + second), Offered::Taken);
        let share = queues.take(1, 1);
        queues.given_back(&share[0].client, at(2), now + second * 2);
        queues.tidy(now + second * 2);
        assert!(queues.queues.is_empty());
    }
}
