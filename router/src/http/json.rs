//! Text into JSON strings, without a serializer: the one thing that is written per token.

use bytes::BytesMut;

/// Appends `text` to `out`, escaped as the inside of a JSON string.
pub(super) fn escape(text: &str, out: &mut BytesMut) {
    let bytes = text.as_bytes();
    let mut written = 0;
    for (index, byte) in bytes.iter().enumerate() {
        let short: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0x08 => b"\\b",
            0x0C => b"\\f",
            0..=0x1F => b"",
            _ => continue,
        };
        out.extend_from_slice(&bytes[written..index]);
        written = index + 1;
        if short.is_empty() {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(b"\\u00");
            let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
            out.extend_from_slice(&digits);
        } else {
            out.extend_from_slice(short);
        }
    }
    out.extend_from_slice(&bytes[written..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_serde_json(text in "(.|[\\x00-\\x1f\"\\\\]){0,40}") {
            let mut out = BytesMut::from("\"");
            escape(&text, &mut out);
            out.extend_from_slice(b"\"");
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
        }
    }
}
