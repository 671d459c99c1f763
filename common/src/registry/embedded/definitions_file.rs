//! Tenants and groups in one small file: read whole at the start, replaced whole and synced at each change. A file that
//! can't be read stops the start; nothing is repaired by guessing.

use std::{
    collections::BTreeMap,
    fs::{File, rename},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::OpenError;
use crate::{
    name::TenantName,
    registry::{Definitions, Group, Tenant, TenantDefinition},
};

const NAME: &str = "definitions.json";
const NEW_NAME: &str = "definitions.json.new";
const VERSION: u32 = 1;

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    tenants: BTreeMap<String, StoredTenant>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredTenant {
    tenant: Tenant,
    groups: Vec<Group>,
}

/// The definitions in a directory; an empty directory has none.
pub(super) fn load(dir: &Path) -> Result<Definitions, OpenError> {
    let path = dir.join(NAME);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Definitions::default()),
        Err(error) => return Err(OpenError::Io { path, error }),
    };
    let corrupt = |path: PathBuf, reason: String| OpenError::Corrupt { path, reason };
    let stored: Stored =
        serde_json::from_slice(&bytes).map_err(|error| corrupt(path.clone(), error.to_string()))?;
    if stored.version != VERSION {
        return Err(corrupt(path, format!("version {} is not known", stored.version)));
    }
    let mut definitions = Definitions::default();
    for (name, stored) in stored.tenants {
        let name = TenantName::new(&name).map_err(|error| corrupt(path.clone(), error.to_string()))?;
        let groups = stored.groups.into_iter().map(|group| (group.name.clone(), Arc::new(group))).collect();
        let definition = TenantDefinition { name: name.clone(), tenant: stored.tenant, groups };
        definitions.tenants.insert(name, Arc::new(definition));
    }
    Ok(definitions)
}

/// Replaces the file: afterwards either the old or the new one is there, whole, whatever happens to the machine.
pub(super) fn save(dir: &Path, definitions: &Definitions) -> io::Result<()> {
    let tenants = definitions.tenants.iter().map(|(name, definition)| {
        let groups = definition.groups.values().map(|group| group.as_ref().clone()).collect();
        (name.to_string(), StoredTenant { tenant: definition.tenant.clone(), groups })
    });
    let stored = Stored { version: VERSION, tenants: tenants.collect() };
    let new = dir.join(NEW_NAME);
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec_pretty(&stored)?)?;
    file.sync_all()?;
    rename(&new, dir.join(NAME))?;
    File::open(dir)?.sync_all()
}
