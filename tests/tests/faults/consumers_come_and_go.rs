//! Consumers of one group on both routers join, leave and vanish under load: what the vanished had in their hands goes to
//! the others, in order.

use penstock_loadtest::readers::GroupReader;
use penstock_tests::{load::GROUP, wait::alone};

use crate::under_load::{RECOVERY, start};

#[tokio::test(flavor = "multi_thread")]
async fn consumers_join_leave_and_vanish() {
    let _alone = alone().await;
    let (cluster, tenant, load) = start().await;
    for round in 0..6 {
        let mut readers = Vec::new();
        for server in cluster.servers() {
            let client = tenant.client(&[server]);
            readers.push(GroupReader::start(&client, GROUP, 50, &load.ledger, load.reader));
        }
        load.progress(300, RECOVERY).await;
        for reader in readers {
            if round % 2 == 0 {
                reader.vanish();
            } else {
                reader.stop().await.unwrap();
            }
        }
    }
    load.balances().await;
}
