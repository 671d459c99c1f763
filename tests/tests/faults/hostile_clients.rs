//! Clients that mean harm: whatever they do, their neighbours publish and connect as before, nothing acknowledged is lost, and
//! the gateway's memory stays bounded.

use std::time::Duration;

use penstock_tests::{
    cluster::Cluster,
    hostile::{Attack, Kind, Waits},
    load::Load,
    wait::{alone, eventually},
};

use crate::under_load::RECOVERY;

/// Of each kind at a time.
const ATTACKERS: usize = 60;
/// What a machine that does much else at the same time may take; an endpoint that is stopped takes longer.
const GENEROUS: Duration = Duration::from_secs(5);
/// Growth of the gateway's memory, bytes, whatever came before.
const GROWTH: u64 = 256 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_of_hostile_clients_publish_and_connect_on() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(0, 1).await;
    let gateway = cluster.gateway("gateway-0");
    let gateway = gateway
        .flag("connect-timeout", "2s")
        .flag("packet-timeout", "1s")
        .flag("unread-timeout", "1s")
        .flag("max-handshakes", "20")
        .flag("max-half-packets", "2MiB")
        .flag("max-outbound", "64KiB")
        .flag("socket-buffer", "16KiB")
        .flag("max-subscriptions", "1000");
    cluster.add(gateway).await;
    let (hostile, peaceful) = (cluster.tenant("hostile").await, cluster.tenant("peaceful").await);
    let target = cluster.targets().remove(0);
    let load = Load::start(cluster.client(&peaceful), cluster.targets(), &peaceful).await;
    let memory = || cluster.gateways[0].resident_bytes();
    let before = memory();
    for kind in Kind::ALL {
        let attack = Attack::start(kind, ATTACKERS, &target, &hostile);
        let attack = &attack;
        eventually(kind.name(), RECOVERY, || async move { (attack.turns() >= 20).then_some(()) }).await;
        let waits = Waits::measure(&target, &peaceful, Duration::from_secs(1)).await;
        let (puback, connack) = (Waits::percentile(&waits.puback, 99), Waits::percentile(&waits.connack, 99));
        eprintln!("{}: p99 PUBACK {puback:?}, CONNACK {connack:?}, {} bytes", kind.name(), memory());
        assert!(puback < GENEROUS && connack < GENEROUS, "{}: {puback:?}, {connack:?}", kind.name());
        assert!(memory() < before + GROWTH, "{}: {} bytes, {before} before", kind.name(), memory());
        if let Some(metric) = counted(kind) {
            let gateway = &cluster.gateways[0];
            eventually(metric, RECOVERY, || async move {
                gateway.metric(metric).await.filter(|count| *count > 0.0).map(drop)
            })
            .await;
        }
    }
    load.balances().await;
}

/// What the gateway counts while the attack lasts; nothing for floods, which are paced.
fn counted(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::SlowConnect | Kind::HalfPacket => "penstock_closes_total{reason=\"crowded\"}",
        Kind::Announce => "penstock_closes_total{reason=\"packet_too_large\"}",
        Kind::NeverAcknowledges => "penstock_closes_total{reason=\"overrun\"}",
        Kind::Subscriptions => "penstock_subscriptions_refused_total",
        Kind::TinyFilters => "penstock_closes_total{reason=\"malformed\"}",
        Kind::BadPasswords => "penstock_closes_total{reason=\"connect_refused\"}",
        Kind::Garbage => "penstock_closes_total{reason=\"not_connect\"}",
        Kind::NeverReads | Kind::Pings | Kind::FloodQos0 | Kind::FloodQos1 => return None,
    })
}
