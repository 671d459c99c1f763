//! Counts the receipts that this door gave, by status. Receipts between routers are not counted: the door counts them.

use penstock_proto::messaging::{PushReceipt, ReceiptStatus};
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// See the module. Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub struct Receipts {
    family: Family<[(&'static str, &'static str); 1], Counter>,
    routed: Counter,
    delivered: Counter,
    queued: Counter,
    not_connected: Counter,
    not_subscribed: Counter,
    expired: Counter,
    refused: Counter,
    unknown: Counter,
}

impl Default for Receipts {
    fn default() -> Self {
        let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let of = |status| family.get_or_create_owned(&[("status", status)]);
        Self {
            routed: of("routed"),
            delivered: of("delivered"),
            queued: of("queued"),
            not_connected: of("not_connected"),
            not_subscribed: of("not_subscribed"),
            expired: of("expired"),
            refused: of("refused"),
            unknown: of("unknown"),
            family,
        }
    }
}

impl Receipts {
    /// Registers `penstock_receipts_total{status}`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("penstock_receipts", "Receipts for pushes by status", self.family.clone());
    }

    /// Counts a receipt.
    pub fn count(&self, receipt: &PushReceipt) {
        let counter = match receipt.status() {
            ReceiptStatus::Routed => &self.routed,
            ReceiptStatus::Delivered => &self.delivered,
            ReceiptStatus::Queued => &self.queued,
            ReceiptStatus::NotConnected => &self.not_connected,
            ReceiptStatus::NotSubscribed => &self.not_subscribed,
            ReceiptStatus::Expired => &self.expired,
            ReceiptStatus::Refused => &self.refused,
            // Of a router of a later version.
            ReceiptStatus::Unspecified => &self.unknown,
        };
        counter.inc();
    }
}
