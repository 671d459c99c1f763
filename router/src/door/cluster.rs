//! What operators see of the cluster: members, links of the router that answers, store and registry.

use std::collections::BTreeMap;

use penstock_common::registry::{Member, MemberKind, Members};
use penstock_proto::admin::{self, ClusterResponse};

use super::Inside;

/// The cluster as this router sees it.
pub fn show(inside: &Inside) -> ClusterResponse {
    let (alive, registered) = (inside.homes.members(), inside.homes.registered());
    ClusterResponse {
        members: members(&alive, &registered),
        links: inside.homes.links(),
        store: inside.store.describe(),
        registry: inside.registry.describe(),
    }
}

fn members(alive: &Members, registered: &Members) -> Vec<admin::Member> {
    let both = |pick: fn(&Members) -> &BTreeMap<u64, Member>| {
        let mut all = pick(alive).clone();
        all.extend(pick(registered).clone());
        all
    };
    let routers = both(|members| &members.routers);
    let gateways = both(|members| &members.gateways);
    let known = |member: &Member| {
        registered.routers.contains_key(&member.incarnation)
            || registered.gateways.contains_key(&member.incarnation)
    };
    routers.values().chain(gateways.values()).map(|member| to_proto(member, known(member))).collect()
}

fn to_proto(member: &Member, registered: bool) -> admin::Member {
    let (kind, address) = match &member.kind {
        MemberKind::Gateway { .. } => ("gateway", String::new()),
        MemberKind::Router { link, .. } => ("router", link.clone()),
    };
    admin::Member {
        incarnation: member.incarnation,
        node_id: member.node_id.clone(),
        kind: kind.to_owned(),
        address,
        registered,
    }
}
