//! Credentials that a router was asked to judge, each once, however many connections come with them at the same time.

use std::collections::HashMap;

use crate::{connection::table::ConnectionKey, credentials::VerdictKey, link::table::LinkKey};

/// One question.
pub(crate) struct Question {
    pub(crate) id: u64,
    /// Where it was asked.
    pub(crate) link: Option<LinkKey>,
    pub(crate) connections: Vec<ConnectionKey>,
}

/// Questions without an answer. Bounded by the admissions.
#[derive(Default)]
pub(crate) struct Questions {
    numbers: u64,
    open: HashMap<VerdictKey, Question>,
    by_id: HashMap<u64, VerdictKey>,
}

impl Questions {
    /// Adds a connection that waits; true: nobody has asked before.
    pub(crate) fn add(&mut self, key: VerdictKey, connection: ConnectionKey) -> bool {
        if let Some(question) = self.open.get_mut(&key) {
            question.connections.push(connection);
            return false;
        }
        self.numbers += 1;
        let id = self.numbers;
        self.open.insert(key, Question { id, link: None, connections: vec![connection] });
        self.by_id.insert(id, key);
        true
    }

    pub(crate) fn get(&self, key: &VerdictKey) -> Option<&Question> {
        self.open.get(key)
    }

    /// The question is on its way.
    pub(crate) fn asked(&mut self, key: &VerdictKey, link: LinkKey) {
        if let Some(question) = self.open.get_mut(key) {
            question.link = Some(link);
        }
    }

    /// Questions that no living link has.
    pub(crate) fn without_router(&mut self, lives: impl Fn(LinkKey) -> bool) -> Vec<VerdictKey> {
        for question in self.open.values_mut() {
            question.link = question.link.filter(|link| lives(*link));
        }
        self.open.iter().filter(|(_, it)| it.link.is_none()).map(|(key, _)| *key).collect()
    }

    /// Who waited for this answer.
    pub(crate) fn answer(&mut self, id: u64) -> Option<(VerdictKey, Vec<ConnectionKey>)> {
        let key = self.by_id.remove(&id)?;
        self.open.remove(&key).map(|question| (key, question.connections))
    }

    /// A connection waits no more. True: others do, and nothing was asked for them yet.
    pub(crate) fn leave(&mut self, key: &VerdictKey, connection: ConnectionKey) -> bool {
        let Some(question) = self.open.get_mut(key) else { return false };
        question.connections.retain(|it| *it != connection);
        if question.connections.is_empty() {
            let id = question.id;
            self.open.remove(key);
            self.by_id.remove(&id);
            return false;
        }
        question.link.is_none()
    }
}
