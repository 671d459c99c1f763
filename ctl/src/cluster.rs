//! `penstockctl cluster`: who is there, and the links of the router that answers.

use penstock_client::{Admin, LinkStatus, Member};
use serde_json::json;

use crate::{failure::Failure, output::Output};

fn member_row(member: &Member) -> Vec<String> {
    let state = if member.registered { "registered" } else { "linked only" };
    vec![
        member.kind.clone(),
        member.node_id.clone(),
        member.address.clone(),
        state.into(),
        format!("{:x}", member.incarnation),
    ]
}

fn link_row(link: &LinkStatus) -> Vec<String> {
    vec![format!("{:x}", link.gateway), link.shard.to_string(), format!("{}ms", link.silent_ms)]
}

/// Runs it.
pub async fn run(admin: &Admin, output: Output) -> Result<(), Failure> {
    let cluster = admin.cluster().await?;
    if output.json() {
        let members = cluster.members.iter().map(|member| {
            json!({ "kind": member.kind, "node_id": member.node_id, "address": member.address,
                    "incarnation": format!("{:x}", member.incarnation), "registered": member.registered })
        });
        let links = cluster
            .links
            .iter()
            .map(|link| json!({ "gateway": format!("{:x}", link.gateway), "shard": link.shard, "silent_ms": link.silent_ms }));
        let (members, links): (Vec<_>, Vec<_>) = (members.collect(), links.collect());
        let object = json!({ "store": cluster.store, "registry": cluster.registry, "members": members,
                             "links": links });
        return output.one(&object, String::new);
    }
    output.one(&(), || format!("store: {}\nregistry: {}\n", cluster.store, cluster.registry))?;
    let rows: Vec<_> = cluster.members.iter().map(member_row).collect();
    output.many(&rows, &["KIND", "NODE", "ADDRESS", "STATE", "INCARNATION"], Clone::clone)?;
    output.one(&(), || "\nlinks of the router that answers:".into())?;
    let rows: Vec<_> = cluster.links.iter().map(link_row).collect();
    output.many(&rows, &["GATEWAY", "SHARD", "SILENT"], Clone::clone)
}
