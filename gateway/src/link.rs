//! Links: one of this shard to each router. `dial` keeps them up and reads them, `receive` hands what comes to the verb it
//! is for, `table` holds those that are up with what waits to be written.

pub(crate) mod dial;
pub(crate) mod receive;
pub(crate) mod table;
