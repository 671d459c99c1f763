//! Rendezvous hashing: which router is a partition's home, by name alone. It decides nothing by itself; the term does.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::name::PartitionKey;

/// Weight of a router for a partition: the highest one is the home, the next one stands in for it.
pub fn weight(partition: &PartitionKey, router: u64) -> u64 {
    let tenant = xxh3_64_with_seed(partition.tenant.as_str().as_bytes(), u64::from(partition.partition));
    xxh3_64_with_seed(&router.to_le_bytes(), tenant)
}

/// The home of a partition among these routers, by incarnation.
pub fn home(partition: &PartitionKey, routers: impl IntoIterator<Item = u64>) -> Option<u64> {
    routers.into_iter().max_by_key(|router| (weight(partition, *router), *router))
}

/// Hash of a set of routers, whatever their order: two parties that have the same one see the same homes.
pub fn view(routers: impl IntoIterator<Item = u64>) -> u64 {
    routers.into_iter().fold(0, |sum, router| sum ^ xxh3_64_with_seed(&router.to_le_bytes(), 0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::name::TenantName;

    #[test]
    fn a_router_that_leaves_moves_only_its_own_partitions() {
        let tenant = TenantName::new("acme").unwrap();
        let (mut moved, mut homes) = (0, std::collections::BTreeMap::<u64, u32>::new());
        for partition in 0..64 {
            let key = PartitionKey { tenant: tenant.clone(), partition };
            let before = home(&key, [1, 2, 3]).unwrap();
            let after = home(&key, [1, 2]).unwrap();
            *homes.entry(before).or_default() += 1;
            assert!(before == 3 || before == after);
            moved += u32::from(before != after);
        }
        assert_eq!(moved, homes[&3]);
        assert!(homes.values().all(|n| *n > 8), "{homes:?}");
    }

    #[test]
    fn a_view_has_no_order() {
        assert_eq!(view([1, 2, 3]), view([3, 1, 2]));
        assert_ne!(view([1, 2]), view([1, 3]));
    }
}
