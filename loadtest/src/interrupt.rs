//! Ctrl-C and SIGTERM: the first ends the load, and what was measured so far is told; the second ends the process at once.

use std::io;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

/// As a shell tells the end by SIGINT.
const AT_ONCE: i32 = 130;

/// Whether somebody breaks the run off. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    broken_off: watch::Receiver<bool>,
}

impl Interrupt {
    /// Begins to listen. Needs a runtime around it.
    pub(crate) fn listen() -> io::Result<Self> {
        let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (sender, broken_off) = watch::channel(false);
        tokio::spawn(async move {
            either(&mut int, &mut term).await;
            sender.send_replace(true);
            either(&mut int, &mut term).await;
            std::process::exit(AT_ONCE);
        });
        Ok(Self { broken_off })
    }

    /// It has been broken off.
    pub(crate) fn is_set(&self) -> bool {
        *self.broken_off.borrow()
    }

    /// Waits until it is. May be cancelled.
    pub(crate) async fn wait(&self) {
        let mut broken_off = self.broken_off.clone();
        if broken_off.wait_for(|broken_off| *broken_off).await.is_err() {
            // The listener lives as long as the runtime: then nobody waits any more.
            std::future::pending::<()>().await;
        }
    }
}

async fn either(int: &mut Signal, term: &mut Signal) {
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
}
