//! The fan-out of one partition to mailboxes: what persistent sessions want of the log is appended to their mailboxes, in
//! whatever slots those are, before the fan-out cursor moves. Repeating it appends nothing twice.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use hashbrown::{HashMap, HashSet};
use penstock_common::{
    name::{PartitionKey, partition_of},
    registry::Limits,
    store::{Appended, MailLimits, NewMail, StoreError, StoredEntry},
};
use penstock_proto::link::{Doorbell, data_down};
use tracing::warn;

use crate::{
    batch,
    fanout::{READ_BYTES, READ_ENTRIES},
    home::{Home, lock},
};

/// Mailboxes that are appended to at a time.
const APPENDS: usize = 64;
/// Bytes of mail in one append.
const APPEND_BYTES: usize = 4 << 20;
/// Clients in one Doorbell.
const CLIENTS: usize = 4_096;

/// Mail of a stretch of the log, by client and incarnation.
type Wanted = HashMap<(Bytes, u64), Vec<NewMail>>;

/// Bounds of a tenant's mailboxes.
pub(crate) fn limits(limits: &Limits) -> MailLimits {
    MailLimits { messages: limits.mailbox_messages, bytes: limits.mailbox_bytes }
}

impl Home {
    /// Appends what the log holds for mailboxes, up to its end.
    pub(crate) async fn follow_mail(self: &Arc<Self>) -> Result<(), StoreError> {
        loop {
            let before = lock(&self.fan).mailed;
            let last = *self.last().borrow();
            if before >= last || self.lost().is_cancelled() {
                return Ok(());
            }
            if !self.homes.kept.any(&self.key.tenant) || self.homes.is_isolated(&self.key.tenant) {
                lock(&self.fan).mailed = last;
                return Ok(());
            }
            let entries = self.read(before, READ_ENTRIES, READ_BYTES).await?;
            let (wanted, links) = self.wanted_mail(&entries);
            let rung = self.append_all(wanted).await?;
            self.ring(&links, rung);
            // What lies between was trimmed: nobody could have been waiting for it.
            lock(&self.fan).mailed = entries.last().map_or(last, |entry| entry.id);
        }
    }

    /// Mail of entries, and the links that want any of it live: their shards may hold the clients' connections.
    fn wanted_mail(&self, entries: &[Arc<StoredEntry>]) -> (Wanted, HashSet<u64>) {
        let (mut wanted, mut links) = (Wanted::new(), HashSet::new());
        for entry in entries.iter().filter(|entry| entry.only_for().is_none()) {
            let (mut topics, mut records) = (Vec::new(), Vec::new());
            for frame in batch::frames(&entry.entry.records).flatten() {
                let head = batch::head(frame.body).unwrap_or_default();
                if head.qos > 0 {
                    topics.push(head.topic);
                    records.push(frame.body);
                }
            }
            let tenant = &self.key.tenant;
            let mut last = HashMap::new();
            self.homes.kept.matches(tenant, &topics, |index, client, incarnation| {
                // Overlapping filters are one delivery.
                if last.insert(client.clone(), index) == Some(index) {
                    return;
                }
                let Some(body) = records.get(index) else { return };
                let record = entry.entry.records.slice_ref(body);
                let mail = wanted.entry((client.clone(), incarnation)).or_insert_with(Vec::new);
                mail.push(NewMail { entry: entry.id, record });
            });
            if !last.is_empty() {
                self.homes.interest.matches(tenant, &topics, |_, link| {
                    links.insert(link);
                });
            }
        }
        (wanted, links)
    }

    /// Returns the clients that got mail.
    async fn append_all(&self, wanted: Wanted) -> Result<Vec<Bytes>, StoreError> {
        let Some(tenant) = self.homes.tenant(&self.key.tenant).filter(|_| !wanted.is_empty()) else {
            return Ok(Vec::new());
        };
        let (limits, partitions) = (limits(&tenant.tenant.limits), tenant.tenant.partitions);
        let appends = wanted.into_iter().map(|((client, incarnation), mail)| async move {
            let partition = partition_of(&client, partitions);
            let key = PartitionKey { tenant: self.key.tenant.clone(), partition };
            let mut got = false;
            for mail in whole_entries(&mail) {
                let source = self.key.partition;
                let appended =
                    self.homes.store.append_mail(&key, &client, incarnation, source, mail, limits).await?;
                match appended {
                    Appended::Kept { appended, dropped } => got |= self.count(&client, appended, dropped),
                    Appended::Gone => {
                        // Expired, or wiped by a home that died then.
                        self.homes.store.withdraw_filters(&key.tenant, &client, incarnation).await?;
                        self.homes.kept.follow(&*self.homes.store, &key.tenant).await?;
                        break;
                    }
                }
            }
            Ok::<_, StoreError>(got.then_some(client))
        });
        let got: Vec<Option<Bytes>> = stream::iter(appends).buffer_unordered(APPENDS).try_collect().await?;
        Ok(got.into_iter().flatten().collect())
    }

    fn count(&self, client: &[u8], appended: u32, dropped: u32) -> bool {
        self.homes.metrics.mail_appended.inc_by(appended.into());
        if dropped > 0 {
            self.homes.metrics.mail_dropped.inc_by(dropped.into());
            warn!(tenant = %self.key.tenant, client = %String::from_utf8_lossy(client), dropped,
                "a mailbox is full: the newest messages are dropped");
        }
        appended > 0
    }

    /// Tells the links that may hold the clients' connections.
    fn ring(&self, links: &HashSet<u64>, clients: Vec<Bytes>) {
        for link in links.iter().filter_map(|number| self.homes.links.number(*number)) {
            for clients in clients.chunks(CLIENTS) {
                let bell = Doorbell { tenant: self.key.tenant.to_string(), clients: clients.to_vec() };
                // A link that closes now: the shard looks by itself when it is back.
                let _ = link.data.send(data_down::Kind::Doorbell(bell));
            }
        }
    }
}

/// Parts of about `APPEND_BYTES` that end with an entry: the store takes all mail of an entry at once.
fn whole_entries(mail: &[NewMail]) -> Vec<&[NewMail]> {
    let (mut parts, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (index, pair) in mail.windows(2).enumerate() {
        let [one, next] = pair else { continue };
        bytes += one.record.len();
        if bytes >= APPEND_BYTES && one.entry != next.entry {
            parts.extend(mail.get(from..=index));
            (from, bytes) = (index + 1, 0);
        }
    }
    parts.extend(mail.get(from..));
    parts
}

#[cfg(test)]
mod tests {
    use penstock_common::position::EntryId;

    use super::*;

    #[test]
    fn mail_of_an_entry_is_never_parted() {
        let mail = |sequence, bytes| NewMail {
            entry: EntryId::new(1, sequence),
            record: Bytes::from(vec![0; bytes]),
        };
        let all =
            [mail(1, 3 << 20), mail(1, 3 << 20), mail(2, 3 << 20), mail(3, 1), mail(4, 5 << 20), mail(5, 1)];
        let parts: Vec<usize> = whole_entries(&all).into_iter().map(<[_]>::len).collect();
        assert_eq!(parts, [2, 3, 1]);
        assert_eq!(whole_entries(&all[..1]).len(), 1);
    }
}
