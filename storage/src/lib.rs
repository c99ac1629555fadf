//! What lasts on an accel node: content by CID, the model catalogue, the session journal.
//!
//! # Data path
//! `add_file` streams a file into `models/<cid>` and derives the UnixFS tree that
//! `ipfs add --cid-version=1` would ([`dag`], [`store`]). `fetch` walks such a tree (anybody's, not
//! only ours), asks a [`BlockSource`] for the blocks that overlap the wanted byte ranges, verifies
//! each and writes it to its place in the sparse file. `get_block` cuts blocks out of the same files
//! again for other peers. Nothing is stored twice: a leaf is a range of a model file, and only the
//! tree's few inner nodes, which have no bytes of the file in them, live in the database.
//!
//! # On disk
//! | Path | What |
//! |---|---|
//! | `lock` | held by the one node that may run here, with its process id |
//! | `keys/` | identity and other small files, each written whole or not at all |
//! | `models/<cid>` | one sparse file per model |
//! | `tmp/` | files in the making, cleared on start |
//! | `db/` | sled: block index, presence, catalogue, journal, small records |
//!
//! A range counts as present only after its bytes are synced to disk; the index, the presence and
//! the catalogue then change in one atomic batch. A crash in between costs a repeated download,
//! never a wrong byte.
//!
//! # Modules
//! [`data_dir`] the directory, its lock and identity · [`store`] content and catalogue · [`dag`] the
//! UnixFS tree as pure functions · [`ranges`] sets of byte ranges, pure · [`journal`] sessions ·
//! [`error`] and [`types`] what crosses the border.

pub mod dag;
pub mod data_dir;
mod durable;
pub mod error;
pub mod journal;
mod positioned;
pub mod ranges;
mod records;
pub mod store;
pub mod types;

pub use data_dir::DataDir;
pub use error::{BlockSourceError, DagError, JournalError, Result, StorageError};
pub use journal::{
    Damage, Journal, JournalEntry, JournalStats, SessionKey, SessionSummary, Writer,
};
pub use records::{RecordKind, Records};
pub use store::{Store, canonical};
pub use types::{BlockSource, FetchProgress, FetchReport, ModelRecord, Want};
