//! A bounded map of what was used last. Pure. Two generations: what is found in the old one moves to the new one, and a
//! full new one becomes the old one, whose entries go. So half of the bound is always what was used last.

use std::{collections::HashMap, sync::Arc};

/// Holds at most `bound` entries.
#[derive(Debug)]
pub struct Cache {
    bound: usize,
    new: HashMap<Arc<str>, Arc<str>>,
    old: HashMap<Arc<str>, Arc<str>>,
}

impl Cache {
    /// A bound below 2 is taken as 2.
    pub fn new(bound: usize) -> Self {
        Self { bound: bound.max(2), new: HashMap::new(), old: HashMap::new() }
    }

    /// What was last put for this key.
    pub fn get(&mut self, key: &str) -> Option<Arc<str>> {
        if let Some(value) = self.new.get(key) {
            return Some(Arc::clone(value));
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.put(key, Arc::clone(&value));
        Some(value)
    }

    /// Puts a value, over an earlier one.
    pub fn put(&mut self, key: Arc<str>, value: Arc<str>) {
        self.old.remove(&key);
        if self.new.len() >= self.bound / 2 && !self.new.contains_key(&key) {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.insert(key, value);
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &str) {
        self.new.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut cache = Cache::new(100);
        for number in 0..10_000 {
            cache.put(format!("k{number}").into(), format!("v{number}").into());
            assert!(cache.new.len() + cache.old.len() <= 100);
            assert_eq!(cache.get("k0").as_deref(), Some("v0"), "used all the time");
        }
        assert_eq!(cache.get("k9999").as_deref(), Some("v9999"));
        assert_eq!(cache.get("k5000"), None);
    }

    #[test]
    fn the_last_value_counts_and_can_be_taken_out() {
        let mut cache = Cache::new(4);
        cache.put("a".into(), "1".into());
        cache.put("b".into(), "1".into());
        cache.put("c".into(), "1".into());
        cache.put("a".into(), "2".into());
        assert_eq!(cache.get("a").as_deref(), Some("2"));
        cache.remove("a");
        assert_eq!(cache.get("a"), None);
    }
}
