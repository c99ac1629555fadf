//! How values are laid out: bincode's own primitives, and rules for what bincode does not know
//! (peer ids, CIDs, addresses) or does not bound (text, lists).
//!
//! [`Wire`] is a trait of our own because bincode's cannot be implemented for foreign types.
//! [`wire_struct!`] and [`wire_enum!`] write both directions from one list of fields, so that they
//! cannot drift apart; `field[max]` bounds a text or a list.

use std::net::SocketAddr;

use bincode::de::{Decoder, read::Reader};
use bincode::enc::{Encoder, write::Writer};
use bincode::error::{AllowedEnumVariants, DecodeError, EncodeError};
use bincode::{Decode, Encode};
use cid::Cid;
use libp2p::{Multiaddr, PeerId};

use super::{Message, limit};

/// A value with a fixed layout on the wire.
pub(crate) trait Wire: Sized {
    /// Appends the value.
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError>;
    /// Reads the value.
    fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError>;
}

/// A value whose length must be bounded by the message that holds it.
pub(crate) trait Bounded: Sized {
    /// Appends the value; longer than `max` is an error.
    fn put_max<E: Encoder>(&self, encoder: &mut E, max: usize) -> Result<(), EncodeError>;
    /// Reads the value; longer than `max` is an error before anything is allocated.
    fn take_max<D: Decoder>(decoder: &mut D, max: usize) -> Result<Self, DecodeError>;
}

/// A message on its way out: tag, then body.
pub(super) struct Outgoing<'a, M>(pub &'a M);

impl<M: Message> Encode for Outgoing<'_, M> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        M::TAG.put(encoder)?;
        self.0.put(encoder)
    }
}

/// A message on its way in.
pub(super) struct Incoming<M>(pub M);

impl<C, M: Message> Decode<C> for Incoming<M> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let tag = u8::take(decoder)?;
        if tag != M::TAG {
            return Err(unknown_tag(M::NAME, tag));
        }
        M::take(decoder).map(Self)
    }
}

/// The error for a tag that the table does not hold.
pub(crate) fn unknown_tag(type_name: &'static str, tag: u8) -> DecodeError {
    DecodeError::UnexpectedVariant {
        type_name,
        allowed: &AllowedEnumVariants::Allowed(&[]),
        found: u32::from(tag),
    }
}

/// Whether a character may travel in text: it may be printed without harm to a terminal.
pub(super) fn is_sendable(character: char) -> bool {
    !character.is_control() || matches!(character, '\n' | '\t')
}

macro_rules! plain {
    ($($type:ty),*) => {$(
        impl Wire for $type {
            fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                Encode::encode(self, encoder)
            }
            fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError> {
                Decode::decode(decoder)
            }
        }
    )*};
}

plain!(bool, u8, u16, u32, u64, f32, SocketAddr);

impl<const N: usize> Wire for [u8; N] {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        encoder.writer().write(self)
    }

    fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError> {
        let mut bytes = [0; N];
        decoder.reader().read(&mut bytes)?;
        Ok(bytes)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.is_some().put(encoder)?;
        match self {
            Some(value) => value.put(encoder),
            None => Ok(()),
        }
    }

    fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError> {
        match bool::take(decoder)? {
            true => T::take(decoder).map(Some),
            false => Ok(None),
        }
    }
}

impl<T: Wire> Wire for Box<T> {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.as_ref().put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError> {
        T::take(decoder).map(Box::new)
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.put(encoder)?;
        self.1.put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok((A::take(decoder)?, B::take(decoder)?))
    }
}

impl Wire for PeerId {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.to_bytes().put_max(encoder, limit::PEER_ID)
    }

    fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError> {
        let bytes = Vec::<u8>::take_max(decoder, limit::PEER_ID)?;
        PeerId::from_bytes(&bytes).map_err(|error| refused("peer id", error))
    }
}

impl Wire for Cid {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.to_bytes().put_max(encoder, limit::CID)
    }

    fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError> {
        let bytes = Vec::<u8>::take_max(decoder, limit::CID)?;
        let cid = Cid::try_from(bytes.as_slice()).map_err(|error| refused("cid", error))?;
        if cid.to_bytes() != bytes {
            return Err(refused("cid", "bytes follow it"));
        }
        Ok(cid)
    }
}

impl Wire for Multiaddr {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.to_vec().put_max(encoder, limit::MULTIADDR)
    }

    fn take<D: Decoder>(decoder: &mut D) -> Result<Self, DecodeError> {
        let bytes = Vec::<u8>::take_max(decoder, limit::MULTIADDR)?;
        Multiaddr::try_from(bytes).map_err(|error| refused("address", error))
    }
}

fn refused(what: &str, reason: impl std::fmt::Display) -> DecodeError {
    DecodeError::OtherString(format!("bad {what}: {reason}"))
}

impl Bounded for String {
    fn put_max<E: Encoder>(&self, encoder: &mut E, max: usize) -> Result<(), EncodeError> {
        if let Some(bad) = self.chars().find(|c| !is_sendable(*c)) {
            return Err(EncodeError::OtherString(format!(
                "text holds the control character {bad:?}"
            )));
        }
        put_len(encoder, self.len(), max)?;
        encoder.writer().write(self.as_bytes())
    }

    fn take_max<D: Decoder>(decoder: &mut D, max: usize) -> Result<Self, DecodeError> {
        let bytes = take_bytes(decoder, max)?;
        let text = String::from_utf8(bytes).map_err(|error| refused("text", error))?;
        match text.chars().find(|c| !is_sendable(*c)) {
            Some(bad) => Err(refused("text", format_args!("control character {bad:?}"))),
            None => Ok(text),
        }
    }
}

impl<T: Wire> Bounded for Vec<T> {
    fn put_max<E: Encoder>(&self, encoder: &mut E, max: usize) -> Result<(), EncodeError> {
        put_len(encoder, self.len(), max)?;
        for value in self {
            value.put(encoder)?;
        }
        Ok(())
    }

    fn take_max<D: Decoder>(decoder: &mut D, max: usize) -> Result<Self, DecodeError> {
        let len = take_len(decoder, max)?;
        // Not `with_capacity(len)`: memory follows the bytes that are really there.
        let mut values = Vec::new();
        for _ in 0..len {
            values.push(T::take(decoder)?);
        }
        Ok(values)
    }
}

fn put_len<E: Encoder>(encoder: &mut E, len: usize, max: usize) -> Result<(), EncodeError> {
    if len > max {
        return Err(EncodeError::OtherString(format!(
            "length {len} is over {max}"
        )));
    }
    (len as u64).put(encoder)
}

fn take_len<D: Decoder>(decoder: &mut D, max: usize) -> Result<usize, DecodeError> {
    let len = u64::take(decoder)?;
    match usize::try_from(len) {
        Ok(len) if len <= max => Ok(len),
        _ => Err(DecodeError::OtherString(format!(
            "length {len} is over {max}"
        ))),
    }
}

fn take_bytes<D: Decoder>(decoder: &mut D, max: usize) -> Result<Vec<u8>, DecodeError> {
    let len = take_len(decoder, max)?;
    let mut bytes = vec![0; len];
    decoder.reader().read(&mut bytes)?;
    Ok(bytes)
}

/// Appends one field; with a bound when one is given.
macro_rules! put_field {
    ($encoder:ident, $value:expr) => {
        $crate::wire::Wire::put($value, $encoder)?
    };
    ($encoder:ident, $value:expr, $max:expr) => {
        $crate::wire::Bounded::put_max($value, $encoder, $max)?
    };
}

/// Reads one field; with a bound when one is given.
macro_rules! take_field {
    ($decoder:ident) => {
        $crate::wire::Wire::take($decoder)?
    };
    ($decoder:ident, $max:expr) => {
        $crate::wire::Bounded::take_max($decoder, $max)?
    };
}

/// Layout of a struct: its fields in order.
macro_rules! wire_struct {
    ($name:ident { $($field:ident $([$max:expr])?),+ $(,)? }) => {
        impl $crate::wire::Wire for $name {
            fn put<E: bincode::enc::Encoder>(
                &self,
                encoder: &mut E,
            ) -> Result<(), bincode::error::EncodeError> {
                $($crate::wire::put_field!(encoder, &self.$field $(, $max)?);)+
                Ok(())
            }

            fn take<D: bincode::de::Decoder>(
                decoder: &mut D,
            ) -> Result<Self, bincode::error::DecodeError> {
                Ok(Self { $($field: $crate::wire::take_field!(decoder $(, $max)?)),+ })
            }
        }
    };
}

/// Layout of an enum: `tag => Variant { fields in order }`; a tag is never reused.
macro_rules! wire_enum {
    ($name:ident { $($tag:literal => $variant:ident { $($field:ident $([$max:expr])?),* }),+ $(,)? }) => {
        impl $crate::wire::Wire for $name {
            fn put<E: bincode::enc::Encoder>(
                &self,
                encoder: &mut E,
            ) -> Result<(), bincode::error::EncodeError> {
                match self {
                    $(Self::$variant { $($field),* } => {
                        $crate::wire::Wire::put(&($tag as u8), encoder)?;
                        $($crate::wire::put_field!(encoder, $field $(, $max)?);)*
                    })+
                }
                Ok(())
            }

            fn take<D: bincode::de::Decoder>(
                decoder: &mut D,
            ) -> Result<Self, bincode::error::DecodeError> {
                match <u8 as $crate::wire::Wire>::take(decoder)? {
                    $($tag => Ok(Self::$variant {
                        $($field: $crate::wire::take_field!(decoder $(, $max)?)),*
                    }),)+
                    unknown => Err($crate::wire::unknown_tag(stringify!($name), unknown)),
                }
            }
        }
    };
}

pub(crate) use {put_field, take_field, wire_enum, wire_struct};
