//! The routes: which messages become which requests. Pure; a message of several routes becomes the requests of all, in
//! the order of the configuration.

use penstock_client::Message;
use penstock_mqtt::topic;

use crate::{
    input::{PayloadError, PayloadKind, input},
    jq::{JqError, Program},
    outgoing::{Outgoing, OutputError, Target},
    sample::Sample,
};

/// One of the list.
#[derive(Debug)]
pub struct Route {
    /// For people.
    pub name: String,
    /// MQTT filters; at least one.
    pub filters: Vec<String>,
    /// What `.payload` is.
    pub payload: PayloadKind,
    /// Makes outputs of a message.
    pub program: Program,
    /// What an output becomes.
    pub target: Target,
    /// Messages that show what it does.
    pub samples: Vec<Sample>,
}

/// A message that can't be mapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("route {route:?}: {why}")]
pub struct Unmappable {
    /// Of the route.
    pub route: String,
    /// Why.
    pub why: Why,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The payload is not what the route says.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The program failed.
    #[error(transparent)]
    Program(#[from] JqError),
    /// Its output can't be sent.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl Why {
    /// In metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Payload(_) => "payload",
            Self::Program(_) => "program",
            Self::Output(_) => "output",
        }
    }
}

impl Route {
    /// Whether a topic is one of its.
    pub fn takes(&self, topic: &str) -> bool {
        self.filters.iter().any(|filter| topic::matches(filter.as_bytes(), topic.as_bytes()))
    }

    /// Requests of a message that it takes.
    pub fn map(&self, message: &Message) -> Result<Vec<Outgoing>, Unmappable> {
        self.outputs(message).map_err(|why| Unmappable { route: self.name.clone(), why })
    }

    fn outputs(&self, message: &Message) -> Result<Vec<Outgoing>, Why> {
        let outputs = self.program.run(input(message, self.payload)?)?;
        let requests =
            outputs.into_iter().map(|output| Outgoing::new(&self.name, &self.target, output, message));
        Ok(requests.collect::<Result<_, _>>()?)
    }
}

/// Requests of a message; None: no route takes it.
pub fn map(routes: &[Route], message: &Message) -> Option<Result<Vec<Outgoing>, Unmappable>> {
    let mut takers = routes.iter().filter(|route| route.takes(&message.topic)).peekable();
    takers.peek()?;
    let all = takers.map(|route| route.map(message)).collect::<Result<Vec<_>, _>>();
    Some(all.map(|requests| requests.into_iter().flatten().collect()))
}
