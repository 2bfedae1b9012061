//! W3C trace context: who asked, in whose trace.
//!
//! <https://www.w3.org/TR/trace-context/>. A header that is malformed is read past, as the standard
//! asks: tracing must never refuse a request.

use std::fmt::Write as _;

/// Longest name that a client may give its request, in characters.
const CLIENT_ID_CHARS_MAX: usize = 128;

/// Flag bit: whoever asked records this trace.
const SAMPLED: u8 = 1;

/// A valid `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Of the whole trace; not all zero.
    pub trace_id: [u8; 16],
    /// The caller's span; not all zero.
    pub span_id: [u8; 8],
    /// Bit 0: sampled.
    pub flags: u8,
}

impl TraceParent {
    /// Reads a header; `None` if it is malformed.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace) = (parts.next()?, parts.next()?);
        let (span, flags) = (parts.next()?, parts.next()?);
        let [version] = hex(version)?;
        // Versions to come may append parts; 255 is none.
        let has_more = parts.next().is_some();
        if version == u8::MAX || (version == 0 && has_more) {
            return None;
        }
        let [flags] = hex(flags)?;
        let (trace_id, span_id) = (hex(trace)?, hex(span)?);
        let is_valid = trace_id != [0; 16] && span_id != [0; 8];
        is_valid.then_some(Self {
            trace_id,
            span_id,
            flags,
        })
    }

    /// Whether the caller records it.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The header, version 0.
    pub fn header(&self) -> String {
        let mut header = String::with_capacity(55);
        header.push_str("00-");
        push_hex(&mut header, &self.trace_id);
        header.push('-');
        push_hex(&mut header, &self.span_id);
        header.push('-');
        push_hex(&mut header, &[self.flags & SAMPLED]);
        header
    }
}

/// The place of one request in a trace that this router records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The request's own span, as workers see it.
    pub own: TraceParent,
    /// The caller's span, if it gave one.
    pub parent: Option<[u8; 8]>,
}

impl TraceContext {
    /// A span under `caller`'s, or a trace of its own. `None`: the caller does not record it, or
    /// the system gave no random numbers.
    pub fn begin(caller: Option<TraceParent>) -> Option<Self> {
        if caller.is_some_and(|caller| !caller.is_sampled()) {
            return None;
        }
        let mut random = [0_u8; 24];
        getrandom::fill(&mut random).ok()?;
        let (mut trace_id, mut span_id) = ([0; 16], [0; 8]);
        trace_id.copy_from_slice(&random[..16]);
        span_id.copy_from_slice(&random[16..]);
        // All zero means none.
        span_id[0] |= 1;
        trace_id[0] |= 1;
        let own = TraceParent {
            trace_id: caller.map_or(trace_id, |caller| caller.trace_id),
            span_id,
            flags: SAMPLED,
        };
        let parent = caller.map(|caller| caller.span_id);
        Some(Self { own, parent })
    }
}

/// A client's own name for its request, if it is fit for a log line.
pub fn client_id(header: Option<&str>) -> Option<Box<str>> {
    let id = header?;
    let is_fit = (1..=CLIENT_ID_CHARS_MAX).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_graphic());
    is_fit.then(|| id.into())
}

/// Exactly `N` bytes in lower-case hex, as the standard writes them.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(*pair.first()?)? << 4 | digit(*pair.last()?)?;
    }
    Some(bytes)
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_valid_header_is_read_and_written_again() {
        let header = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let parent = TraceParent::parse(&header).unwrap();
        assert!(parent.is_sampled());
        assert_eq!(parent.header(), header);
        let future = format!("cc-{TRACE}-00f067aa0ba902b7-01-what-comes");
        assert_eq!(TraceParent::parse(&future), Some(parent));
    }

    #[test]
    fn malformed_headers_are_none() {
        for header in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}\u{e9}-00f067aa0ba902b7-01", &TRACE[..30]),
            format!(" 00-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-00f067aa0ba902b7-1"),
        ] {
            assert_eq!(TraceParent::parse(&header), None, "{header:?}");
        }
    }

    #[test]
    fn a_request_has_its_own_span_in_the_callers_trace() {
        let caller = TraceParent::parse(&format!("00-{TRACE}-00f067aa0ba902b7-01"));
        let context = TraceContext::begin(caller).unwrap();
        assert_eq!(context.own.trace_id, caller.unwrap().trace_id);
        assert_eq!(context.parent, Some(caller.unwrap().span_id));
        assert_ne!(context.own.span_id, caller.unwrap().span_id);
        let unsampled = TraceParent::parse(&format!("00-{TRACE}-00f067aa0ba902b7-00"));
        assert_eq!(TraceContext::begin(unsampled), None);
        assert!(TraceContext::begin(None).unwrap().parent.is_none());
    }

    #[test]
    fn only_a_clients_id_that_cannot_harm_a_log_is_taken() {
        assert_eq!(client_id(Some("run-7/3")).as_deref(), Some("run-7/3"));
        for id in ["", "a b", "a\nb", "\u{1b}[31m", "caf\u{e9}"] {
            assert_eq!(client_id(Some(id)), None, "{id:?}");
        }
        assert_eq!(client_id(Some(&"x".repeat(129))), None);
    }
}
