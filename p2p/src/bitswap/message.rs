//! The bitswap 1.2.0 message and its protobuf form.
//!
//! Decoding borrows: block data is a slice of the frame it came in. Limits hold before anything is
//! collected, and a message that breaks one is refused as a whole.

use bytes::Bytes;
use cid::Cid;
use quick_protobuf::BytesReader;

use super::limits;

/// What one side tells the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Message {
    /// What the sender wants, or no longer wants.
    pub(crate) wants: Vec<Entry>,
    /// Whether `wants` replaces all that was wanted before.
    pub(crate) full: bool,
    /// Blocks, each with the prefix from which its CID is computed.
    pub(crate) blocks: Vec<Block>,
    /// What the sender has or has not.
    pub(crate) presences: Vec<(Cid, Presence)>,
}

/// One line of a wantlist.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) cid: Cid,
    pub(crate) priority: i32,
    pub(crate) cancel: bool,
    pub(crate) want: Want,
    /// Whether the sender wishes to hear that a block is not there.
    pub(crate) send_dont_have: bool,
}

/// What is wanted of a CID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// The block itself.
    Block,
    /// Only whether it is there.
    Have,
}

/// Whether a block is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Have,
    DontHave,
}

/// A block as it travels: its CID is never sent, the receiver computes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Block {
    /// CID version, codec, hash function and hash length, as varints.
    pub(crate) prefix: Bytes,
    pub(crate) data: Bytes,
}

/// Why bytes are not a bitswap message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("not a protobuf message: {0}")]
    Protobuf(String),
    #[error("a bitswap message holds more than {0} entries")]
    TooManyEntries(usize),
    #[error("a block is larger than {} bytes", limits::BLOCK)]
    BlockTooLarge,
    #[error("not a CID: {0}")]
    Cid(String),
}

impl From<quick_protobuf::Error> for MessageError {
    fn from(error: quick_protobuf::Error) -> Self {
        Self::Protobuf(error.to_string())
    }
}

impl From<cid::Error> for MessageError {
    fn from(error: cid::Error) -> Self {
        Self::Cid(error.to_string())
    }
}

impl Entry {
    /// Asks for a block, or for its presence.
    pub(crate) fn want(cid: Cid, want: Want) -> Self {
        Self {
            cid,
            priority: 1,
            cancel: false,
            want,
            send_dont_have: true,
        }
    }

    /// Takes a want back.
    pub(crate) fn cancel(cid: Cid) -> Self {
        Self {
            cancel: true,
            send_dont_have: false,
            ..Self::want(cid, Want::Block)
        }
    }
}

// Field numbers and wire types of the schema, as protobuf keys: number << 3 | type.
const WANTLIST: u32 = 1 << 3 | 2;
const BLOCKS_V0: u32 = 2 << 3 | 2;
const PAYLOAD: u32 = 3 << 3 | 2;
const PRESENCES: u32 = 4 << 3 | 2;
const WANTLIST_ENTRIES: u32 = 1 << 3 | 2;
const WANTLIST_FULL: u32 = 2 << 3;
const ENTRY_CID: u32 = 1 << 3 | 2;
const ENTRY_PRIORITY: u32 = 2 << 3;
const ENTRY_CANCEL: u32 = 3 << 3;
const ENTRY_WANT_TYPE: u32 = 4 << 3;
const ENTRY_SEND_DONT_HAVE: u32 = 5 << 3;
const BLOCK_PREFIX: u32 = 1 << 3 | 2;
const BLOCK_DATA: u32 = 2 << 3 | 2;
const PRESENCE_CID: u32 = 1 << 3 | 2;
const PRESENCE_TYPE: u32 = 2 << 3;

/// Prefix of blocks that travel without one: CIDv0 is always dag-pb and sha2-256 of 32 bytes.
const PREFIX_V0: &[u8] = &[0, 0x70, 0x12, 32];

impl Message {
    /// Reads one message out of its frame.
    pub(crate) fn decode(frame: &Bytes) -> Result<Self, MessageError> {
        let mut message = Self::default();
        let mut reader = BytesReader::from_bytes(frame);
        while !reader.is_eof() {
            match reader.next_tag(frame)? {
                WANTLIST => message.read_wantlist(reader.read_bytes(frame)?)?,
                BLOCKS_V0 => {
                    let data = frame.slice_ref(reader.read_bytes(frame)?);
                    message.push_block(Bytes::from_static(PREFIX_V0), data)?;
                }
                PAYLOAD => message.read_block(frame, reader.read_bytes(frame)?)?,
                PRESENCES => message.read_presence(reader.read_bytes(frame)?)?,
                other => reader.read_unknown(frame, other)?,
            }
        }
        Ok(message)
    }

    fn read_wantlist(&mut self, bytes: &[u8]) -> Result<(), MessageError> {
        let mut reader = BytesReader::from_bytes(bytes);
        while !reader.is_eof() {
            match reader.next_tag(bytes)? {
                WANTLIST_ENTRIES => {
                    room_for_one_more(self.wants.len())?;
                    self.wants.push(read_entry(reader.read_bytes(bytes)?)?);
                }
                WANTLIST_FULL => self.full = reader.read_bool(bytes)?,
                other => reader.read_unknown(bytes, other)?,
            }
        }
        Ok(())
    }

    fn read_block(&mut self, frame: &Bytes, bytes: &[u8]) -> Result<(), MessageError> {
        let mut prefix = Bytes::new();
        let mut data = Bytes::new();
        let mut reader = BytesReader::from_bytes(bytes);
        while !reader.is_eof() {
            match reader.next_tag(bytes)? {
                BLOCK_PREFIX => prefix = frame.slice_ref(reader.read_bytes(bytes)?),
                BLOCK_DATA => data = frame.slice_ref(reader.read_bytes(bytes)?),
                other => reader.read_unknown(bytes, other)?,
            }
        }
        self.push_block(prefix, data)
    }

    fn push_block(&mut self, prefix: Bytes, data: Bytes) -> Result<(), MessageError> {
        room_for_one_more(self.blocks.len())?;
        if data.len() > limits::BLOCK {
            return Err(MessageError::BlockTooLarge);
        }
        self.blocks.push(Block { prefix, data });
        Ok(())
    }

    fn read_presence(&mut self, bytes: &[u8]) -> Result<(), MessageError> {
        room_for_one_more(self.presences.len())?;
        let mut cid: &[u8] = &[];
        let mut presence = Presence::Have;
        let mut reader = BytesReader::from_bytes(bytes);
        while !reader.is_eof() {
            match reader.next_tag(bytes)? {
                PRESENCE_CID => cid = reader.read_bytes(bytes)?,
                PRESENCE_TYPE if reader.read_int32(bytes)? != 0 => presence = Presence::DontHave,
                PRESENCE_TYPE => presence = Presence::Have,
                other => reader.read_unknown(bytes, other)?,
            }
        }
        self.presences.push((Cid::try_from(cid)?, presence));
        Ok(())
    }

    /// Writes the message, without its length prefix.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let blocks: usize = self.blocks.iter().map(|block| block.data.len() + 32).sum();
        let mut out =
            Vec::with_capacity(blocks + 96 * (self.wants.len() + self.presences.len()) + 16);
        if self.full || !self.wants.is_empty() {
            put_bytes(&mut out, WANTLIST, &encode_wantlist(&self.wants, self.full));
        }
        for block in &self.blocks {
            let size = field_size(block.prefix.len()) + field_size(block.data.len());
            put_varint(&mut out, u64::from(PAYLOAD));
            put_varint(&mut out, size as u64);
            put_bytes(&mut out, BLOCK_PREFIX, &block.prefix);
            put_bytes(&mut out, BLOCK_DATA, &block.data);
        }
        for (cid, presence) in &self.presences {
            put_bytes(&mut out, PRESENCES, &encode_presence(cid, *presence));
        }
        out
    }
}

fn room_for_one_more(len: usize) -> Result<(), MessageError> {
    if len >= limits::ENTRIES {
        return Err(MessageError::TooManyEntries(limits::ENTRIES));
    }
    Ok(())
}

fn read_entry(bytes: &[u8]) -> Result<Entry, MessageError> {
    let mut cid: &[u8] = &[];
    let mut entry = Entry {
        send_dont_have: false,
        ..Entry::want(Cid::default(), Want::Block)
    };
    let mut reader = BytesReader::from_bytes(bytes);
    while !reader.is_eof() {
        match reader.next_tag(bytes)? {
            ENTRY_CID => cid = reader.read_bytes(bytes)?,
            ENTRY_PRIORITY => entry.priority = reader.read_int32(bytes)?,
            ENTRY_CANCEL => entry.cancel = reader.read_bool(bytes)?,
            ENTRY_WANT_TYPE if reader.read_int32(bytes)? != 0 => entry.want = Want::Have,
            ENTRY_WANT_TYPE => entry.want = Want::Block,
            ENTRY_SEND_DONT_HAVE => entry.send_dont_have = reader.read_bool(bytes)?,
            other => reader.read_unknown(bytes, other)?,
        }
    }
    entry.cid = Cid::try_from(cid)?;
    Ok(entry)
}

fn encode_wantlist(wants: &[Entry], full: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 * wants.len());
    for entry in wants {
        put_bytes(&mut out, WANTLIST_ENTRIES, &encode_entry(entry));
    }
    put_number(&mut out, WANTLIST_FULL, u64::from(full));
    out
}

fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    put_bytes(&mut out, ENTRY_CID, &entry.cid.to_bytes());
    // Protobuf extends negative numbers to 64 bits.
    put_number(&mut out, ENTRY_PRIORITY, i64::from(entry.priority) as u64);
    put_number(&mut out, ENTRY_CANCEL, u64::from(entry.cancel));
    put_number(
        &mut out,
        ENTRY_WANT_TYPE,
        u64::from(entry.want == Want::Have),
    );
    put_number(
        &mut out,
        ENTRY_SEND_DONT_HAVE,
        u64::from(entry.send_dont_have),
    );
    out
}

fn encode_presence(cid: &Cid, presence: Presence) -> Vec<u8> {
    let mut out = Vec::with_capacity(48);
    put_bytes(&mut out, PRESENCE_CID, &cid.to_bytes());
    put_number(
        &mut out,
        PRESENCE_TYPE,
        u64::from(presence == Presence::DontHave),
    );
    out
}

fn put_bytes(out: &mut Vec<u8>, key: u32, bytes: &[u8]) {
    put_varint(out, u64::from(key));
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Zero is the default of every number and is not written.
fn put_number(out: &mut Vec<u8>, key: u32, number: u64) {
    if number != 0 {
        put_varint(out, u64::from(key));
        put_varint(out, number);
    }
}

/// Unsigned LEB128, which protobuf, multiformats and the frame's length share.
pub(super) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Size of a bytes field with a key of one byte.
fn field_size(len: usize) -> usize {
    let bits = (usize::BITS - len.leading_zeros()).max(1) as usize;
    1 + bits.div_ceil(7) + len
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bitswap::content;

    fn cid_of(data: &[u8]) -> Cid {
        content::raw_cid(data)
    }

    fn full_message() -> Message {
        Message {
            wants: vec![
                Entry::want(cid_of(b"one"), Want::Block),
                Entry::want(cid_of(b"two"), Want::Have),
                Entry::cancel(cid_of(b"three")),
            ],
            full: true,
            blocks: vec![Block {
                prefix: content::prefix_of(&cid_of(b"data")),
                data: Bytes::from_static(b"data"),
            }],
            presences: vec![
                (cid_of(b"here"), Presence::Have),
                (cid_of(b"gone"), Presence::DontHave),
            ],
        }
    }

    #[test]
    fn a_message_survives_the_wire() {
        let message = full_message();
        assert_eq!(Message::decode(&message.encode().into()).unwrap(), message);
        assert_eq!(Message::decode(&Bytes::new()).unwrap(), Message::default());
    }

    #[test]
    fn a_block_larger_than_the_limit_is_refused() {
        let block = Block {
            prefix: Bytes::from_static(PREFIX_V0),
            data: vec![0; limits::BLOCK + 1].into(),
        };
        let message = Message {
            blocks: vec![block],
            ..Message::default()
        };
        let decoded = Message::decode(&message.encode().into());
        assert_eq!(decoded, Err(MessageError::BlockTooLarge));
    }

    #[test]
    fn too_many_wants_are_refused() {
        let entry = Entry::want(cid_of(b"one"), Want::Have);
        let message = Message {
            wants: vec![entry; limits::ENTRIES + 1],
            ..Message::default()
        };
        let decoded = Message::decode(&message.encode().into());
        assert_eq!(decoded, Err(MessageError::TooManyEntries(limits::ENTRIES)));
    }

    #[test]
    fn a_cut_message_is_an_error_or_a_shorter_message_but_never_a_panic() {
        let bytes = Bytes::from(full_message().encode());
        for end in 0..bytes.len() {
            let _ = Message::decode(&bytes.slice(..end));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Message::decode(&Bytes::from(bytes));
        }

        #[test]
        fn a_bytes_field_is_as_long_as_computed(len in 0usize..70_000) {
            let mut out = Vec::new();
            put_bytes(&mut out, BLOCK_DATA, &vec![0; len]);
            prop_assert_eq!(out.len(), field_size(len));
        }
    }
}
