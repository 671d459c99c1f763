//! Wakes tasks at an instant, to some ten microseconds: the timers of the runtime are a millisecond coarse, which would be
//! added to every latency that counts from when a message was due. One timer of the kernel for each thread of clients.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::AbortHandle,
    time::Instant,
};

/// Farther away is looked at again then.
const FAR: Duration = Duration::from_secs(3_600);

#[derive(Debug)]
struct Slot {
    due: Option<Instant>,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct Inner {
    /// May hold entries that their slots have given up: they wake nobody.
    heap: BinaryHeap<Reverse<(Instant, usize)>>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    armed: Option<Instant>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    timer: AsyncFd<OwnedFd>,
}

/// An alarm clock of one thread. Cheap to clone; its task ends with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct Alarm {
    shared: Arc<Shared>,
    _task: Arc<Ringing>,
}

#[derive(Debug)]
struct Ringing(AbortHandle);

impl Drop for Ringing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One task's place at the alarm.
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    slot: usize,
}

impl Alarm {
    /// Needs a runtime around it.
    pub(crate) fn start() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Deprecated for descriptors that change or close under it; an owned one that nobody else gets does neither.
        #[allow(deprecated)]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        let shared = Arc::new(Shared { inner: Mutex::default(), timer });
        let ringing = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            // An alarm that can't be read any more would be a broken kernel.
            while ringing.ring().await.is_ok() {}
        });
        Ok(Self { shared, _task: Arc::new(Ringing(task.abort_handle())) })
    }

    /// A place for one task.
    pub(crate) fn ticket(&self) -> Ticket {
        let mut inner = self.shared.lock();
        let empty = Slot { due: None, waker: None };
        let slot = match inner.free.pop() {
            Some(slot) => slot,
            None => {
                inner.slots.push(empty);
                inner.slots.len() - 1
            }
        };
        Ticket { shared: Arc::clone(&self.shared), slot }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ring(&self) -> io::Result<()> {
        let mut guard = self.timer.readable().await?;
        let mut expirations = [0; 8];
        match rustix::io::read(self.timer.get_ref(), &mut expirations) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        guard.clear_ready();
        let mut inner = self.lock();
        let now = Instant::now();
        inner.armed = None;
        inner.wake(now);
        self.arm(&mut inner, now)
    }

    /// Sets the timer to the earliest entry, unless it is.
    fn arm(&self, inner: &mut Inner, now: Instant) -> io::Result<()> {
        let Some(Reverse((due, _))) = inner.heap.peek().copied() else { return Ok(()) };
        if inner.armed.is_some_and(|armed| armed <= due) {
            return Ok(());
        }
        let after = due.saturating_duration_since(now).clamp(Duration::from_nanos(1), FAR);
        let it_value = Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(after.subsec_nanos()),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        inner.armed = Some(due);
        Ok(())
    }
}

impl Inner {
    fn wake(&mut self, now: Instant) {
        while let Some(Reverse((due, slot))) =
            self.heap.peek().copied().filter(|Reverse((due, _))| *due <= now)
        {
            self.heap.pop();
            let Some(slot) = self.slots.get_mut(slot).filter(|slot| slot.due == Some(due)) else { continue };
            slot.due = None;
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Ticket {
    /// Waits until then. May be cancelled, and called again with another instant.
    pub(crate) async fn until(&self, due: Instant) {
        std::future::poll_fn(|context| self.poll_until(due, context)).await;
    }

    fn poll_until(&self, due: Instant, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if due <= now {
            return Poll::Ready(());
        }
        let mut inner = self.shared.lock();
        let Some(slot) = inner.slots.get_mut(self.slot) else { return Poll::Ready(()) };
        slot.waker = Some(context.waker().clone());
        if slot.due != Some(due) {
            slot.due = Some(due);
            inner.heap.push(Reverse((due, self.slot)));
            // An alarm that can't be set would never ring.
            if self.shared.arm(&mut inner, now).is_err() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        if let Some(slot) = inner.slots.get_mut(self.slot) {
            *slot = Slot { due: None, waker: None };
        }
        inner.free.push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn tasks_are_woken_in_their_order_and_not_before() {
        let alarm = Alarm::start().unwrap();
        let start = Instant::now();
        let order = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = [30u64, 10, 20, 0]
            .map(|millis| {
                let (ticket, order) = (alarm.ticket(), Arc::clone(&order));
                tokio::spawn(async move {
                    let due = start + Duration::from_millis(millis);
                    ticket.until(due).await;
                    order.lock().unwrap().push(millis);
                    assert!(Instant::now() >= due);
                })
            })
            .into();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 10, 20, 30]);
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_for_an_earlier_one_ends_early() {
        let alarm = Alarm::start().unwrap();
        let ticket = alarm.ticket();
        let late = Instant::now() + Duration::from_secs(3_600);
        assert!(tokio::time::timeout(Duration::from_millis(5), ticket.until(late)).await.is_err());
        let early = Instant::now() + Duration::from_millis(5);
        tokio::time::timeout(Duration::from_secs(5), ticket.until(early)).await.unwrap();
        drop(ticket);
        assert_eq!(alarm.ticket().slot, 0, "places are used again");
    }
}
