//! Which connections a key goes to now. Made anew whenever that changes, and swapped whole.

use std::sync::Arc;

use super::{
    live::Live,
    slots::{SLOTS, slot},
};

/// No node of the table.
const NOBODY: u16 = u16::MAX;

/// See the module.
pub(super) enum Routes {
    /// One server with everything, if it is there.
    One(Option<Arc<Live>>),
    /// Nodes with slots.
    Cluster(Table),
}

/// Who has which slot.
pub(super) struct Table {
    nodes: Vec<Arc<Live>>,
    slots: Vec<u16>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { nodes: Vec::new(), slots: vec![NOBODY; SLOTS] }
    }

    /// Adds a node with its slots.
    pub(super) fn add(&mut self, live: &Arc<Live>, slots: impl IntoIterator<Item = u16>) {
        let Ok(node) = u16::try_from(self.nodes.len()) else { return };
        self.nodes.push(Arc::clone(live));
        for slot in slots {
            if let Some(owner) = self.slots.get_mut(usize::from(slot)) {
                *owner = node;
            }
        }
    }

    /// Slots that nobody has.
    pub(super) fn uncovered(&self) -> usize {
        self.slots.iter().filter(|owner| **owner == NOBODY).count()
    }
}

impl Routes {
    /// Where a key is.
    pub(super) fn find(&self, key: &[u8]) -> Option<&Arc<Live>> {
        match self {
            Self::One(live) => live.as_ref(),
            Self::Cluster(table) => {
                let node = table.slots.get(usize::from(slot(key)))?;
                table.nodes.get(usize::from(*node))
            }
        }
    }

    /// All primaries that have anything.
    pub(super) fn all(&self) -> &[Arc<Live>] {
        match self {
            Self::One(live) => live.as_slice(),
            Self::Cluster(table) => &table.nodes,
        }
    }
}
