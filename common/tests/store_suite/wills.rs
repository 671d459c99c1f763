//! Wills: kept, fired once, dropped.

use std::sync::Arc;

use bytes::Bytes;
use penstock_common::{
    epoch::Epoch,
    name::PartitionKey,
    position::EntryId,
    store::{AppendError, ChangedWills, HeldWill, Store, WillChange, WillChanges},
};

use crate::fixture::{Fixture, Home, partition, tenant};

const CLIENT: &[u8] = b"dev{ice}\0:1";

fn client(name: &'static [u8]) -> Bytes {
    Bytes::from_static(name)
}

fn keep(name: &'static [u8], epoch: u64, record: &[u8]) -> WillChange {
    let record = Bytes::copy_from_slice(record);
    WillChange::Keep { client: client(name), epoch: Epoch::real(epoch), gateway: u64::MAX - 3, record }
}

fn fire(name: &'static [u8], epoch: u64) -> WillChange {
    WillChange::Fire { client: client(name), epoch: Epoch::real(epoch) }
}

fn forget(name: &'static [u8], epoch: u64) -> WillChange {
    WillChange::Drop { client: client(name), epoch: Epoch::real(epoch) }
}

fn held(name: &'static [u8], epoch: u64, bytes: usize) -> HeldWill {
    HeldWill { client: client(name), epoch: Epoch::real(epoch), gateway: u64::MAX - 3, bytes }
}

impl Home {
    async fn try_change(&mut self, changes: &[WillChange]) -> Result<ChangedWills, AppendError> {
        let changes = WillChanges {
            changes: changes.to_vec(),
            before: self.totals,
            received_at: 1_700_000_000_000,
            suffix: Bytes::from_static(b"+then"),
        };
        let changed = self.store.change_wills(&self.partition, self.term, &changes).await?;
        self.totals = changed.entry.map_or(self.totals, |(_, totals)| totals);
        Ok(changed)
    }

    async fn change(&mut self, changes: &[WillChange]) -> ChangedWills {
        self.try_change(changes).await.unwrap()
    }

    async fn held(&self) -> Vec<HeldWill> {
        let mut held = self.store.wills(&self.partition).await.unwrap();
        held.sort_by(|a, b| a.client.cmp(&b.client));
        assert_eq!(self.store.any_wills(&self.partition).await.unwrap(), !held.is_empty());
        held
    }
}

async fn home(store: &Arc<dyn Store>, key: &PartitionKey) -> Home {
    Home::take(store, key, 1).await
}

pub async fn a_will_fires_once_and_is_an_entry_of_the_log(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 1));
    let mut home = home(&store, &key).await;
    assert_eq!(home.held().await, []);
    let first = home.append(2, 5, 10).await;
    let kept = home.change(&[keep(CLIENT, 7, b"bye\0\xff"), keep(b"other", 7, b"")]).await;
    assert_eq!(kept, ChangedWills { fired: vec![false; 2], entry: None });
    assert_eq!(home.held().await, [held(CLIENT, 7, 5), held(b"other", 7, 0)]);

    let before = home.totals;
    let fired = home.change(&[fire(CLIENT, 7), fire(b"nobody", 7), fire(b"other", 7), fire(CLIENT, 7)]).await;
    assert_eq!(fired.fired, [true, false, true, false]);
    let (id, totals) = fired.entry.unwrap();
    assert_eq!(id, EntryId::new(home.term.0, first.sequence + 1));
    let read = store.read(&key, first, 9, 1 << 20).await.unwrap().remove(0);
    assert_eq!(&read.entry.records[..], b"\x0a\x0abye\0\xff+then\x0a\x05+then");
    assert_eq!((read.entry.count, read.entry.segments.len()), (2, 0));
    assert_eq!((read.id, read.entry.totals, read.entry.first_received_at), (id, totals, 1_700_000_000_000));
    assert_eq!((totals.records, totals.bytes), (before.records + 2, before.bytes + 19));
    assert_eq!(home.held().await, []);
    let again = home.change(&[fire(CLIENT, 7), fire(b"other", 7)]).await;
    assert_eq!(again, ChangedWills { fired: vec![false; 2], entry: None });
    assert_eq!(home.append(1, 5, 10).await, EntryId::new(id.term.0, id.sequence + 1));
}

pub async fn only_the_will_of_the_named_epoch_is_touched(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 0));
    let mut home = home(&store, &key).await;
    home.change(&[keep(b"c", 7, b"seven"), keep(b"d", 7, b"seven"), keep(b"e", 7, b"seven")]).await;
    // c is back: the older will is due, the newer one takes its place. Repeated, nothing more happens.
    let back = [fire(b"c", 7), keep(b"c", 9, b"nine")];
    assert_eq!(home.change(&back).await.fired, [true, false]);
    assert_eq!(home.change(&back).await, ChangedWills { fired: vec![false; 2], entry: None });
    // Late words of the older connections, and of ones that never had a will.
    let late = home.change(&[fire(b"c", 7), forget(b"c", 7), forget(b"d", 6), fire(b"d", 8)]).await;
    assert_eq!(late, ChangedWills { fired: vec![false; 4], entry: None });
    // A clean end, and the same end told again after the gateway's death.
    assert_eq!(home.change(&[forget(b"e", 7), fire(b"e", 7)]).await.fired, [false, false]);
    assert_eq!(home.held().await, [held(b"c", 9, 4), held(b"d", 7, 5)]);
    assert_eq!(home.ids().await.len(), 1);
    assert_eq!(store.wills(&partition("acme", 1)).await.unwrap(), [], "another partition");
}

pub async fn two_homes_that_notice_at_once_fire_a_will_once(fixture: Fixture) {
    let (store, key) = (fixture.store(), partition("acme", 1));
    let mut old = home(&store, &key).await;
    old.change(&[keep(b"c", 7, b"bye")]).await;
    let mut new = Home::take(&store, &key, 2).await;
    let fenced = |changed: Result<_, _>| matches!(changed, Err(AppendError::Fenced));
    assert!(fenced(old.try_change(&[fire(b"c", 7)]).await));
    assert!(fenced(old.try_change(&[forget(b"c", 7)]).await));
    assert!(fenced(old.try_change(&[keep(b"c", 9, b"late")]).await));
    assert_eq!(new.held().await, [held(b"c", 7, 3)]);
    assert_eq!(new.change(&[fire(b"c", 7)]).await.fired, [true]);
    assert!(fenced(old.try_change(&[fire(b"c", 7)]).await));
    assert_eq!(new.ids().await.len(), 1);
}

pub async fn wills_survive_a_restart_and_go_with_their_tenant(mut fixture: Fixture) {
    let (key, large) = (partition("acme", 1), vec![b'x'; 66_000]);
    let store = fixture.store();
    let mut one = home(&store, &key).await;
    one.change(&[keep(b"c", 7, &large), keep(b"d", 7, b"bye")]).await;
    one.change(&[forget(b"d", 7)]).await;
    let mut elsewhere = home(&store, &partition("other", 1)).await;
    elsewhere.change(&[keep(b"c", 7, b"theirs")]).await;
    drop((one, elsewhere, store));
    fixture.restart().await;
    let store = fixture.store();
    let mut again = home(&store, &key).await;
    assert_eq!(again.held().await, [held(b"c", 7, 66_000)]);
    assert_eq!(again.change(&[fire(b"c", 7)]).await.fired, [true]);
    let read = store.read(&key, EntryId::ZERO, 9, 1 << 20).await.unwrap().remove(0);
    // 66,005 in seven bits each: 85, 3, 4.
    assert_eq!(read.entry.records[..4], [0x0a, 0xd5, 0x83, 0x04]);
    assert_eq!(read.entry.records.len(), 4 + 66_005);
    again.change(&[keep(b"c", 8, b"bye")]).await;
    store.delete_tenant(&tenant("acme"), 2).await.unwrap();
    assert_eq!(store.wills(&key).await.unwrap(), []);
    assert_eq!(store.wills(&partition("other", 1)).await.unwrap(), [held(b"c", 7, 6)]);
}

pub async fn many_wills_are_all_found(fixture: Fixture) {
    let store = fixture.store();
    let mut home = home(&store, &partition("acme", 1)).await;
    let names: Vec<Bytes> = (0..2_000).map(|n| Bytes::from(format!("client-{n:04}"))).collect();
    let epoch = Epoch::real(7);
    for some in names.chunks(500) {
        let record = Bytes::from(vec![b'x'; 100]);
        let keep = |client: &Bytes| WillChange::Keep {
            client: client.clone(),
            epoch,
            gateway: 3,
            record: record.clone(),
        };
        home.change(&some.iter().map(keep).collect::<Vec<_>>()).await;
    }
    let held: Vec<Bytes> = home.held().await.into_iter().map(|held| held.client).collect();
    assert_eq!(held, names);
    let fire = |client: &Bytes| WillChange::Fire { client: client.clone(), epoch };
    let all: Vec<_> = names.iter().map(fire).collect();
    assert!(home.change(&all).await.fired.iter().all(|fired| *fired));
    assert_eq!((home.totals.records, home.held().await.len()), (2_000, 0));
}
