//! Sessions, mail and pushes of the embedded store: each verb is given to the committer.

use async_trait::async_trait;
use bytes::Bytes;

use super::{EmbeddedStore, machine::Machine};
use crate::{
    clock::UnixMillis,
    epoch::Epoch,
    name::{PartitionKey, TenantName},
    position::Term,
    store::{
        Appended, Begun, FilterChanges, FilterTable, MailLimits, MailStep, NewMail, NewPush, OpenedSession,
        PushKey, PushStep, PushStore, Queued, SessionError, SessionFilter, SessionFilters, SessionState,
        SessionStore, SteppedMail, StoreError,
    },
};

#[async_trait]
impl SessionStore for EmbeddedStore {
    async fn open_session(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        epoch: Epoch,
        expiry_ms: u64,
    ) -> Result<OpenedSession, SessionError> {
        let (key, client) = (partition.clone(), Bytes::copy_from_slice(client));
        self.submit(0, move |machine| machine.open_session(key, term, client, epoch, expiry_ms)).await?
    }

    async fn wipe_session(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
    ) -> Result<Option<u64>, SessionError> {
        let (key, client) = (partition.clone(), Bytes::copy_from_slice(client));
        self.submit(0, move |machine| machine.wipe_session(key, term, client)).await?
    }

    async fn set_filters(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        epoch: Epoch,
        filters: &[SessionFilter],
    ) -> Result<SessionFilters, SessionError> {
        let (key, client, filters) = (partition.clone(), Bytes::copy_from_slice(client), filters.to_vec());
        self.submit(0, move |machine| machine.set_filters(key, term, client, epoch, filters)).await?
    }

    async fn append_mail(
        &self,
        partition: &PartitionKey,
        client: &[u8],
        incarnation: u64,
        source: u32,
        mail: &[NewMail],
        limits: MailLimits,
    ) -> Result<Appended, StoreError> {
        let (key, client, mail) = (partition.clone(), Bytes::copy_from_slice(client), mail.to_vec());
        let bytes = mail.iter().map(|one| one.record.len()).sum();
        let append =
            move |machine: &mut Machine| machine.append_mail(key, client, incarnation, source, &mail, limits);
        Ok(self.submit(bytes, append).await?)
    }

    async fn step_mail(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        epoch: Epoch,
        step: &MailStep,
    ) -> Result<SteppedMail, SessionError> {
        let (key, client, step) = (partition.clone(), Bytes::copy_from_slice(client), step.clone());
        self.submit(0, move |machine| machine.step_mail(key, term, client, epoch, &step)).await?
    }

    async fn session_state(
        &self,
        partition: &PartitionKey,
        client: &[u8],
    ) -> Result<Option<SessionState>, StoreError> {
        let (key, client) = (partition.clone(), Bytes::copy_from_slice(client));
        Ok(self.submit(0, move |machine| machine.session_state(key, client)).await?)
    }

    async fn publish_filters(
        &self,
        tenant: &TenantName,
        client: &[u8],
        filters: &SessionFilters,
    ) -> Result<u64, StoreError> {
        let (tenant, client, filters) = (tenant.clone(), Bytes::copy_from_slice(client), filters.clone());
        Ok(self.submit(0, move |machine| machine.publish_filters(tenant, client, filters)).await?)
    }

    async fn withdraw_filters(
        &self,
        tenant: &TenantName,
        client: &[u8],
        incarnation: u64,
    ) -> Result<u64, StoreError> {
        let (tenant, client) = (tenant.clone(), Bytes::copy_from_slice(client));
        Ok(self.submit(0, move |machine| machine.withdraw_filters(tenant, client, incarnation)).await?)
    }

    async fn filter_table(&self, tenant: &TenantName) -> Result<FilterTable, StoreError> {
        let tenant = tenant.clone();
        Ok(self.submit(0, move |machine| machine.filter_table(&tenant)).await?)
    }

    async fn filter_changes(&self, tenant: &TenantName, after: u64) -> Result<FilterChanges, StoreError> {
        let tenant = tenant.clone();
        Ok(self.submit(0, move |machine| machine.filter_changes(&tenant, after)).await?)
    }
}

#[async_trait]
impl PushStore for EmbeddedStore {
    async fn queue_push(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        push: &NewPush,
    ) -> Result<Queued, SessionError> {
        let (key, client, push) = (partition.clone(), Bytes::copy_from_slice(client), push.clone());
        self.submit(push.record.len(), move |machine| machine.queue_push(key, term, client, &push)).await?
    }

    async fn waits(&self, partition: &PartitionKey, client: &[u8], number: u64) -> Result<bool, StoreError> {
        let (key, client) = (partition.clone(), Bytes::copy_from_slice(client));
        Ok(self.submit(0, move |machine| machine.waits(key, client, number)).await?)
    }

    async fn step_pushes(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        step: &PushStep,
    ) -> Result<SteppedMail, SessionError> {
        let (key, client, step) = (partition.clone(), Bytes::copy_from_slice(client), step.clone());
        self.submit(0, move |machine| machine.step_pushes(key, term, client, &step)).await?
    }

    async fn waiting_clients(
        &self,
        partition: &PartitionKey,
    ) -> Result<Vec<(Bytes, UnixMillis)>, StoreError> {
        let key = partition.clone();
        Ok(self.submit(0, move |machine| machine.waiting_clients(&key)).await?)
    }

    async fn expire_pushes(
        &self,
        partition: &PartitionKey,
        term: Term,
    ) -> Result<(u64, Vec<Bytes>), SessionError> {
        let key = partition.clone();
        self.submit(0, move |machine| machine.expire_pushes(&key, term)).await?
    }

    async fn begin_push(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        key: &PushKey,
    ) -> Result<Begun, SessionError> {
        let (place, client, key) = (partition.clone(), Bytes::copy_from_slice(client), key.clone());
        self.submit(0, move |machine| machine.begin_push(place, term, &client, &key)).await?
    }

    async fn end_push(
        &self,
        partition: &PartitionKey,
        term: Term,
        client: &[u8],
        key: &PushKey,
        outcome: Option<&str>,
    ) -> Result<(), SessionError> {
        let (place, client, key) = (partition.clone(), Bytes::copy_from_slice(client), key.clone());
        let outcome = outcome.map(str::to_owned);
        self.submit(0, move |machine| machine.end_push(place, term, &client, &key, outcome)).await?
    }
}
