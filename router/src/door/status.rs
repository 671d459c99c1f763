//! Errors of the inside as gRPC statuses: the one place. Messages say what to do.

use penstock_common::{registry::RegistryError, store::StoreError};
use tonic::{Code, Status};
use tracing::{error, warn};

use crate::{
    groups::{serve::JoinError, served::Ended},
    hashing::{HashError, PoolError},
};

/// The store did not do it.
pub fn of_store(fault: &StoreError) -> Status {
    match fault {
        StoreError::Unavailable(reason) => {
            warn!(reason, "a call failed: the store does not answer");
            Status::unavailable("the store does not answer: try again")
        }
        StoreError::Corrupt(reason) => {
            error!(reason, "a call failed: the store holds something unreadable");
            Status::internal("the store holds something unreadable: see the router's log")
        }
        StoreError::Refused(reason) => {
            warn!(reason, "a call failed: the store refuses");
            Status::resource_exhausted("the store refuses writes: try again when it has room")
        }
    }
}

/// The registry did not do it.
pub fn of_registry(fault: &RegistryError) -> Status {
    match fault {
        RegistryError::Unavailable(reason) => {
            warn!(reason, "a call failed: the registry does not answer");
            Status::unavailable("the registry does not answer: try again")
        }
        RegistryError::Exists(what) => Status::already_exists(format!("{what} exists already")),
        RegistryError::Missing(what) => Status::not_found(format!("there is no {what}")),
        RegistryError::Corrupt(reason) => {
            error!(reason, "a call failed: the registry holds something unreadable");
            Status::internal("the registry holds something unreadable: see the router's log")
        }
    }
}

/// A password was not hashed.
pub fn of_pool(fault: PoolError) -> Status {
    match fault {
        PoolError::Busy => {
            Status::resource_exhausted("too many passwords wait to be checked: try again in a second")
        }
        PoolError::Stopped => Status::unavailable("passwords can't be checked now: try again"),
    }
}

/// A password can't be used.
pub fn of_hash(fault: HashError) -> Status {
    match fault {
        HashError::Prefix => Status::invalid_argument(fault.to_string()),
        HashError::Failed => Status::internal("the password can't be hashed"),
    }
}

/// A group can't be served here. FAILED_PRECONDITION holds the holder's incarnation or nothing: routers read it.
pub fn of_join(fault: &JoinError) -> Status {
    match fault {
        JoinError::NotHome => not_home(None),
        JoinError::NoGroup => no_group(),
        JoinError::Occupied => Status::already_exists(fault.to_string()),
        JoinError::Store(fault) => of_store(fault),
    }
}

/// A served group has ended.
pub fn of_ended(ended: Ended) -> Status {
    match ended {
        Ended::Lost => not_home(None),
        Ended::Deleted => no_group(),
        Ended::Replaced => Status::aborted(ended.to_string()),
        Ended::Stopped => Status::unavailable(ended.to_string()),
    }
}

/// Another router is the home: its incarnation, if known, is the message.
pub fn not_home(holder: Option<u64>) -> Status {
    Status::failed_precondition(holder.map(|holder| holder.to_string()).unwrap_or_default())
}

/// The holder that a status of [`not_home`] names. None: it is another status.
pub fn holder_in(status: &Status) -> Option<Option<u64>> {
    (status.code() == Code::FailedPrecondition).then(|| status.message().parse().ok())
}

/// No such group.
pub fn no_group() -> Status {
    Status::not_found("there is no group of this name: create it first")
}

/// No such tenant.
pub fn no_tenant() -> Status {
    Status::not_found("there is no tenant of this name")
}
