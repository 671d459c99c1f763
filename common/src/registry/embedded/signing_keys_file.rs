//! The keys that sign tokens, in a file that only its owner can read: read whole at the start, replaced whole and synced.

use std::{
    fs::{File, OpenOptions, rename},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use super::OpenError;
use crate::registry::SigningKeys;

const NAME: &str = "signing-keys.json";
const NEW_NAME: &str = "signing-keys.json.new";

/// The keys in a directory; an empty directory has none.
pub(super) fn load(dir: &Path) -> Result<SigningKeys, OpenError> {
    let path = dir.join(NAME);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SigningKeys::default()),
        Err(error) => return Err(OpenError::Io { path, error }),
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        // The error would quote what is there: only its place is told.
        let reason = format!("line {}, column {}", error.line(), error.column());
        OpenError::Corrupt { path, reason }
    })
}

/// Replaces the file: afterwards either the old or the new one is there, whole.
pub(super) fn save(dir: &Path, keys: &SigningKeys) -> io::Result<()> {
    let new = dir.join(NEW_NAME);
    // What an earlier attempt left behind may be readable by others.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec_pretty(keys)?)?;
    file.sync_all()?;
    rename(&new, dir.join(NAME))?;
    File::open(dir)?.sync_all()
}
