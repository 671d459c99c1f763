//! The place of messages that can't be mapped or were refused: one JSON object a line, synced before it counts as kept. Holds
//! at most its bound of bytes; beyond that nothing is taken, and the messages come again until someone moves the file away.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use penstock_client::Message;
use penstock_common::clock::Seams;
use serde_json::{Value, json};

use crate::{
    input::{properties, received_at, rfc3339_of_millis},
    outgoing::Outgoing,
};

/// Its name in the directory.
pub const FILE: &str = "dead-letters.jsonl";

/// It could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The bound is reached.
    #[error("{path} is full ({bound} bytes): move it away", path = .path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// Its bound.
        bound: u64,
    },
    /// The disk.
    #[error("cannot write {path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process ends.
    #[error("the process ends")]
    Ending,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct DeadLetters {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    bound: u64,
    seams: Seams,
    /// One writer at a time.
    turn: Mutex<()>,
}

impl DeadLetters {
    /// Makes the directory, and the file, to know now that they can be written.
    pub fn open(directory: &Path, bound: u64, seams: Seams) -> Result<Self, KeepError> {
        let path = directory.join(FILE);
        let inner = Inner { path, bound, seams, turn: Mutex::new(()) };
        let made = fs::create_dir_all(directory).and_then(|()| inner.file().map(drop));
        made.map_err(|source| inner.failed(source))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Keeps a message; it is on the disk when this returns.
    pub async fn keep(
        &self,
        message: &Message,
        reason: &str,
        request: Option<&Outgoing>,
    ) -> Result<(), KeepError> {
        let line = line(message, reason, request, self.inner.seams.now_ms());
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || inner.append(&line)).await.unwrap_or(Err(KeepError::Ending))
    }
}

impl Inner {
    /// Opened for each line, so that it may be moved away at any time.
    fn file(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)
    }

    fn failed(&self, source: io::Error) -> KeepError {
        KeepError::Io { path: self.path.clone(), source }
    }

    fn append(&self, line: &str) -> Result<(), KeepError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let written = || -> io::Result<bool> {
            let mut file = self.file()?;
            let before = file.metadata()?.len();
            if before.saturating_add(line.len() as u64) > self.bound {
                return Ok(false);
            }
            if let Err(error) = file.write_all(line.as_bytes()).and_then(|()| file.sync_all()) {
                // Half a line must not spoil the next one.
                let _ = file.set_len(before);
                return Err(error);
            }
            Ok(true)
        };
        match written() {
            Ok(true) => Ok(()),
            Ok(false) => Err(KeepError::Full { path: self.path.clone(), bound: self.bound }),
            Err(source) => Err(self.failed(source)),
        }
    }
}

fn line(message: &Message, reason: &str, request: Option<&Outgoing>, now_ms: u64) -> String {
    let (key, payload) = match std::str::from_utf8(&message.payload) {
        Ok(text) => ("payload", text.to_owned()),
        Err(_) => ("payload_base64", STANDARD.encode(&message.payload)),
    };
    let request = request.map(|request| {
        let target = &request.target;
        json!({"route": request.route, "method": target.method.as_str(), "path": target.path, "body": request.body})
    });
    let line: Value = json!({
        "at": rfc3339_of_millis(now_ms),
        "reason": reason,
        "request": request,
        "message": {
            "topic": message.topic,
            "client_id": message.client_id,
            "user": message.user,
            "qos": message.qos,
            "received_at": received_at(message),
            "last_will": message.last_will,
            "position": message.position.to_string(),
            "delivery_count": message.delivery_count,
            "properties": message.properties.as_ref().map(properties),
            key: payload,
        },
    });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sample::plain;

    fn lines(directory: &Path) -> Vec<Value> {
        let text = fs::read_to_string(directory.join(FILE)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn letters_are_whole_lines_and_the_bound_holds_until_the_file_is_moved() {
        let directory = tempfile::tempdir().unwrap();
        let letters = DeadLetters::open(directory.path(), 1_000, Seams::real()).unwrap();
        letters.keep(&plain("t", "c", b"text\n"), "why", None).await.unwrap();
        letters.keep(&plain("t", "c", &[0xff, 0]), "why", None).await.unwrap();
        let kept = lines(directory.path());
        assert_eq!((&kept[0]["message"]["payload"], &kept[0]["reason"]), (&json!("text\n"), &json!("why")));
        assert_eq!(kept[1]["message"]["payload_base64"], json!("/wA="));
        let refused = letters.keep(&plain("t", "c", &[b'x'; 1_000]), "why", None).await;
        assert!(matches!(refused, Err(KeepError::Full { .. })), "{refused:?}");
        assert_eq!(lines(directory.path()).len(), 2);
        fs::rename(directory.path().join(FILE), directory.path().join("moved")).unwrap();
        letters.keep(&plain("t", "c", b"again"), "why", None).await.unwrap();
        assert_eq!(lines(directory.path()).len(), 1);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_told_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(DeadLetters::open(&file, 1, Seams::real()), Err(KeepError::Io { .. })));
    }
}
