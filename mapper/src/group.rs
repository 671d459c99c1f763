//! The group that is consumed: made when it is not there, checked when it is.

use penstock_client::{CallError, Client, GroupSpec, Start};

use crate::routes::Route;

/// The group can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// It would not get what the routes are for.
    #[error(
        "group {group:?} is there with the filters {has:?}, which leave out {missing:?}: name another with --group, or delete it"
    )]
    Narrow {
        /// Its name.
        group: String,
        /// Its filters.
        has: Vec<String>,
        /// Filters of routes.
        missing: Vec<String>,
    },
    /// The door says no, or nothing.
    #[error("group {group:?}: {error}")]
    Call {
        /// Its name.
        group: String,
        /// Why.
        error: CallError,
    },
}

/// Filters of all routes, each once.
pub fn filters(routes: &[Route]) -> Vec<String> {
    let mut filters: Vec<_> = routes.iter().flat_map(|route| route.filters.iter().cloned()).collect();
    filters.sort();
    filters.dedup();
    let all = filters.clone();
    filters.retain(|filter| !all.iter().any(|other| other != filter && covers(other, filter)));
    filters
}

/// Makes the group, or makes sure that it has what the routes are for.
pub async fn provide(client: &Client, name: &str, start: Start, routes: &[Route]) -> Result<(), GroupError> {
    let wrong = |error| GroupError::Call { group: name.to_owned(), error };
    let needed = filters(routes);
    let has = match client.group(name).await {
        Ok(status) => status.group.filters,
        Err(CallError::NotFound(_)) => {
            let spec = GroupSpec::new(name).filters(needed.clone()).start(start);
            match client.create_group(&spec).await {
                Ok(group) => {
                    tracing::info!(group = name, filters = ?group.filters, %start, "group created");
                    return Ok(());
                }
                // Another mapper was faster.
                Err(CallError::Exists(_)) => client.group(name).await.map_err(wrong)?.group.filters,
                Err(error) => return Err(wrong(error)),
            }
        }
        Err(error) => return Err(wrong(error)),
    };
    let taken = |filter: &String| has.is_empty() || has.iter().any(|own| covers(own, filter));
    let missing: Vec<_> = needed.into_iter().filter(|filter| !taken(filter)).collect();
    if missing.is_empty() { Ok(()) } else { Err(GroupError::Narrow { group: name.to_owned(), has, missing }) }
}

/// Whether every topic that the second filter matches is matched by the first.
fn covers(wide: &str, narrow: &str) -> bool {
    let mut narrow = narrow.split('/');
    for level in wide.split('/') {
        match (level, narrow.next()) {
            ("#", _) => return true,
            ("+", Some(level)) if level != "#" => {}
            (level, Some(other)) if level == other => {}
            _ => return false,
        }
    }
    narrow.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_filter_covers_another_as_their_topics_do() {
        for (wide, narrow) in
            [("#", "a/b"), ("a/#", "a"), ("a/#", "a/b/#"), ("+/b", "a/b"), ("+/b", "+/b"), ("a/+", "a/+")]
        {
            assert!(covers(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in [
            ("a/b", "#"),
            ("a/+", "a/#"),
            ("a/+", "a"),
            ("+", "#"),
            ("a/b", "a/+"),
            ("a", "a/b"),
            ("a/+/c", "a/b"),
        ] {
            assert!(!covers(wide, narrow), "{wide} {narrow}");
        }
    }
}
