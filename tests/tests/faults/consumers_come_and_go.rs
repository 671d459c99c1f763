//! Consumers of one group on both routers join, leave and vanish under load: what the vanished had in their hands goes to
//! the others, in order.

use penstock_loadtest::readers::GroupReader;
use penstock_tests::{load::GROUP, wait::alone};

use crate::under_load::{RECOVERY, start};

/// More than the first consumer has: the clients that are free go to them.
const MORE_CREDIT: u32 = 5_000;

#[tokio::test(flavor = "multi_thread")]
async fn consumers_join_leave_and_vanish() {
    let _alone = alone().await;
    let (cluster, tenant, load) = start().await;
    let mut handed = 0;
    for round in 0..6 {
        let mut readers = Vec::new();
        for server in cluster.servers() {
            let client = tenant.client(&[server]);
            let start = if round % 2 == 0 { GroupReader::holding } else { GroupReader::start };
            readers.push(start(&client, GROUP, MORE_CREDIT, &load.ledger, load.reader));
        }
        load.progress(300, RECOVERY).await;
        for reader in readers {
            if round % 2 == 0 {
                reader.vanish();
            } else {
                handed += reader.stop().await.unwrap();
            }
        }
    }
    assert!(handed > 0, "the consumers that came got nothing");
    let verdict = load.settle(RECOVERY).await;
    assert!(verdict.balanced() && verdict.redelivered > 0, "what the vanished held comes again: {verdict}");
}
