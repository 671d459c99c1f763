//! Metrics of groups: what was done with records, and how far each group is behind. Holds handles and label sets; the
//! figures of lag come from [`super::survey`].
//!
//! Invariants: at most [`SHOWN`] groups have label sets, so that tenants don't fill the memory of whoever scrapes; a group
//! that is not kept has none.

use std::{collections::BTreeSet, sync::atomic::AtomicU64, time::Duration};

use penstock_common::name::TenantName;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::dispatch::Tally;

/// Groups that have label sets at a time; all above are only counted.
pub const SHOWN: usize = 1_000;

/// A group and whose it is.
pub type GroupName = (TenantName, String);

type Results = Family<[(&'static str, &'static str); 1], Counter>;
type Labels = [(&'static str, String); 2];

/// What was done with records, over all groups of this router.
#[derive(Debug)]
pub struct GroupRecords {
    family: Results,
    handed_out: Counter,
    redelivered: Counter,
    acked: Counter,
    filtered: Counter,
    nacked: Counter,
    dead: Counter,
    dropped: Counter,
}

impl Default for GroupRecords {
    fn default() -> Self {
        let family = Results::default();
        let of = |result| family.get_or_create_owned(&[("result", result)]);
        Self {
            handed_out: of("handed_out"),
            redelivered: of("redelivered"),
            acked: of("acked"),
            filtered: of("filtered"),
            nacked: of("nacked"),
            dead: of("dead"),
            dropped: of("dropped"),
            family,
        }
    }
}

impl GroupRecords {
    /// Registers `penstock_group_records_total{result}`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "penstock_group_records",
            "Records of groups by what was done with them",
            self.family.clone(),
        );
    }

    /// Adds what one group did in one turn.
    pub(super) fn add(&self, tally: Tally) {
        if tally == Tally::default() {
            return;
        }
        self.handed_out.inc_by(tally.handed_out);
        self.redelivered.inc_by(tally.redelivered);
        self.acked.inc_by(tally.acked);
        self.filtered.inc_by(tally.filtered);
        self.nacked.inc_by(tally.nacked);
        self.dead.inc_by(tally.dead);
        self.dropped.inc_by(tally.missed + tally.unreadable);
    }
}

/// What is shown of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Records that it is not done with.
    pub lag: u64,
    /// Age of the oldest of them.
    pub oldest: Duration,
    /// Records that were removed before it was done with them, since it began.
    pub dropped: u64,
    /// Records that became dead letters, since it began.
    pub dead: u64,
}

/// How far groups are behind, over the partitions whose home is this router.
#[derive(Debug, Default)]
pub struct Lags {
    records: Family<Labels, Gauge>,
    oldest: Family<Labels, Gauge<f64, AtomicU64>>,
    dropped: Family<Labels, Gauge>,
    dead: Family<Labels, Gauge>,
    unbalanced: Gauge,
    unshown: Gauge,
    shown: BTreeSet<GroupName>,
}

impl Lags {
    /// Registers `penstock_group_lag_records`, `penstock_group_oldest_seconds`, `penstock_group_dropped_records` and
    /// `penstock_group_dead_records`, all `{tenant,group}`, `penstock_ledger_unbalanced` and `penstock_groups_unshown`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "penstock_group_lag_records",
            "Records that a group is not done with, of partitions whose home is here",
            self.records.clone(),
        );
        registry.register(
            "penstock_group_oldest_seconds",
            "Age of the oldest record that a group is not done with, of partitions whose home is here",
            self.oldest.clone(),
        );
        registry.register(
            "penstock_group_dropped_records",
            "Records removed before a group was done with them, of partitions whose home is here",
            self.dropped.clone(),
        );
        registry.register(
            "penstock_group_dead_records",
            "Records of a group that became dead letters, of partitions whose home is here",
            self.dead.clone(),
        );
        registry.register(
            "penstock_ledger_unbalanced",
            "Groups whose counts do not add up, by partition",
            self.unbalanced.clone(),
        );
        registry.register(
            "penstock_groups_unshown",
            "Groups whose lag is not shown because too many are",
            self.unshown.clone(),
        );
    }

    /// Forgets all other groups. Of these, new ones are shown as far as there is room.
    pub fn keep(&mut self, groups: &BTreeSet<GroupName>) {
        let gone: Vec<GroupName> = self.shown.difference(groups).cloned().collect();
        for group in gone {
            self.hide(&group);
            self.shown.remove(&group);
        }
        let room = SHOWN.saturating_sub(self.shown.len());
        let more: Vec<GroupName> = groups.difference(&self.shown).take(room).cloned().collect();
        self.shown.extend(more);
        self.unshown.set(i64::try_from(groups.len() - self.shown.len()).unwrap_or(i64::MAX));
    }

    /// Groups that are shown.
    pub fn shown(&self) -> &BTreeSet<GroupName> {
        &self.shown
    }

    /// Sets the figures of a group that is shown; others are ignored. None: not known yet.
    pub fn set(&self, group: &GroupName, figures: Option<Figures>) {
        if !self.shown.contains(group) {
            return;
        }
        let Some(figures) = figures else { return self.hide(group) };
        let labels = labels(group);
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.records.get_or_create(&labels).set(whole(figures.lag));
        self.oldest.get_or_create(&labels).set(figures.oldest.as_secs_f64());
        self.dropped.get_or_create(&labels).set(whole(figures.dropped));
        self.dead.get_or_create(&labels).set(whole(figures.dead));
    }

    /// Sets how many groups have counts that do not add up.
    pub fn set_unbalanced(&self, groups: u64) {
        self.unbalanced.set(i64::try_from(groups).unwrap_or(i64::MAX));
    }

    fn hide(&self, group: &GroupName) {
        let labels = labels(group);
        self.records.remove(&labels);
        self.oldest.remove(&labels);
        self.dropped.remove(&labels);
        self.dead.remove(&labels);
    }
}

fn labels((tenant, group): &GroupName) -> Labels {
    [("tenant", tenant.to_string()), ("group", group.clone())]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_more_groups_than_the_cap_are_shown_and_those_shown_stay() {
        let mut registry = Registry::default();
        let mut lags = Lags::default();
        lags.register(&mut registry);
        let shown = |registry: &Registry| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
            let unshown = text.lines().find_map(|line| line.strip_prefix("penstock_groups_unshown "));
            let rows = text.lines().filter(|line| line.starts_with("penstock_group_lag_records{")).count();
            (rows, unshown.unwrap().parse::<usize>().unwrap(), text)
        };
        let group = |n: usize| (TenantName::new("demo").unwrap(), format!("g{n:05}"));
        let mut all: BTreeSet<GroupName> = (10..SHOWN + 13).map(group).collect();
        let set = |lags: &Lags, all: &BTreeSet<GroupName>| {
            let figures = Figures { lag: 1, oldest: Duration::from_millis(1_500), dropped: 0, dead: 0 };
            all.iter().for_each(|name| lags.set(name, Some(figures)));
        };
        lags.keep(&all);
        set(&lags, &all);
        assert!(matches!(shown(&registry), (SHOWN, 3, _)));
        // One that would come first does not push out what is shown; one that goes makes room for it.
        all.insert(group(0));
        lags.keep(&all);
        set(&lags, &all);
        let (rows, unshown, text) = shown(&registry);
        assert_eq!((rows, unshown, text.contains("g00000")), (SHOWN, 4, false));
        all.remove(&group(500));
        lags.keep(&all);
        set(&lags, &all);
        let (rows, unshown, text) = shown(&registry);
        assert_eq!((rows, unshown), (SHOWN, 3));
        assert!(text.contains("g00000") && !text.contains("g00500"));
        assert!(text.contains("penstock_group_oldest_seconds{tenant=\"demo\",group=\"g00000\"} 1.5\n"));
        lags.keep(&BTreeSet::new());
        assert!(matches!(shown(&registry), (0, 0, _)));
    }
}
