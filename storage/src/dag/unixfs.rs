//! The `Data` field of a dag-pb node: UnixFS's own protobuf message.

use quick_protobuf::{BytesReader, Writer};

use super::MAX_LINKS;
use crate::error::DagError;

const TYPE_RAW: u64 = 0;
const TYPE_FILE: u64 = 2;

// Field number << 3 | wire type.
const TAG_TYPE: u32 = 0x08;
const TAG_DATA: u32 = 0x12;
const TAG_FILESIZE: u32 = 0x18;
const TAG_BLOCKSIZE: u32 = 0x20;
const TAG_BLOCKSIZES_PACKED: u32 = 0x22;

/// The part of the message that concerns files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct UnixFs<'a> {
    pub data: &'a [u8],
    pub filesize: Option<u64>,
    pub blocksizes: Vec<u64>,
}

impl<'a> UnixFs<'a> {
    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, DagError> {
        let mut kind = None;
        let mut message = Self::default();
        let mut reader = BytesReader::from_bytes(bytes);
        while !reader.is_eof() {
            let tag = reader.next_tag(bytes).map_err(malformed)?;
            match tag {
                TAG_TYPE => kind = Some(reader.read_uint64(bytes).map_err(malformed)?),
                TAG_DATA => message.data = reader.read_bytes(bytes).map_err(malformed)?,
                TAG_FILESIZE => {
                    message.filesize = Some(reader.read_uint64(bytes).map_err(malformed)?);
                }
                TAG_BLOCKSIZE => {
                    let size = reader.read_uint64(bytes).map_err(malformed)?;
                    message.push_blocksize(size)?;
                }
                TAG_BLOCKSIZES_PACKED => {
                    let packed = reader.read_bytes(bytes).map_err(malformed)?;
                    message.push_packed(packed)?;
                }
                other => reader.read_unknown(bytes, other).map_err(malformed)?,
            }
        }
        match kind {
            Some(TYPE_RAW | TYPE_FILE) => Ok(message),
            Some(other) => Err(DagError::NotAFile { kind: name(other) }),
            None => Err(DagError::Malformed("no UnixFS type".to_owned())),
        }
    }

    fn push_packed(&mut self, packed: &[u8]) -> Result<(), DagError> {
        let mut reader = BytesReader::from_bytes(packed);
        while !reader.is_eof() {
            let size = reader.read_uint64(packed).map_err(malformed)?;
            self.push_blocksize(size)?;
        }
        Ok(())
    }

    fn push_blocksize(&mut self, size: u64) -> Result<(), DagError> {
        if self.blocksizes.len() >= MAX_LINKS {
            return Err(DagError::TooManyLinks {
                links: self.blocksizes.len() + 1,
                limit: MAX_LINKS,
            });
        }
        self.blocksizes.push(size);
        Ok(())
    }
}

/// The message of a node that only joins its children, byte for byte as Kubo writes it.
pub(super) fn encode_file(filesize: u64, blocksizes: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + 4 * blocksizes.len());
    let mut writer = Writer::new(&mut bytes);
    let written = writer
        .write_with_tag(TAG_TYPE, |w| w.write_uint64(TYPE_FILE))
        .and_then(|()| writer.write_with_tag(TAG_FILESIZE, |w| w.write_uint64(filesize)))
        .and_then(|()| {
            blocksizes.iter().try_for_each(|size| {
                writer.write_with_tag(TAG_BLOCKSIZE, |w| w.write_uint64(*size))
            })
        });
    written.expect("writing to a vector cannot fail");
    bytes
}

fn malformed(error: quick_protobuf::Error) -> DagError {
    DagError::Malformed(format!("UnixFS message: {error}"))
}

fn name(kind: u64) -> &'static str {
    match kind {
        1 => "directory",
        3 => "metadata node",
        4 => "symlink",
        5 => "sharded directory",
        _ => "node of an unknown kind",
    }
}
