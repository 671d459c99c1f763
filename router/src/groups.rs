//! Groups: durable readers of a tenant's logs. [`dispatch`] decides which consumer gets which record (pure), [`cursor`]
//! keeps what is done of an entry, [`serve`] serves groups from the homes of this router, [`home`] says
//! what it asks of a home, [`survey`] shows in [`metrics`] how far they are behind. Joining the partitions of a tenant for one consumer is the job of [`crate::consume`].

pub mod book;
pub mod chunks;
pub mod clients;
pub mod cursor;
pub mod dispatch;
pub mod held;
pub mod home;
pub mod lag;
pub mod metrics;
pub mod orders;
mod run;
pub mod serve;
pub mod served;
pub mod survey;
