//! Reads the metadata of a GGUF file (versions 2 and 3, little-endian), and nothing else of it.
//!
//! The file is not trusted: every count and length is compared with what is left of the file, and
//! with a cap of our own, before anything is allocated for it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

/// Most key-value pairs; real files have some dozens.
const PAIRS_MAX: u64 = 4_096;
/// Longest key or string in bytes; the longest real ones are chat templates.
const STRING_BYTES_MAX: u64 = 1 << 20;
/// Most elements of an array; the largest real vocabularies have some 300,000 tokens.
const ELEMENTS_MAX: u64 = 4 << 20;
/// Most bytes of metadata.
const HEADER_BYTES_MAX: u64 = 256 << 20;

/// Metadata by key. Arrays of floats and booleans are skipped: nothing here needs them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    values: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Integers(Vec<i64>),
    Texts(Vec<String>),
    Skipped,
}

/// Type codes of the format.
mod code {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

impl Header {
    /// Reads the head of the file at `path`.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let len = file.metadata().map_err(|error| error.to_string())?.len();
        Self::read(BufReader::with_capacity(1 << 16, file), len)
    }

    /// Reads the head of a file of `len` bytes.
    pub fn read(source: impl Read, len: u64) -> Result<Self, String> {
        let left = len.min(HEADER_BYTES_MAX);
        let mut cursor = Cursor { source, left };
        if cursor.array::<4>()? != *b"GGUF" {
            return Err("it does not start with GGUF".to_owned());
        }
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!(
                "GGUF version {version} is not supported; 2 and 3 are"
            ));
        }
        let _tensors = cursor.u64()?;
        let pairs = cursor.u64()?;
        if pairs > PAIRS_MAX {
            return Err(format!("{pairs} metadata pairs, at most {PAIRS_MAX}"));
        }
        let mut values = BTreeMap::new();
        for _ in 0..pairs {
            let key = cursor.string()?;
            let kind = cursor.u32()?;
            let value = cursor
                .value(kind)
                .map_err(|error| format!("`{key}`: {error}"))?;
            values.insert(key, value);
        }
        Ok(Self { values })
    }

    /// A string.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number that fits.
    pub fn integer(&self, key: &str) -> Option<u32> {
        match self.values.get(key)? {
            Value::Integer(integer) => u32::try_from(*integer).ok(),
            _ => None,
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.values.get(key)? {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// An array of strings.
    pub fn texts(&self, key: &str) -> Option<&[String]> {
        match self.values.get(key)? {
            Value::Texts(texts) => Some(texts),
            _ => None,
        }
    }

    /// An array of numbers.
    pub fn integers(&self, key: &str) -> Option<&[i64]> {
        match self.values.get(key)? {
            Value::Integers(integers) => Some(integers),
            _ => None,
        }
    }
}

struct Cursor<R> {
    source: R,
    /// Bytes that may still be read.
    left: u64,
}

impl<R: Read> Cursor<R> {
    fn take(&mut self, bytes: u64) -> Result<(), String> {
        let left = self.left;
        self.left = left
            .checked_sub(bytes)
            .ok_or_else(|| format!("it ends early: {bytes} bytes wanted, {left} left"))?;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        let read = self.source.read_exact(&mut bytes);
        read.map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<String, String> {
        let len = self.u64()?;
        if len > STRING_BYTES_MAX {
            return Err(format!(
                "a string of {len} bytes, at most {STRING_BYTES_MAX}"
            ));
        }
        self.take(len)?;
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        let read = (&mut self.source).take(len).read_to_end(&mut bytes);
        if read.map_err(|error| error.to_string())? as u64 != len {
            return Err(format!("it ends early, in a string of {len} bytes"));
        }
        String::from_utf8(bytes).map_err(|_| "a string that is not UTF-8".to_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            code::F32 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            code::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
            code::BOOL => Value::Bool(self.array::<1>()? != [0]),
            code::STRING => Value::Text(self.string()?),
            code::ARRAY => self.elements()?,
            _ => Value::Integer(self.integer(kind)?),
        })
    }

    fn integer(&mut self, kind: u32) -> Result<i128, String> {
        Ok(match kind {
            code::U8 => u8::from_le_bytes(self.array()?).into(),
            code::I8 => i8::from_le_bytes(self.array()?).into(),
            code::U16 => u16::from_le_bytes(self.array()?).into(),
            code::I16 => i16::from_le_bytes(self.array()?).into(),
            code::U32 => self.u32()?.into(),
            code::I32 => i32::from_le_bytes(self.array()?).into(),
            code::U64 => self.u64()?.into(),
            code::I64 => i64::from_le_bytes(self.array()?).into(),
            other => return Err(format!("type {other} is unknown")),
        })
    }

    fn elements(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        let count = self.u64()?;
        // Least bytes of an element: a string is at least its length.
        let width: u64 = match kind {
            code::U8 | code::I8 | code::BOOL => 1,
            code::U16 | code::I16 => 2,
            code::U32 | code::I32 | code::F32 => 4,
            code::U64 | code::I64 | code::F64 | code::STRING => 8,
            code::ARRAY => return Err("arrays of arrays are not supported".to_owned()),
            other => return Err(format!("array type {other} is unknown")),
        };
        if count > ELEMENTS_MAX || count * width > self.left {
            return Err(format!(
                "{count} elements, at most {ELEMENTS_MAX} and {} bytes",
                self.left
            ));
        }
        let room = usize::try_from(count).unwrap_or(0);
        Ok(match kind {
            code::STRING => {
                let mut texts = Vec::with_capacity(room);
                for _ in 0..count {
                    texts.push(self.string()?);
                }
                Value::Texts(texts)
            }
            code::F32 | code::F64 | code::BOOL => {
                for _ in 0..count {
                    self.value(kind)?;
                }
                Value::Skipped
            }
            _ => {
                let mut integers = Vec::with_capacity(room);
                for _ in 0..count {
                    let integer = i64::try_from(self.integer(kind)?);
                    integers.push(integer.map_err(|_| "a number above 2^63".to_owned())?);
                }
                Value::Integers(integers)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    /// Version 3, no tensor, three pairs.
    fn sample() -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(3_u64.to_le_bytes());
        bytes.extend([string("name"), 8_u32.to_le_bytes().to_vec(), string("x")].concat());
        bytes.extend([string("n"), 4_u32.to_le_bytes().to_vec()].concat());
        bytes.extend(7_u32.to_le_bytes());
        bytes.extend([string("tokens"), 9_u32.to_le_bytes().to_vec()].concat());
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        bytes.extend([string("a"), string("bc")].concat());
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Header, String> {
        Header::read(bytes, bytes.len() as u64)
    }

    #[test]
    fn reads_what_was_written() {
        let header = read(&sample()).unwrap();
        assert_eq!(header.text("name"), Some("x"));
        assert_eq!(header.integer("n"), Some(7));
        assert_eq!(header.texts("tokens").unwrap(), ["a", "bc"]);
        assert_eq!(header.text("n"), None);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = sample();
        for len in 0..whole.len() {
            assert!(read(&whole[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_lying_length_is_refused_before_it_is_allocated() {
        let mut bytes = sample();
        let at = bytes.len() - 2 - 8 - 9;
        bytes[at - 8..at].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = read(&bytes).unwrap_err();
        assert!(error.contains("elements"), "{error}");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&noise);
            let mut bytes = sample();
            for (index, byte) in noise.iter().enumerate() {
                let at = 24 + (index * 7 + usize::from(*byte)) % (bytes.len() - 24);
                bytes[at] ^= byte;
                let _ = read(&bytes);
            }
        }
    }
}
