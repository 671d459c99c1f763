//! Operations that wait, in order a client: pure. Each client is at most once among those that are ready or taken, so a
//! batch never names a key twice and a client's operations never overtake each other.

use std::collections::{HashMap, VecDeque};

use crate::name::ClientKey;

/// A batch keeps room for at least this share of what isn't urgent, so that it moves on under a storm of claims.
const SHARE: usize = 8;

pub(super) struct Queue<T> {
    urgent: VecDeque<(ClientKey, T)>,
    patient: VecDeque<(ClientKey, T)>,
    /// Clients with an operation ready or taken, and what waits behind it. Empty queues hold no memory.
    behind: HashMap<ClientKey, VecDeque<(T, bool)>>,
    len: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { urgent: VecDeque::new(), patient: VecDeque::new(), behind: HashMap::new(), len: 0 }
    }
}

impl<T> Queue<T> {
    /// Operations that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether `take` would give something.
    pub fn is_ready(&self) -> bool {
        !self.urgent.is_empty() || !self.patient.is_empty()
    }

    pub fn push(&mut self, client: ClientKey, op: T, urgent: bool) {
        self.len += 1;
        if let Some(behind) = self.behind.get_mut(&client) {
            behind.push_back((op, urgent));
            return;
        }
        self.behind.insert(client.clone(), VecDeque::new());
        self.ready(client, op, urgent);
    }

    fn ready(&mut self, client: ClientKey, op: T, urgent: bool) {
        let line = if urgent { &mut self.urgent } else { &mut self.patient };
        line.push_back((client, op));
    }

    /// Takes up to `most`, of different clients, until `done` or `put_back` of each.
    pub fn take(&mut self, most: usize) -> Vec<(ClientKey, T)> {
        let kept = self.patient.len().min(most / SHARE);
        let urgent = self.urgent.len().min(most - kept);
        let patient = self.patient.len().min(most - urgent);
        self.len -= urgent + patient;
        self.urgent.drain(..urgent).chain(self.patient.drain(..patient)).collect()
    }

    /// The client's operation is carried out: its next one is ready.
    pub fn done(&mut self, client: &ClientKey) {
        let Some(behind) = self.behind.get_mut(client) else { return };
        match behind.pop_front() {
            Some((op, urgent)) => self.ready(client.clone(), op, urgent),
            None => {
                self.behind.remove(client);
            }
        }
    }

    /// The client's operation was not carried out: it is ready again, before the others.
    pub fn put_back(&mut self, client: ClientKey, op: T) {
        self.len += 1;
        self.urgent.push_front((client, op));
    }

    /// Takes out what is not wanted any more.
    pub fn retain(&mut self, wanted: impl Fn(&ClientKey, &T) -> bool) {
        let mut gone = Vec::new();
        for line in [&mut self.urgent, &mut self.patient] {
            line.retain(|(client, op)| {
                let keep = wanted(client, op);
                if !keep {
                    gone.push(client.clone());
                }
                keep
            });
        }
        self.len -= gone.len();
        for (client, behind) in &mut self.behind {
            let before = behind.len();
            behind.retain(|(op, _)| wanted(client, op));
            self.len -= before - behind.len();
        }
        gone.iter().for_each(|client| self.done(client));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::name::TenantName;

    fn client(n: u32) -> ClientKey {
        ClientKey { tenant: TenantName::new("t").unwrap(), client: n.to_string().into() }
    }

    fn ops(batch: Vec<(ClientKey, u32)>) -> Vec<u32> {
        batch.into_iter().map(|(_, op)| op).collect()
    }

    #[test]
    fn a_client_is_once_in_flight_and_in_order() {
        let mut queue = Queue::default();
        queue.push(client(1), 10, true);
        queue.push(client(1), 11, true);
        queue.push(client(2), 20, true);
        assert_eq!(ops(queue.take(9)), [10, 20]);
        assert!(queue.take(9).is_empty());
        queue.push(client(1), 12, true);
        queue.done(&client(1));
        assert_eq!(ops(queue.take(9)), [11]);
        queue.put_back(client(1), 11);
        assert_eq!(ops(queue.take(9)), [11]);
        queue.done(&client(1));
        assert_eq!(ops(queue.take(9)), [12]);
        queue.done(&client(1));
        queue.done(&client(2));
        assert!(queue.behind.is_empty());
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn patient_operations_move_on_under_a_storm() {
        let mut queue = Queue::default();
        (0..100).for_each(|n| queue.push(client(n), n, true));
        (100..110).for_each(|n| queue.push(client(n), n, false));
        let batch = ops(queue.take(32));
        assert_eq!(batch.iter().filter(|op| **op >= 100).count(), 4);
        assert_eq!(batch.len(), 32);
    }

    #[test]
    fn unwanted_operations_leave_without_blocking_their_client() {
        let mut queue = Queue::default();
        queue.push(client(1), 10, true);
        queue.push(client(1), 11, true);
        queue.push(client(1), 12, true);
        queue.push(client(2), 20, true);
        queue.retain(|_, op| *op == 12 || *op == 20);
        assert_eq!(queue.len(), 2);
        assert_eq!(ops(queue.take(9)), [20, 12]);
        queue.done(&client(1));
        queue.done(&client(2));
        assert!(queue.behind.is_empty());
    }
}
