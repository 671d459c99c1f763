//! From CONNECT to CONNACK: is the tenant known, are the credentials good, is there a seat, who owned the client before,
//! does the home know the new owner. Steps that need others are answered later by `verdict`, `claimed`, `attached` and
//! `kicked`; each has a deadline, after which the client is told to come again (CONNACK 3).

use std::net::IpAddr;

use bytes::Bytes;
use penstock_common::{
    epoch::Epoch,
    name::{ClientKey, SYSTEM_TENANT, TenantName},
};
use penstock_mqtt::{
    packet::{Connect, ConnectCode},
    session::{Admission as Answer, Millis},
};
use penstock_proto::link::{AuthResult, Authenticate, Verdict, control_up};

use crate::{
    connection::table::{ConnectionKey, Identity},
    credentials::VerdictKey,
    shard::Shard,
    uplink::wills::{ENDINGS, will_bytes},
};

/// No user has a longer name or password, bytes. Routers need not be asked, and what all admissions together ask of a link
/// stays below what may wait for it.
const USER_MAX: usize = 128;
const PASSWORD_MAX: usize = 1_024;

/// A connection between CONNECT and CONNACK.
pub(crate) struct Admission {
    tenant: TenantName,
    user: Bytes,
    password: Bytes,
    client: Bytes,
    clean: bool,
    address: IpAddr,
    pub(crate) step: Step,
    deadline: Millis,
}

/// What the CONNACK waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// A router's verdict on the credentials.
    Verify { key: VerdictKey },
    /// The registry's, or the home's, answer to the claim.
    Claim,
    /// The home's confirmation, and the end of the older connection (until a time).
    Attach { attached: bool, kick: Option<Millis> },
    /// The home opens the session that is to outlive the connection.
    Open,
}

impl Admission {
    /// When `tick_admission` has to look at it.
    pub(crate) fn deadline(&self) -> Millis {
        match self.step {
            Step::Attach { attached: true, kick: Some(until) } => until.min(self.deadline),
            _ => self.deadline,
        }
    }
}

impl Shard {
    /// Judges a CONNECT.
    pub(crate) fn connect(&mut self, key: ConnectionKey, connect: Connect) {
        if self.drain.is_some() || self.admissions >= self.shared.config.limits.admissions {
            return self.refuse(key, ConnectCode::Unavailable, "busy");
        }
        let Some((tenant, user)) = self.split(&connect.username) else {
            return self.refuse(key, ConnectCode::NotAuthorized, "unknown_tenant");
        };
        let password = connect.password.unwrap_or_default();
        if user.len() > USER_MAX || password.len() > PASSWORD_MAX {
            return self.refuse(key, ConnectCode::NotAuthorized, "denied");
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        let unknown = IpAddr::from([0, 0, 0, 0]);
        let address = connection.transport.client_address().map_or(unknown, |address| address.ip());
        connection.admission = Some(Box::new(Admission {
            tenant,
            user,
            password,
            client: connect.client,
            clean: connect.clean_session,
            address,
            step: Step::Claim,
            deadline: self.now + self.shared.config.timeouts.admission_ms,
        }));
        self.admissions += 1;
        self.verify(key);
    }

    /// Tenant and user of a user name, if the tenant has devices.
    fn split(&self, username: &Bytes) -> Option<(TenantName, Bytes)> {
        let at = username.iter().position(|byte| *byte == b'/')?;
        let tenant = TenantName::new(std::str::from_utf8(username.get(..at)?).ok()?).ok()?;
        let user = username.slice(at + 1..);
        let known = self.definitions.tenants.contains_key(&tenant) && tenant.as_str() != SYSTEM_TENANT;
        (known && !user.is_empty()).then_some((tenant, user))
    }

    fn verify(&mut self, key: ConnectionKey) {
        let now = self.now;
        let Some(admission) = self.connections.get_mut(key).and_then(|it| it.admission.as_mut()) else {
            return;
        };
        let version = self.definitions.tenants.get(&admission.tenant).map(|it| it.tenant.users_version);
        let made = self.verdicts.key(admission.tenant.as_str(), &admission.user, &admission.password);
        let (Some(version), Some(verdict)) = (version, made) else {
            return self.refuse(key, ConnectCode::NotAuthorized, "unknown_tenant");
        };
        if self.verdicts.allowed(&verdict, version, now) {
            return self.verified(key);
        }
        admission.step = Step::Verify { key: verdict };
        // One question for all connections that come with these credentials meanwhile.
        let new = self.claims.questions.add(verdict, key);
        if new {
            self.ask_verdict(&verdict);
        }
    }

    /// Asks a router for a verdict, unless one is asked already.
    fn ask_verdict(&mut self, verdict: &VerdictKey) {
        let Some(question) = self.claims.questions.get(verdict).filter(|it| it.link.is_none()) else {
            return;
        };
        let asking = question.connections.first().and_then(|key| self.connections.get(*key));
        let Some(admission) = asking.and_then(|it| it.admission.as_deref()) else { return };
        let Some(partition) = self.partition(&admission.tenant, &admission.client) else { return };
        let Some(place) = self.links.home(&partition) else { return };
        let Some(link) = self.links.get(place) else { return };
        link.control(control_up::Kind::Authenticate(Authenticate {
            id: question.id,
            tenant: admission.tenant.as_str().to_owned(),
            user: String::from_utf8_lossy(&admission.user).into_owned(),
            password: admission.password.clone(),
            address: admission.address.to_string(),
        }));
        self.claims.questions.asked(verdict, place);
    }

    /// Routers have come or gone: verdicts that were asked of one that is gone are asked again.
    pub(crate) fn ask_verdicts(&mut self) {
        for verdict in self.claims.questions.without_router(|link| self.links.get(link).is_some()) {
            self.ask_verdict(&verdict);
        }
    }

    /// A router has judged credentials.
    pub(crate) fn verdict(&mut self, verdict: &Verdict) {
        let Some((known, keys)) = self.claims.questions.answer(verdict.id) else { return };
        let role = verdict.role == "device";
        if verdict.result() == AuthResult::Allowed && role {
            let until = self.now + self.shared.config.timeouts.verdict_ms;
            self.verdicts.remember(known, verdict.users_version, until);
        }
        for key in keys {
            match verdict.result() {
                AuthResult::Allowed if role => self.verified(key),
                AuthResult::Allowed => self.refuse(key, ConnectCode::NotAuthorized, "role"),
                AuthResult::Denied => self.refuse(key, ConnectCode::NotAuthorized, "denied"),
                AuthResult::Busy => self.refuse(key, ConnectCode::Unavailable, "verify_busy"),
                AuthResult::Unavailable | AuthResult::Unspecified => {
                    self.refuse(key, ConnectCode::Unavailable, "verify_unavailable");
                }
            }
        }
    }

    /// The credentials are good: takes a seat and claims the client.
    fn verified(&mut self, key: ConnectionKey) {
        let Some(admission) = self.connections.get(key).and_then(|it| it.admission.as_deref()) else {
            return;
        };
        let (tenant, client) = (admission.tenant.clone(), admission.client.clone());
        let Some(definition) = self.definitions.tenants.get(&tenant).map(|it| it.tenant.clone()) else {
            return self.refuse(key, ConnectCode::NotAuthorized, "unknown_tenant");
        };
        let Some(partition) = self.partition(&tenant, &client) else { return };
        let lane = self.lanes.of(&partition);
        if let Some(result) = self.objects_to_will(key, lane, definition.limits.packet_bytes) {
            return self.refuse(key, ConnectCode::Unavailable, result);
        }
        let Some(seat) = self.shared.seats.take(&tenant, definition.limits.connections) else {
            return self.refuse(key, ConnectCode::Unavailable, "quota");
        };
        let identity = Identity {
            tenant: tenant.clone(),
            client: client.clone(),
            user: admission.user.clone(),
            lane,
            epoch: Epoch::NONE,
            attached: Epoch::NONE,
            will: Epoch::NONE,
            told: 0,
            packet_bytes: definition.limits.packet_bytes,
            clean: admission.clean,
            since: 0,
            _seat: seat,
        };
        self.connections.identify(key, identity);
        let deadline = self.now + self.shared.config.timeouts.admission_ms;
        if let Some(admission) = self.connections.get_mut(key).and_then(|it| it.admission.as_mut()) {
            admission.step = Step::Claim;
            admission.password = Bytes::new();
            admission.deadline = deadline;
        }
        self.claim(key, ClientKey { tenant, client });
    }

    /// Why a connection can't have the will that it came with, if it can't.
    fn objects_to_will(&self, key: ConnectionKey, lane: usize, packet_bytes: u32) -> Option<&'static str> {
        let bytes = self.connections.get(key).map_or(0, will_bytes);
        let full = || self.lanes.get(lane).is_some_and(|lane| lane.endings.len() >= ENDINGS);
        match bytes {
            0 => None,
            bytes if bytes > packet_bytes as usize => Some("will_too_large"),
            _ => full().then_some("will_busy"),
        }
    }

    /// The client is this connection's: waits for the home, and for the older connection if one has to be kicked.
    pub(crate) fn owned(&mut self, key: ConnectionKey, epoch: Epoch, kicking: bool) {
        let kick = kicking.then(|| self.now + self.shared.config.timeouts.kick_ms);
        let deadline = self.now + self.shared.config.timeouts.admission_ms;
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Some(admission) = connection.admission.as_mut() {
            admission.step = Step::Attach { attached: false, kick };
            admission.deadline = deadline;
        }
        let Some(identity) = connection.identity.as_mut() else { return };
        (identity.epoch, identity.attached) = (epoch, epoch);
        let lane = identity.lane;
        self.attach(key, lane);
        self.schedule(key);
    }

    /// The home knows the ownership.
    pub(crate) fn attached(&mut self, key: ConnectionKey) {
        if let Some(Step::Attach { attached, .. }) = self.step(key) {
            *attached = true;
            self.try_accept(key);
        }
    }

    /// The older connection is gone.
    pub(crate) fn kicked_for(&mut self, key: ConnectionKey) {
        if let Some(Step::Attach { kick, .. }) = self.step(key) {
            *kick = None;
            self.try_accept(key);
        }
    }

    fn step(&mut self, key: ConnectionKey) -> Option<&mut Step> {
        let connection = self.connections.get_mut(key)?;
        connection.admission.as_mut().map(|admission| &mut admission.step)
    }

    fn try_accept(&mut self, key: ConnectionKey) {
        let now = self.now;
        let Some(Step::Attach { attached: true, kick }) = self.step(key).copied() else { return };
        if kick.is_some_and(|until| now < until) {
            return self.schedule(key);
        }
        if self.connections.identity(key).is_some_and(|identity| !identity.clean) {
            if let Some(step) = self.step(key) {
                *step = Step::Open;
            }
            let deadline = now + self.shared.config.timeouts.admission_ms;
            self.extend_admission(key, deadline);
            self.schedule(key);
            return self.open_session(key);
        }
        self.accept_session(key, false);
    }

    /// CONNACK 0.
    pub(crate) fn accept_session(&mut self, key: ConnectionKey, session_present: bool) {
        let (now, wall) = (self.now, self.wall);
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.admission = None;
        connection.admitted = true;
        if let Some(identity) = connection.identity.as_deref_mut() {
            identity.since = wall;
        }
        let kind = connection.transport.kind();
        if let Some(identity) = &connection.identity {
            connection.session.limit_packets(identity.packet_bytes);
        }
        connection.session.admit(Answer::Accepted { session_present }, now);
        self.admissions -= 1;
        self.shared.metrics.connections.of(kind).inc();
        self.shared.metrics.connect("accepted");
        self.touch(key);
    }

    /// Gives an admission more time: it has begun another remote step.
    pub(crate) fn extend_admission(&mut self, key: ConnectionKey, deadline: Millis) {
        if let Some(admission) = self.connections.get_mut(key).and_then(|it| it.admission.as_mut()) {
            admission.deadline = deadline;
        }
    }

    /// Answers a CONNECT with no.
    pub(crate) fn refuse(&mut self, key: ConnectionKey, code: ConnectCode, result: &'static str) {
        let now = self.now;
        self.shared.metrics.connect(result);
        let Some(connection) = self.connections.get_mut(key) else { return };
        let admission = connection.admission.take();
        connection.session.admit(Answer::Refused(code), now);
        if let Some(admission) = admission {
            self.admissions -= 1;
            let (client, address) = (String::from_utf8_lossy(&admission.client), admission.address);
            // Overload would fill the log with what the metric counts.
            match code {
                ConnectCode::Unavailable => {
                    tracing::debug!(tenant = %admission.tenant, %client, %address, result, "a CONNECT is refused");
                }
                _ if self.voice.speaks(now) => {
                    tracing::info!(tenant = %admission.tenant, %client, %address, result, "a CONNECT is refused")
                }
                _ => {}
            }
            self.forget_question(key, &admission);
        }
        self.touch(key);
    }

    /// The connection does not wait for a verdict any more; others with the same credentials may.
    pub(crate) fn forget_question(&mut self, key: ConnectionKey, admission: &Admission) {
        let Step::Verify { key: verdict } = admission.step else { return };
        let asker_left = self.claims.questions.leave(&verdict, key);
        if asker_left {
            self.ask_verdict(&verdict);
        }
    }

    /// Gives up an admission that takes too long.
    pub(crate) fn tick_admission(&mut self, key: ConnectionKey) {
        let now = self.now;
        let Some(admission) = self.connections.get(key).and_then(|it| it.admission.as_deref()) else {
            return;
        };
        if now >= admission.deadline {
            let result = match admission.step {
                Step::Verify { .. } => "verify_timeout",
                Step::Claim => "claim_timeout",
                Step::Attach { .. } => "attach_timeout",
                Step::Open => "session_timeout",
            };
            self.refuse(key, ConnectCode::Unavailable, result);
        } else {
            self.try_accept(key);
        }
    }
}
