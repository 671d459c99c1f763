//! The will: kept from CONNECT until it fires or is dropped. Who fires it where is the driver's.

use bytes::Bytes;

use super::Session;
use crate::{
    codec::decode::WillBody,
    packet::{Publish, QoS},
};

impl Session {
    /// Keeps a copy of a will that may be published.
    pub(super) fn keep_will(&mut self, will: &WillBody<'_>) {
        self.will = Some(Box::new(Publish {
            topic: Bytes::copy_from_slice(will.topic),
            payload: Bytes::copy_from_slice(will.payload),
            qos: QoS::capped(will.qos.into()),
            dup: false,
            properties: None,
        }));
    }

    /// The will, if it fires; it is forgotten in any case.
    pub(super) fn take_will(&mut self, fires: bool) -> Option<Publish> {
        self.will.take().filter(|_| fires).map(|will| *will)
    }

    /// The will, while it is kept.
    pub fn will(&self) -> Option<&Publish> {
        self.will.as_deref()
    }
}
