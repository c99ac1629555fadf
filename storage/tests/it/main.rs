//! What the store and the journal promise, seen from outside.

mod catalogue;
mod cids;
mod copies;
mod fetch;
mod hostile;
mod journal;
mod ranges;
mod stranger;
mod support;
