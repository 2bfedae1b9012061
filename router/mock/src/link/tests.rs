//! Framing against strangers' bytes.

use std::task::Poll;

use dopd_router::wire::worker::{Begin, End, Go, Write};
use proptest::prelude::*;

use super::*;

/// Reads from a slice, which is always ready: no runtime is needed.
fn read(mut bytes: &[u8]) -> io::Result<(LinkMessage, usize)> {
    let total = bytes.len();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let frame = std::pin::pin!(read_frame(&mut bytes)).poll(&mut context);
    match frame {
        Poll::Ready(frame) => frame.map(|frame| (frame, total - bytes.len())),
        Poll::Pending => panic!("a slice is always ready"),
    }
}

fn message() -> impl Strategy<Value = LinkMessage> {
    let pages = prop::collection::vec(any::<u32>(), 0..50);
    let kind = prop_oneof![
        any::<u64>().prop_map(|nonce| Kind::Begin(Begin { nonce })),
        (any::<u64>(), pages.clone(), 0..4_u32).prop_map(|(nonce, pages, first)| Kind::Go(Go {
            nonce,
            pages,
            first
        })),
        (any::<u64>(), any::<u32>(), any::<u32>()).prop_map(|(nonce, first, count)| {
            Kind::Write(Write {
                nonce,
                first,
                count,
                ..Write::default()
            })
        }),
        (any::<bool>(), any::<Option<u64>>(), pages).prop_map(|(ok, checksum, tokens)| {
            Kind::End(End {
                ok,
                checksum,
                tokens,
                ..End::default()
            })
        }),
    ];
    let payload = prop::collection::vec(any::<u8>(), 0..2_000);
    (kind, payload).prop_map(|(kind, payload)| LinkMessage {
        kind,
        payload: payload.into(),
    })
}

proptest! {
    #[test]
    fn what_is_said_is_heard(messages in prop::collection::vec(message(), 1..5)) {
        let mut buffer = BytesMut::new();
        for message in &messages {
            put_frame(&mut buffer, message.clone()).unwrap();
        }
        let mut rest = &buffer[..];
        for message in messages {
            let (heard, used) = read(rest).unwrap();
            prop_assert_eq!(heard, message);
            rest = &rest[used..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        // Lengths that fit as often as those that do not.
        let mut short = bytes.clone();
        for place in [1, 2, 3, 5, 6, 7] {
            if let Some(byte) = short.get_mut(place) {
                *byte = 0;
            }
        }
        for bytes in [bytes, short] {
            if let Ok((_, used)) = read(&bytes) {
                prop_assert!(used <= bytes.len());
            }
        }
    }

    #[test]
    fn a_damaged_frame_is_a_message_or_an_error(
        message in message(), at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>(),
    ) {
        let mut buffer = BytesMut::new();
        put_frame(&mut buffer, message).unwrap();
        let at = at.index(buffer.len());
        buffer[at] ^= 1 << bit;
        let end = if cut { at } else { buffer.len() };
        if let Ok((_, used)) = read(&buffer[..end]) {
            prop_assert!(used <= end);
        }
    }
}

#[test]
fn lengths_above_the_limits_are_refused_before_a_byte_is_read() {
    for (length, payload) in [
        (MESSAGE_BYTES_MAX + 1, 0),
        (0, PAYLOAD_BYTES_MAX + 1),
        (u32::MAX, 9),
    ] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(payload.to_le_bytes());
        let error = read(&bytes).unwrap_err();
        assert!(error.to_string().contains("at most"), "{error}");
    }
}

#[test]
fn announced_bytes_that_do_not_come_are_an_error() {
    let mut bytes = MESSAGE_BYTES_MAX.to_le_bytes().to_vec();
    bytes.extend(PAYLOAD_BYTES_MAX.to_le_bytes());
    bytes.extend([0; 100]);
    assert_eq!(
        read(&bytes).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
}
