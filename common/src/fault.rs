//! The fault table: every error of the system belongs to one of six classes, and the class says how it is logged, counted,
//! repeated and told to the outside. Errors themselves stay small enums at their operations; they name their class here.

use tonic::Code;
use tracing::Level;

use crate::{
    registry::{ClaimError, RegistryError},
    store::{AppendError, CommitError, StoreError},
};

/// Whose fault it is, and so what to do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// The caller asked for something wrong or forbidden.
    Client,
    /// The caller's tenant has used up what it was given.
    Quota,
    /// This process has more to do than it can hold.
    Busy,
    /// Something that we need (store, registry, router) doesn't answer or refuses; nothing happened.
    Dependency,
    /// An answer was lost: whether it happened is unknown.
    Lost,
    /// It can't be, and yet it is.
    Bug,
}

/// What the caller may do with the same request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// Nothing: it fails again.
    Never,
    /// Send it again later, with backoff and jitter.
    Later,
    /// Send it again in a form that can be recognised as sent before.
    Recognisably,
}

/// How a class is treated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Treatment {
    /// Level of the one line that is logged where the error stops.
    pub level: Level,
    /// Value of the metric label `reason` or `result`.
    pub label: &'static str,
    /// What the caller may do.
    pub retry: Retry,
    /// MQTT 3.1.1 CONNACK return code.
    pub connack: u8,
    /// MQTT 5.0 reason code of a CONNACK or DISCONNECT.
    pub reason: u8,
    /// Status at the gRPC door.
    pub grpc: Code,
}

impl Fault {
    /// All classes.
    pub const ALL: [Self; 6] =
        [Self::Client, Self::Quota, Self::Busy, Self::Dependency, Self::Lost, Self::Bug];

    /// The table.
    pub fn treatment(self) -> Treatment {
        let row = |level, label, retry, connack, reason, grpc| Treatment {
            level,
            label,
            retry,
            connack,
            reason,
            grpc,
        };
        match self {
            Self::Client => row(Level::DEBUG, "client", Retry::Never, 5, 0x87, Code::InvalidArgument),
            Self::Quota => row(Level::INFO, "quota", Retry::Later, 3, 0x97, Code::ResourceExhausted),
            Self::Busy => row(Level::WARN, "busy", Retry::Later, 3, 0x89, Code::Unavailable),
            Self::Dependency => row(Level::WARN, "dependency", Retry::Later, 3, 0x88, Code::Unavailable),
            Self::Lost => row(Level::WARN, "lost", Retry::Recognisably, 3, 0x83, Code::Unknown),
            Self::Bug => row(Level::ERROR, "bug", Retry::Never, 3, 0x80, Code::Internal),
        }
    }
}

/// An error that knows its class.
pub trait Faulty {
    /// The class.
    fn fault(&self) -> Fault;
}

impl Faulty for RegistryError {
    fn fault(&self) -> Fault {
        match self {
            Self::Unavailable(_) => Fault::Dependency,
            Self::Exists(_) | Self::Missing(_) => Fault::Client,
            Self::Corrupt(_) => Fault::Bug,
        }
    }
}

impl Faulty for ClaimError {
    fn fault(&self) -> Fault {
        match self {
            Self::Unavailable(_) => Fault::Dependency,
            Self::Busy => Fault::Busy,
        }
    }
}

impl Faulty for StoreError {
    fn fault(&self) -> Fault {
        match self {
            Self::Unavailable(_) | Self::Refused(_) => Fault::Dependency,
            Self::Corrupt(_) => Fault::Bug,
        }
    }
}

impl Faulty for AppendError {
    fn fault(&self) -> Fault {
        match self {
            Self::Fenced | Self::Refused(_) | Self::Retake => Fault::Dependency,
            Self::Lost(_) => Fault::Lost,
        }
    }
}

impl Faulty for CommitError {
    fn fault(&self) -> Fault {
        match self {
            Self::Fenced => Fault::Dependency,
            Self::Store(error) => error.fault(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_class_is_told_apart_and_told_within_the_standards() {
        let labels: HashSet<_> = Fault::ALL.iter().map(|fault| fault.treatment().label).collect();
        assert_eq!(labels.len(), Fault::ALL.len());
        for fault in Fault::ALL {
            let row = fault.treatment();
            // Return code 4 is not used: a caller can't tell a wrong password from a missing permission.
            assert!(matches!(row.connack, 3 | 5), "{fault:?}");
            assert!(row.reason >= 0x80, "{fault:?}: a 5.0 failure is 0x80 and above");
            assert_ne!(row.grpc, Code::Ok);
            assert!(row.label.bytes().all(|b| b.is_ascii_lowercase()));
        }
    }

    #[test]
    fn only_what_can_succeed_is_repeated_and_only_our_faults_are_errors() {
        for fault in Fault::ALL {
            let row = fault.treatment();
            assert_eq!(row.level == Level::ERROR, fault == Fault::Bug);
            assert_eq!(row.retry == Retry::Recognisably, fault == Fault::Lost);
            assert_eq!(row.retry == Retry::Never, matches!(fault, Fault::Client | Fault::Bug));
            // gRPC clients repeat UNAVAILABLE on their own: what may have happened must not say so.
            assert!(fault != Fault::Lost || row.grpc != Code::Unavailable);
        }
    }

    #[test]
    fn a_lost_answer_is_never_taken_for_a_refusal() {
        assert_eq!(AppendError::Lost(String::new()).fault(), Fault::Lost);
        assert_eq!(AppendError::Refused(String::new()).fault(), Fault::Dependency);
        assert_eq!(ClaimError::Busy.fault(), Fault::Busy);
        assert_eq!(RegistryError::Missing(String::new()).fault(), Fault::Client);
    }
}
