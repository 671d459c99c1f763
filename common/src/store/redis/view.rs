//! Who has which slots, from what nodes of a cluster say (`CLUSTER NODES`). Pure. Nodes may disagree during a failover or a
//! migration: for each slot the claim with the highest configuration epoch counts, as it does among the nodes.

use std::collections::BTreeMap;

use super::slots::SLOTS;

/// Host and port of a node.
pub(super) type Address = (String, u16);

/// One slot's owner.
#[derive(Clone, Copy)]
struct Claim {
    epoch: u64,
    node: usize,
}

/// See the module.
#[derive(Default)]
pub(super) struct View {
    nodes: Vec<Address>,
    claims: BTreeMap<u16, Claim>,
}

impl View {
    /// Adds what one node said; `asked` is where it was asked, for nodes that don't know their own address.
    pub(super) fn add(&mut self, text: &str, asked: &Address) {
        for line in text.lines() {
            let mut fields = line.split(' ');
            let (Some(_), Some(place), Some(flags)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let mut flags = flags.split(',');
            if !flags.clone().any(|flag| flag == "master") || flags.clone().any(|flag| flag == "noaddr") {
                continue;
            }
            let myself = flags.any(|flag| flag == "myself");
            // The primary's name, two times, the epoch, the state of the link.
            let epoch = fields.nth(3).and_then(|epoch| epoch.parse().ok()).unwrap_or_default();
            let Some(address) = address(place, myself.then_some(asked)) else { continue };
            let node = self.node(address);
            for slot in fields.skip(1).filter_map(range).flatten() {
                let claim = self.claims.entry(slot).or_insert(Claim { epoch, node });
                if claim.epoch < epoch {
                    *claim = Claim { epoch, node };
                }
            }
        }
    }

    fn node(&mut self, address: Address) -> usize {
        self.nodes.iter().position(|known| *known == address).unwrap_or_else(|| {
            self.nodes.push(address);
            self.nodes.len() - 1
        })
    }

    /// All primaries, those without slots too.
    pub(super) fn primaries(&self) -> &[Address] {
        &self.nodes
    }

    /// Those with slots, and their slots.
    pub(super) fn owners(&self) -> BTreeMap<Address, Vec<u16>> {
        let mut owners: BTreeMap<Address, Vec<u16>> = BTreeMap::new();
        for (slot, claim) in &self.claims {
            if let Some(address) = self.nodes.get(claim.node) {
                owners.entry(address.clone()).or_default().push(*slot);
            }
        }
        owners
    }
}

/// `host:port@bus-port[,hostname]`; the address of the one that speaks may be empty.
fn address(place: &str, myself: Option<&Address>) -> Option<Address> {
    let (own, hostname) = place.split_once(',').unwrap_or((place, ""));
    let (host, port) = own.split('@').next()?.rsplit_once(':')?;
    let hostname = hostname.split(',').next().unwrap_or("");
    let host = match (host, hostname, myself) {
        ("" | "?", "" | "?", asked) => &asked?.0,
        ("" | "?", hostname, _) => hostname,
        (host, ..) => host,
    };
    Some((host.into(), port.parse().ok().filter(|port| *port != 0)?))
}

/// `7` or `3-9`; slots on the move (`[…]`) are still their owner's.
fn range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (usize::from(last) < SLOTS).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: &str = "\
aa 10.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-5460 [5461->-bb] [77-<-cc]
bb 10.0.0.2:7000@17000,host-b master - 0 1 2 connected 5461-10922
cc 10.0.0.3:7000@17000,,shard-id=9 master,fail? - 0 1 3 connected 10923-16383
dd 10.0.0.4:7000@17000 slave aa 0 1 1 connected
ee :0@0 master,noaddr - 0 1 0 disconnected
ff 10.0.0.6:7000@17000 master - 0 1 0 connected
";

    fn at(last: u8) -> Address {
        (format!("10.0.0.{last}"), 7_000)
    }

    #[test]
    fn a_view_has_the_primaries_with_their_slots() {
        let mut view = View::default();
        view.add(A, &at(1));
        let owners = view.owners();
        assert_eq!(owners.keys().cloned().collect::<Vec<_>>(), [at(1), at(2), at(3)]);
        assert_eq!(owners.values().map(Vec::len).sum::<usize>(), SLOTS);
        assert_eq!(owners[&at(1)].last(), Some(&5_460));
        assert_eq!(view.primaries().len(), 4, "one without slots");
    }

    #[test]
    fn the_higher_epoch_has_the_slot_in_whatever_order_it_is_told() {
        let moved = "\
bb 10.0.0.2:7000@17000 myself,master - 0 0 7 connected 5460-10922
aa 10.0.0.1:7000@17000 master - 0 0 1 connected 0-5459
";
        for order in [[A, moved], [moved, A]] {
            let mut view = View::default();
            order.iter().for_each(|text| view.add(text, &at(1)));
            let owners = view.owners();
            assert_eq!(owners[&at(2)].first(), Some(&5_460));
            assert_eq!(owners[&at(1)].len(), 5_460);
            assert_eq!(owners[&at(3)].len(), 5_461);
        }
    }

    #[test]
    fn who_does_not_know_its_own_address_is_where_it_was_asked() {
        let mut view = View::default();
        view.add("aa :7000@17000 myself,master - 0 0 1 connected 0-16383", &("h".into(), 7_000));
        assert_eq!(view.primaries(), [("h".to_owned(), 7_000)]);
        let mut view = View::default();
        view.add("aa ?:7000@17000,name myself,master - 0 0 1 connected 1", &at(1));
        assert_eq!(view.primaries(), [("name".to_owned(), 7_000)]);
    }

    #[test]
    fn nonsense_is_nobody() {
        let mut view = View::default();
        view.add(
            "\n\nx\na b\naa h:7000 master - 0 0 1 connected 9-99999 -3 x-y 5-\nh h master - 0 0",
            &at(1),
        );
        assert!(view.owners().is_empty());
    }
}
