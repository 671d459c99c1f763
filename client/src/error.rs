//! What can go wrong, one enum per operation, and the one place where a gRPC status becomes one of them. Messages say
//! what to do; none holds a password.

use std::{error::Error, io};

use tonic::{Code, Status};

/// A client can't be made from what the builder was given.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum BuildError {
    /// `server` was never called.
    #[error("no server was given")]
    NoServer,
    /// `credentials` was never called.
    #[error("no credentials were given")]
    NoCredentials,
    /// The user is not `tenant/user`.
    #[error("the user is given as tenant/user, not as {0:?}")]
    BadUser(String),
    /// Not an `http://host:port` URL.
    #[error("{server:?} is not a server address such as http://127.0.0.1:7070: {reason}")]
    BadServer {
        /// As given.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// One call failed.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CallError {
    /// Unknown user or wrong password.
    #[error("the user or the password is wrong")]
    Unauthorized,
    /// The user's role does not allow it.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// What the call names is not there.
    #[error("{0}")]
    NotFound(String),
    /// It is there already, with other settings.
    #[error("{0}")]
    Exists(String),
    /// The request is malformed.
    #[error("{0}")]
    Invalid(String),
    /// Over a limit or a quota: try again later.
    #[error("the server is busy: {0}")]
    Busy(String),
    /// No connection was made: nothing was done.
    #[error("cannot reach {server}: {reason}")]
    Unreachable {
        /// Its address.
        server: String,
        /// Why not.
        reason: String,
    },
    /// The server, or what it depends on, did not answer: what the call asked for may have been done.
    #[error("{server} did not answer: {reason}")]
    Unavailable {
        /// Its address.
        server: String,
        /// What is known.
        reason: String,
    },
    /// Anything else that the server says.
    #[error("the server failed: {0}")]
    Failed(String),
}

/// A consumer ended.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ConsumeError {
    /// Unknown user or wrong password.
    #[error("the user or the password is wrong")]
    Unauthorized,
    /// The user's role does not allow it.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// There is no such group, or it was deleted.
    #[error("there is no group {0:?}")]
    GroupNotFound(String),
    /// The group is for one consumer at a time, and another one has it.
    #[error("{0}")]
    Occupied(String),
    /// The server refused the consumer's settings.
    #[error("{0}")]
    Invalid(String),
    /// The server sent what can't be read: it speaks another version.
    #[error("the server sent something unreadable: {0}")]
    Unreadable(String),
    /// No server answered for as long as `give_up_after` allows, or while closing.
    #[error("no server answered: {0}")]
    Unavailable(String),
    /// The consumer is closed.
    #[error("the consumer is closed")]
    Closed,
}

/// A push has no receipt.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum PushError {
    /// Unknown user or wrong password.
    #[error("the user or the password is wrong")]
    Unauthorized,
    /// The user's role does not allow it.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// The server refused the stream of pushes.
    #[error("{0}")]
    Invalid(String),
    /// No connection was made: the push was not sent.
    #[error("no server answered: {0}")]
    Unavailable(String),
    /// The connection broke before the receipt came: the push may have been delivered.
    #[error("the connection broke before the receipt came: {0}")]
    InDoubt(String),
    /// The pusher is closed.
    #[error("the pusher is closed")]
    Closed,
}

/// The request never left this process: it may be sent again, elsewhere.
pub(crate) fn never_sent(status: &Status) -> bool {
    io_cause(status).is_some_and(|cause| {
        use io::ErrorKind::{
            AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut,
        };
        matches!(
            cause.kind(),
            ConnectionRefused | HostUnreachable | NetworkUnreachable | TimedOut | AddrNotAvailable
        )
    }) || deepest(status).contains("dns error")
        || deepest(status).contains("failed to lookup")
}

fn io_cause(status: &Status) -> Option<&io::Error> {
    let mut next = status.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The most telling text: the deepest cause, else what the server wrote.
pub(crate) fn deepest(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut next = status.source();
    while let Some(error) = next {
        text = error.to_string();
        next = error.source();
    }
    if text.is_empty() { status.code().to_string() } else { text }
}

impl CallError {
    pub(crate) fn from_status(status: &Status, server: &str) -> Self {
        let said = || status.message().to_owned();
        let server = || server.to_owned();
        match status.code() {
            Code::Unauthenticated => Self::Unauthorized,
            Code::PermissionDenied => Self::Forbidden(said()),
            Code::NotFound => Self::NotFound(said()),
            Code::AlreadyExists => Self::Exists(said()),
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => Self::Invalid(said()),
            Code::ResourceExhausted => Self::Busy(said()),
            _ if never_sent(status) => Self::Unreachable { server: server(), reason: deepest(status) },
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                Self::Unavailable { server: server(), reason: deepest(status) }
            }
            _ => Self::Failed(said()),
        }
    }
}

impl ConsumeError {
    /// None: try again.
    pub(crate) fn permanent(status: &Status, group: &str) -> Option<Self> {
        match status.code() {
            Code::Unauthenticated => Some(Self::Unauthorized),
            Code::PermissionDenied => Some(Self::Forbidden(status.message().to_owned())),
            Code::NotFound => Some(Self::GroupNotFound(group.to_owned())),
            Code::AlreadyExists => Some(Self::Occupied(status.message().to_owned())),
            Code::InvalidArgument | Code::Unimplemented => Some(Self::Invalid(status.message().to_owned())),
            _ => None,
        }
    }
}

impl PushError {
    pub(crate) fn from_status(status: &Status) -> Self {
        match status.code() {
            Code::Unauthenticated => Self::Unauthorized,
            Code::PermissionDenied => Self::Forbidden(status.message().to_owned()),
            Code::InvalidArgument | Code::Unimplemented => Self::Invalid(status.message().to_owned()),
            _ if never_sent(status) => Self::Unavailable(deepest(status)),
            _ => Self::InDoubt(deepest(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_what_a_caller_can_act_on() {
        let map = |code| CallError::from_status(&Status::new(code, "why"), "http://h:1");
        assert_eq!(map(Code::Unauthenticated), CallError::Unauthorized);
        assert_eq!(map(Code::AlreadyExists), CallError::Exists("why".into()));
        assert!(matches!(map(Code::Unavailable), CallError::Unavailable { .. }));
        let refused = Status::from_error(Box::new(io::Error::from(io::ErrorKind::ConnectionRefused)));
        assert!(matches!(CallError::from_status(&refused, "h"), CallError::Unreachable { .. }));
    }

    #[test]
    fn a_consumer_ends_only_for_what_trying_again_cannot_cure() {
        let permanent = |code| ConsumeError::permanent(&Status::new(code, ""), "g");
        assert_eq!(permanent(Code::NotFound), Some(ConsumeError::GroupNotFound("g".into())));
        assert_eq!(permanent(Code::AlreadyExists), Some(ConsumeError::Occupied(String::new())));
        for code in [Code::Unavailable, Code::Internal, Code::Unknown, Code::ResourceExhausted, Code::Aborted]
        {
            assert_eq!(permanent(code), None, "{code}");
        }
    }
}
