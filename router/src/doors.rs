//! Puts the services on their ports: links and peers inside, microservices and operators outside.

use std::{io, sync::Arc};

use async_trait::async_trait;
use penstock_common::{name::TenantName, store::Role};
use penstock_proto::link::{
    AuthResult, Authenticate, Verdict as Answer, link_server::LinkServer as LinkService,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    control::Authenticator,
    door::{
        Inside,
        admin::AdminService,
        auth::{Auth, DoorConfig},
        messaging::MessagingService,
        receipts::Receipts,
        web::Door,
    },
    groups::{
        home::PartitionHome,
        metrics::Lags,
        serve::Serving,
        survey::{HomesNow, Survey},
    },
    holdings::{Everywhere, Holdings},
    homes::{Homes, TookOver},
    peer::PeerService,
    peers::{PeerError, Peers},
    relay::MESSAGE_MOST,
    server::LinkServer,
    serving::HomesHere,
    verify::{Verdict, Verifier},
};

/// The services of a router.
pub struct Doors {
    inside: Inside,
    verifier: Arc<Verifier>,
    auth: Auth,
}

/// The services could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DoorsError {
    /// The threads that hash passwords.
    #[error("cannot start the threads that verify passwords: {0}")]
    Threads(#[from] io::Error),
    /// The cluster secret can't be sent.
    #[error(transparent)]
    Peers(#[from] PeerError),
}

impl Doors {
    /// Makes the services.
    pub fn new(homes: &Arc<Homes>, took_over: mpsc::Receiver<TookOver>) -> Result<Self, DoorsError> {
        let definitions = homes.registry.definitions();
        let verifier = Verifier::new(Arc::clone(&homes.store), definitions.clone(), &homes.seams)?;
        let peers = Peers::new(homes.config.cluster_secret.as_ref().map(|secret| secret.expose()))?;
        // The first doors of these homes: there is nothing to replace.
        let _ = homes.peers.set(Arc::clone(&peers));
        let presence = Arc::clone(homes);
        tokio::spawn(Arc::clone(&peers).tell_previous(took_over, move || presence.presence.members()));
        let holdings = Arc::<Holdings>::default();
        let here: Arc<HomesHere> = Arc::new(HomesHere(Arc::clone(homes)));
        let holders = Everywhere {
            own: Arc::clone(&holdings),
            peers: Arc::clone(&peers),
            homes: Arc::clone(&here) as _,
        };
        let serving =
            Serving::new(Arc::clone(&homes.store), definitions, homes.seams.clone(), Arc::new(holders));
        let inside = Inside {
            homes: here,
            serving,
            holdings,
            peers,
            store: Arc::clone(&homes.store),
            registry: Arc::clone(&homes.registry),
            seams: homes.seams.clone(),
            receipts: Receipts::default(),
        };
        let config = DoorConfig { plain_passwords: homes.config.plain_passwords };
        let auth = Auth::new(Arc::clone(&verifier), config);
        Ok(Self { inside, verifier, auth })
    }

    /// Registers the metrics of groups and receipts. What is returned shows the lag of groups, once it is run.
    pub fn watch(&self, homes: &Arc<Homes>, metrics: &mut prometheus_client::registry::Registry) -> Survey {
        let (inside, lags) = (&self.inside, Lags::default());
        inside.receipts.register(metrics);
        inside.serving.records.register(metrics);
        lags.register(metrics);
        let homes = Arc::clone(homes);
        let all: HomesNow = Box::new(move || {
            homes.all(None).into_iter().map(|home| home as Arc<dyn PartitionHome>).collect()
        });
        Survey::new(Arc::clone(&inside.serving), Arc::clone(&inside.store), inside.seams.clone(), all, lags)
    }

    /// Links and peers.
    pub fn inside(&self, homes: &Arc<Homes>) -> Routes {
        let authenticator = Arc::new(Devices(Arc::clone(&self.verifier)));
        let links = LinkService::new(LinkServer::new(Arc::clone(homes), authenticator));
        let peers = PeerService::server(self.inside.clone(), homes.config.cluster_secret.clone());
        Routes::new(links.max_decoding_message_size(MESSAGE_MOST)).add_service(peers)
    }

    /// Microservices and operators.
    pub fn outside(&self) -> Routes {
        let messaging = MessagingService::server(self.inside.clone(), self.auth.clone());
        Routes::new(messaging).add_service(AdminService::server(
            self.inside.clone(),
            self.auth.clone(),
            Arc::clone(&self.verifier),
        ))
    }
}

impl Doors {
    /// Microservices over HTTP and WebSockets, until it drains.
    pub fn web(&self, homes: &Homes, draining: CancellationToken) -> Arc<Door> {
        Door::new(self.inside.clone(), self.auth.clone(), homes.config.web, draining)
    }
}

/// Answers gateways whether a device may connect.
struct Devices(Arc<Verifier>);

#[async_trait]
impl Authenticator for Devices {
    async fn authenticate(&self, ask: Authenticate) -> Answer {
        let result = |result: AuthResult| Answer { result: result.into(), ..Answer::default() };
        let Ok(tenant) = TenantName::new(&ask.tenant) else { return result(AuthResult::Denied) };
        match self.0.verify(&tenant, &ask.user, &ask.password, &ask.address).await {
            Verdict::Allowed { role: Role::Device, users_version } => {
                Answer { role: "device".to_owned(), users_version, ..result(AuthResult::Allowed) }
            }
            Verdict::Allowed { .. } | Verdict::Denied => result(AuthResult::Denied),
            Verdict::Busy => result(AuthResult::Busy),
            Verdict::Unavailable => result(AuthResult::Unavailable),
        }
    }
}
