//! The contracts: records as stored, the link (gateway ⇄ router), messaging and administration (microservices and
//! operators ⇄ router), peers (router ⇄ router). Generated from `proto/`; no logic lives here but how messages become bytes.

pub mod codec;

#[allow(
    missing_docs,
    clippy::all,
    clippy::too_many_lines,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::large_futures
)]
mod generated {
    pub mod record {
        pub mod v1 {
            tonic::include_proto!("penstock.record.v1");
        }
    }
    pub mod link {
        pub mod v1 {
            tonic::include_proto!("penstock.link.v1");
        }
    }
    pub mod messaging {
        pub mod v1 {
            tonic::include_proto!("penstock.messaging.v1");
        }
    }
    pub mod admin {
        pub mod v1 {
            tonic::include_proto!("penstock.admin.v1");
        }
    }
    pub mod peer {
        pub mod v1 {
            tonic::include_proto!("penstock.peer.v1");
        }
    }
}

pub use generated::{
    admin::v1 as admin, link::v1 as link, messaging::v1 as messaging, peer::v1 as peer, record::v1 as record,
};
