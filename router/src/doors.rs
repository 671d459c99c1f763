//! Puts the services on their ports: links and peers inside, microservices and operators outside.

use std::sync::Arc;

use penstock_proto::link::{AuthResult, Authenticate, Verdict, link_server::LinkServer as LinkService};
use tokio::sync::mpsc;
use tonic::service::Routes;

use crate::{
    control::Authenticator,
    homes::{Homes, TookOver},
    relay::MESSAGE_MOST,
    server::LinkServer,
};

/// The services of a router.
pub struct Doors {
    authenticator: Arc<dyn Authenticator>,
}

struct Nobody;

#[async_trait::async_trait]
impl Authenticator for Nobody {
    async fn authenticate(&self, _ask: Authenticate) -> Verdict {
        Verdict { result: AuthResult::Denied.into(), ..Verdict::default() }
    }
}

impl Doors {
    /// Makes the services.
    pub fn new(_homes: &Arc<Homes>, _took_over: mpsc::Receiver<TookOver>) -> Self {
        Self { authenticator: Arc::new(Nobody) }
    }

    /// Links and peers.
    pub fn inside(&self, homes: &Arc<Homes>) -> Routes {
        let links = LinkServer::new(Arc::clone(homes), Arc::clone(&self.authenticator));
        Routes::new(LinkService::new(links).max_decoding_message_size(MESSAGE_MOST))
    }

    /// Microservices and operators.
    pub fn outside(&self) -> Routes {
        Routes::default()
    }
}
