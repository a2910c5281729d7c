//! How a message is declared: as the schema does, one field a line. What is made of it is what
//! `prost` derives, except that fields which no declaration knows are kept.
//!
//! A field is `label kind name = number;`, with the label `optional`, `boxed` (optional, behind a
//! pointer), `repeated`, `packed` (repeated, in one record) or `oneof`, whose numbers are parted by
//! `|`. Kinds are protobuf's scalars, and messages.

use attar_tensor::Bytes;
use bytes::Buf;
use prost::DecodeError;
use prost::encoding::{self, DecodeContext, WireType};

/// Fields of a message that its declaration does not know, encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Unknown(Vec<u8>);

impl Unknown {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Takes the next field's value from `buf`. Groups, which no schema of ONNX has ever used, are
    /// refused.
    pub(crate) fn keep(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match wire_type {
            WireType::Varint => {
                let mut value = 0;
                encoding::uint64::merge(wire_type, &mut value, buf, ctx)?;
                encoding::uint64::encode(tag, &value, &mut self.0);
            }
            WireType::SixtyFourBit => {
                let mut value = 0;
                encoding::fixed64::merge(wire_type, &mut value, buf, ctx)?;
                encoding::fixed64::encode(tag, &value, &mut self.0);
            }
            WireType::ThirtyTwoBit => {
                let mut value = 0;
                encoding::fixed32::merge(wire_type, &mut value, buf, ctx)?;
                encoding::fixed32::encode(tag, &value, &mut self.0);
            }
            WireType::LengthDelimited | WireType::StartGroup | WireType::EndGroup => {
                let mut value = Bytes::new();
                encoding::bytes::merge(wire_type, &mut value, buf, ctx)?;
                encoding::bytes::encode(tag, &value, &mut self.0);
            }
        }
        Ok(())
    }
}

macro_rules! messages {
    ($(
        $(#[$attribute:meta])*
        struct $message:ident {
            $($(#[$note:meta])* $label:ident $kind:ident $field:ident = $($tag:literal)|+;)*
        }
    )*) => {$(
        $(#[$attribute])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(crate) struct $message {
            $($(#[$note])* pub $field: field_type!($label $kind),)*
            pub unknown: $crate::wire::Unknown,
        }

        impl prost::Message for $message {
            fn encode_raw(&self, buf: &mut impl bytes::BufMut) {
                $(field_encode!($label $kind, $($tag)|+, &self.$field, buf);)*
                buf.put_slice(self.unknown.bytes());
            }

            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: prost::encoding::WireType,
                buf: &mut impl bytes::Buf,
                ctx: prost::encoding::DecodeContext,
            ) -> Result<(), prost::DecodeError> {
                match tag {
                    $($($tag)|+ => {
                        field_merge!($label $kind, tag, wire_type, &mut self.$field, buf, ctx)
                            .map_err(|mut error: prost::DecodeError| {
                                error.push(stringify!($message), stringify!($field));
                                error
                            })
                    })*
                    _ => self.unknown.keep(tag, wire_type, buf, ctx),
                }
            }

            fn encoded_len(&self) -> usize {
                $(field_len!($label $kind, $($tag)|+, &self.$field) +)* self.unknown.bytes().len()
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }
    )*};
}

macro_rules! field_type {
    (optional $kind:ident) => { Option<kind_type!($kind)> };
    (boxed $kind:ident) => { Option<Box<kind_type!($kind)>> };
    (oneof $kind:ident) => { Option<$kind> };
    ($label:ident $kind:ident) => { Vec<kind_type!($kind)> };
}

macro_rules! kind_type {
    (int32) => {
        i32
    };
    (int64) => {
        i64
    };
    (uint64) => {
        u64
    };
    (float) => {
        f32
    };
    (double) => {
        f64
    };
    (string) => {
        String
    };
    (bytes) => {
        attar_tensor::Bytes
    };
    ($message:ident) => {
        $message
    };
}

/// Calls a function of the codec of a kind: `codec!(string, encode)(tag, value, buf)`.
macro_rules! codec {
    (int32, $name:ident) => {
        prost::encoding::int32::$name
    };
    (int64, $name:ident) => {
        prost::encoding::int64::$name
    };
    (uint64, $name:ident) => {
        prost::encoding::uint64::$name
    };
    (float, $name:ident) => {
        prost::encoding::float::$name
    };
    (double, $name:ident) => {
        prost::encoding::double::$name
    };
    (string, $name:ident) => {
        prost::encoding::string::$name
    };
    (bytes, $name:ident) => {
        prost::encoding::bytes::$name
    };
    ($message:ident, $name:ident) => {
        prost::encoding::message::$name
    };
}

macro_rules! field_encode {
    (repeated $kind:ident, $tag:literal, $field:expr, $buf:ident) => {
        codec!($kind, encode_repeated)($tag, $field, $buf)
    };
    (packed $kind:ident, $tag:literal, $field:expr, $buf:ident) => {
        codec!($kind, encode_packed)($tag, $field, $buf)
    };
    (oneof $kind:ident, $($tag:literal)|+, $field:expr, $buf:ident) => {
        if let Some(value) = $field {
            value.encode($buf);
        }
    };
    ($label:ident $kind:ident, $tag:literal, $field:expr, $buf:ident) => {
        if let Some(value) = $field {
            codec!($kind, encode)($tag, value, $buf);
        }
    };
}

macro_rules! field_merge {
    (optional $kind:ident, $tag:ident, $wire:ident, $field:expr, $buf:ident, $ctx:ident) => {
        codec!($kind, merge)($wire, $field.get_or_insert_with(Default::default), $buf, $ctx)
    };
    (boxed $kind:ident, $tag:ident, $wire:ident, $field:expr, $buf:ident, $ctx:ident) => {
        codec!($kind, merge)($wire, $field.get_or_insert_with(Default::default), $buf, $ctx)
    };
    (oneof $kind:ident, $tag:ident, $wire:ident, $field:expr, $buf:ident, $ctx:ident) => {
        $kind::merge($field, $tag, $wire, $buf, $ctx)
    };
    ($label:ident $kind:ident, $tag:ident, $wire:ident, $field:expr, $buf:ident, $ctx:ident) => {
        codec!($kind, merge_repeated)($wire, $field, $buf, $ctx)
    };
}

macro_rules! field_len {
    (repeated $kind:ident, $tag:literal, $field:expr) => {
        codec!($kind, encoded_len_repeated)($tag, $field)
    };
    (packed $kind:ident, $tag:literal, $field:expr) => {
        codec!($kind, encoded_len_packed)($tag, $field)
    };
    (oneof $kind:ident, $($tag:literal)|+, $field:expr) => {
        $field.as_ref().map_or(0, |value| value.encoded_len())
    };
    ($label:ident $kind:ident, $tag:literal, $field:expr) => {
        $field.as_ref().map_or(0, |value| codec!($kind, encoded_len)($tag, value))
    };
}

pub(crate) use {codec, field_encode, field_len, field_merge, field_type, kind_type, messages};
