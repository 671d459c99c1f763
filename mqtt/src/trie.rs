//! Filters to keys: which connections, links or groups want a topic. Pure; merging overlapping filters is the caller's.
//!
//! A radix tree over whole levels: a node's label may span several, so memory goes with the number of filters, not with
//! their levels (a filter of 1,024 bytes can have 512). All walks are loops: depth costs no stack.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hash, Hasher},
};

use hashbrown::{DefaultHashBuilder, HashTable};

const ROOT: u32 = 0;

/// A set of (filter, key) with a value each.
pub struct Trie<K, V> {
    /// Node 0 is the root, which has no label and no entries.
    nodes: Vec<Node<K, V>>,
    free: Vec<u32>,
    /// Child nodes by (parent, first level of the label). Holds node numbers only: the key is in the node.
    edges: HashTable<u32>,
    hash: DefaultHashBuilder,
    len: usize,
}

struct Node<K, V> {
    /// One or more levels joined by `/`.
    label: Box<[u8]>,
    parent: u32,
    children: u32,
    /// XOR of the children's numbers: with one child, its number.
    child_xor: u32,
    plus: bool,
    hash: bool,
    entries: Entries<K, V>,
}

/// Most filters have one key.
enum Entries<K, V> {
    None,
    One(K, V),
    // A box, so that a node with one key stays small.
    #[allow(clippy::box_collection)]
    Many(Box<BTreeMap<K, V>>),
}

impl<K: Copy + Ord, V: Copy> Entries<K, V> {
    fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self {
            Self::None => {
                *self = Self::One(key, value);
                None
            }
            Self::One(k, v) if *k == key => Some(std::mem::replace(v, value)),
            Self::One(k, v) => {
                *self = Self::Many(Box::new(BTreeMap::from([(*k, *v), (key, value)])));
                None
            }
            Self::Many(map) => map.insert(key, value),
        }
    }

    fn remove(&mut self, key: K) -> Option<V> {
        match self {
            Self::One(k, v) if *k == key => {
                let value = *v;
                *self = Self::None;
                Some(value)
            }
            Self::Many(map) => {
                let value = map.remove(&key)?;
                if let (1, Some((k, v))) = (map.len(), map.first_key_value()) {
                    *self = Self::One(*k, *v);
                }
                Some(value)
            }
            _ => None,
        }
    }

    fn for_each(&self, found: &mut impl FnMut(K, V)) {
        match self {
            Self::None => {}
            Self::One(k, v) => found(*k, *v),
            Self::Many(map) => map.iter().for_each(|(k, v)| found(*k, *v)),
        }
    }
}

/// The level that begins at `at`, and where the next one begins: beyond `text.len()` when it was the last.
fn level(text: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = text.get(at..)?;
    let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    Some((rest.get(..end)?, at + end + 1))
}

/// Where the first difference of levels is, in both (the position is the same): the bytes of common whole levels, each
/// with its separator.
fn common(label: &[u8], rest: &[u8]) -> usize {
    let mut at = 0;
    while let (Some((a, next)), Some((b, _))) = (level(label, at), level(rest, at)) {
        if a != b {
            break;
        }
        at = next;
    }
    at
}

impl<K: Copy + Eq + Hash + Ord, V: Copy> Default for Trie<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Copy + Eq + Hash + Ord, V: Copy> Trie<K, V> {
    /// No filters, no memory.
    pub fn new() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            edges: HashTable::new(),
            hash: DefaultHashBuilder::default(),
            len: 0,
        }
    }

    /// Whether there is no filter.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of (filter, key).
    pub fn len(&self) -> usize {
        self.len
    }

    /// Sets the value of (filter, key) and returns the one it had. The filter must be valid
    /// ([`crate::topic::validate_filter`]); others are kept but match nothing sensible.
    pub fn insert(&mut self, filter: &[u8], key: K, value: V) -> Option<V> {
        if self.nodes.is_empty() {
            self.nodes.push(Node::new(Box::default(), ROOT));
        }
        let node = self.place(filter);
        let previous = self.node_mut(node).and_then(|n| n.entries.insert(key, value));
        if previous.is_none() {
            self.len += 1;
        }
        previous
    }

    /// Removes (filter, key) and returns its value.
    pub fn remove(&mut self, filter: &[u8], key: K) -> Option<V> {
        let node = self.find(filter)?;
        let value = self.node_mut(node)?.entries.remove(key)?;
        self.len -= 1;
        if self.len == 0 {
            *self = Self::new();
        } else {
            self.prune(node);
        }
        Some(value)
    }

    /// Calls `found` for every (key, value) whose filter matches this valid topic name; several times a key when its
    /// filters overlap. Allocates only when `+` makes the walk branch.
    pub fn matches(&self, topic: &[u8], mut found: impl FnMut(K, V)) {
        if self.len == 0 {
            return;
        }
        let mut branches: Vec<(u32, usize)> = Vec::new();
        let mut next = Some((ROOT, 0));
        while let Some((node, at)) = next.take().or_else(|| branches.pop()) {
            // A wildcard at the first level does not match a name that begins with '$' [MQTT-4.7.2-1].
            let wild = node != ROOT || topic.first() != Some(&b'$');
            let Some(here) = self.node(node) else { continue };
            if wild && here.hash {
                self.visit(self.child(node, b"#"), topic, at, &mut found);
            }
            let Some((first, _)) = level(topic, at) else {
                here.entries.for_each(&mut found);
                continue;
            };
            if first != b"+" && first != b"#" {
                next = self.visit(self.child(node, first), topic, at, &mut found);
            }
            if wild && here.plus {
                let plus = self.visit(self.child(node, b"+"), topic, at, &mut found);
                match next {
                    None => next = plus,
                    Some(_) => branches.extend(plus),
                }
            }
        }
    }

    /// Matches a child's label against the topic from `at`. A label that ends in `#` reports; one that is used up
    /// returns where to go on.
    fn visit(
        &self,
        child: Option<u32>,
        topic: &[u8],
        mut at: usize,
        found: &mut impl FnMut(K, V),
    ) -> Option<(u32, usize)> {
        let child = child?;
        let node = self.node(child)?;
        let mut along = 0;
        while let Some((want, along_next)) = level(&node.label, along) {
            if want == b"#" {
                if along_next > node.label.len() {
                    node.entries.for_each(found);
                }
                return None;
            }
            let (have, next) = level(topic, at)?;
            if want != b"+" && want != have {
                return None;
            }
            (along, at) = (along_next, next);
        }
        Some((child, at))
    }

    fn node(&self, node: u32) -> Option<&Node<K, V>> {
        self.nodes.get(node as usize)
    }

    fn node_mut(&mut self, node: u32) -> Option<&mut Node<K, V>> {
        self.nodes.get_mut(node as usize)
    }

    fn edge_hash(&self, parent: u32, first: &[u8]) -> u64 {
        edge_hash(&self.hash, parent, first)
    }

    fn child(&self, parent: u32, first: &[u8]) -> Option<u32> {
        let is_it = |&child: &u32| self.node(child).is_some_and(|n| n.parent == parent && n.first() == first);
        self.edges.find(self.edge_hash(parent, first), is_it).copied()
    }

    /// The node of exactly this filter.
    fn find(&self, filter: &[u8]) -> Option<u32> {
        let (mut node, mut at) = (ROOT, 0);
        while let Some((first, _)) = level(filter, at) {
            node = self.child(node, first)?;
            let label = &self.node(node)?.label;
            if common(label, filter.get(at..)?) <= label.len() {
                return None;
            }
            at += label.len() + 1;
        }
        Some(node)
    }

    /// The node of exactly this filter, made if it isn't there.
    fn place(&mut self, filter: &[u8]) -> u32 {
        let (mut node, mut at) = (ROOT, 0);
        while let Some((first, _)) = level(filter, at) {
            let rest = filter.get(at..).unwrap_or_default();
            let Some(child) = self.child(node, first) else { return self.add(node, rest.into()) };
            let label = self.node(child).map_or(&[][..], |n| &n.label);
            let (shared, whole) = (common(label, rest), label.len());
            at += shared;
            node = if shared > whole { child } else { self.split(child, shared) };
        }
        node
    }

    /// A new leaf.
    fn add(&mut self, parent: u32, label: Box<[u8]>) -> u32 {
        let node = Node::new(label, parent);
        let number = match self.free.pop() {
            Some(number) => {
                if let Some(place) = self.node_mut(number) {
                    *place = node;
                }
                number
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        self.attach(number);
        number
    }

    /// Puts a node between `child` and its parent that takes the first `at` bytes of the label (whole levels, the last
    /// separator goes away); returns it.
    fn split(&mut self, child: u32, at: usize) -> u32 {
        self.detach(child);
        let Some(node) = self.node_mut(child) else { return child };
        let parent = node.parent;
        let upper = node.label.get(..at.saturating_sub(1)).unwrap_or_default().into();
        let lower = node.label.get(at..).unwrap_or_default().into();
        node.label = lower;
        let middle = self.add(parent, upper);
        if let Some(node) = self.node_mut(child) {
            node.parent = middle;
        }
        self.attach(child);
        middle
    }

    /// Removes a node that has no entries any more, or joins it with its only child; then the same for its parent.
    fn prune(&mut self, mut number: u32) {
        while number != ROOT {
            let Some(node) = self.node(number) else { return };
            let (parent, only) = (node.parent, node.child_xor);
            match (node.entries.is_empty(), node.children) {
                (true, 0) => {
                    self.detach(number);
                    self.release(number);
                }
                (true, 1) => return self.join(number, only),
                _ => return,
            }
            number = parent;
        }
    }

    /// Gives the label of `number` to its only child and removes it.
    fn join(&mut self, number: u32, child: u32) {
        self.detach(child);
        self.detach(number);
        let Some((parent, upper)) = self.node_mut(number).map(|n| (n.parent, std::mem::take(&mut n.label)))
        else {
            return;
        };
        if let Some(node) = self.node_mut(child) {
            node.label = [&*upper, b"/", &*node.label].concat().into();
            node.parent = parent;
        }
        self.attach(child);
        self.release(number);
    }

    fn release(&mut self, number: u32) {
        if let Some(node) = self.node_mut(number) {
            *node = Node::new(Box::default(), ROOT);
        }
        self.free.push(number);
    }

    /// Makes a node known to its parent and to the edges.
    fn attach(&mut self, number: u32) {
        let Some(node) = self.node(number) else { return };
        let hash = self.edge_hash(node.parent, node.first());
        let (nodes, hasher) = (&self.nodes, &self.hash);
        self.edges.insert_unique(hash, number, |&other| {
            nodes.get(other as usize).map_or(0, |n| edge_hash(hasher, n.parent, n.first()))
        });
        self.count(number, true);
    }

    fn detach(&mut self, number: u32) {
        let Some(node) = self.node(number) else { return };
        let hash = self.edge_hash(node.parent, node.first());
        if let Ok(edge) = self.edges.find_entry(hash, |&other| other == number) {
            edge.remove();
        }
        self.count(number, false);
    }

    /// Tells the parent of a node that comes or goes.
    fn count(&mut self, number: u32, comes: bool) {
        let Some(node) = self.node(number) else { return };
        let (parent, plus, hash) = (node.parent, node.first() == b"+", node.first() == b"#");
        if let Some(up) = self.node_mut(parent) {
            up.children = if comes { up.children + 1 } else { up.children.saturating_sub(1) };
            up.child_xor ^= number;
            up.plus = if plus { comes } else { up.plus };
            up.hash = if hash { comes } else { up.hash };
        }
    }
}

fn edge_hash(hasher: &DefaultHashBuilder, parent: u32, first: &[u8]) -> u64 {
    let mut state = hasher.build_hasher();
    state.write_u32(parent);
    state.write(first);
    state.finish()
}

impl<K, V> Node<K, V> {
    fn new(label: Box<[u8]>, parent: u32) -> Self {
        Self { label, parent, children: 0, child_xor: 0, plus: false, hash: false, entries: Entries::None }
    }

    fn first(&self) -> &[u8] {
        level(&self.label, 0).map_or(&[], |(first, _)| first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(trie: &Trie<u32, u8>, topic: &str) -> Vec<(u32, u8)> {
        let mut all = Vec::new();
        trie.matches(topic.as_bytes(), |k, v| all.push((k, v)));
        all.sort_unstable();
        all
    }

    #[test]
    fn filters_are_found_replaced_and_removed() {
        let mut trie = Trie::new();
        assert_eq!(trie.insert(b"a/b/c", 1, 0), None);
        assert_eq!(trie.insert(b"a/b", 2, 1), None);
        assert_eq!(trie.insert(b"a/+/c", 3, 0), None);
        assert_eq!(trie.insert(b"a/#", 4, 1), None);
        assert_eq!(trie.insert(b"a/b/c", 1, 1), Some(0));
        assert_eq!(trie.len(), 4);
        assert_eq!(found(&trie, "a/b/c"), [(1, 1), (3, 0), (4, 1)]);
        assert_eq!(found(&trie, "a"), [(4, 1)]);
        assert_eq!(found(&trie, "a/b"), [(2, 1), (4, 1)]);
        assert_eq!(trie.remove(b"a/b", 9), None);
        assert_eq!(trie.remove(b"a/b/d", 1), None);
        assert_eq!(trie.remove(b"a", 1), None);
        for (filter, key) in [("a/b", 2), ("a/b/c", 1), ("a/#", 4), ("a/+/c", 3)] {
            assert!(trie.remove(filter.as_bytes(), key).is_some(), "{filter}");
        }
        assert!(trie.is_empty());
        assert_eq!(found(&trie, "a/b/c"), []);
        assert_eq!(trie.nodes.capacity() + trie.edges.capacity(), 0);
    }

    #[test]
    fn deepest_filters_cost_two_nodes_each_and_no_stack() {
        let mut trie = Trie::new();
        let deep = |n: u32| format!("{n}{}", "/".repeat(1_000));
        for n in 0..100 {
            trie.insert(deep(n).as_bytes(), n, 0);
        }
        assert!(trie.nodes.len() <= 201, "{}", trie.nodes.len());
        assert_eq!(found(&trie, &deep(7)), [(7, 0)]);
        let plus = vec!["+"; 512].join("/");
        trie.insert(plus.as_bytes(), 500, 1);
        assert_eq!(found(&trie, &"/".repeat(511)), [(500, 1)]);
    }

    #[test]
    fn nodes_go_back_when_filters_go() {
        let mut trie = Trie::new();
        trie.insert(b"keep/me", 0, 0);
        for n in 0..1_000u32 {
            trie.insert(format!("d/{n}/cmd/+").as_bytes(), n, 0);
        }
        let most = trie.nodes.len();
        for n in 0..1_000u32 {
            trie.remove(format!("d/{n}/cmd/+").as_bytes(), n);
        }
        assert_eq!(trie.nodes.len() - trie.free.len(), 2);
        for n in 0..1_000u32 {
            trie.insert(format!("d/{n}/cmd/+").as_bytes(), n, 0);
        }
        assert_eq!(trie.nodes.len(), most);
    }
}
